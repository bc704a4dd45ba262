//! `kaito supervise`: the engine of one rank.

use anyhow::Context;
use kaito_supervisor::{Options, Signals, Stream, Supervisor};

use crate::{args::SuperviseArgs, logging, network};

pub fn run(args: SuperviseArgs) -> anyhow::Result<()> {
    if let Some(path) = &args.install {
        return kaito_supervisor::install(path).map_err(anyhow::Error::from);
    }
    let own = if args.rank == 0 { args.first_argument } else { args.other_argument };
    let mut command = args.program;
    if !command.is_empty() {
        command.extend(own);
    }
    let options = Options {
        rank: args.rank,
        ranks: args.ranks.get(),
        first: args.first,
        address: network::address(Some(&args.host), args.port)?,
        front: args.front.map(String::from),
        command,
        grace: args.grace,
        scratch: args.scratch,
        output: |stream, line| logging::pass_on(stream == Stream::Out, line),
    };
    let runtime = tokio::runtime::Runtime::new().context("cannot start threads")?;
    runtime.block_on(async {
        let supervisor = Supervisor::bind(options).await?;
        let signals = Signals::of_process().context("cannot wait for signals")?;
        supervisor.run(signals).await.map_err(anyhow::Error::from)
    })
}

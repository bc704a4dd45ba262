//! `kaito up`: a workspace on this machine.

use std::{
    fs,
    io::{self, Read},
    path::Path,
};

use anyhow::Context;
use kaito_operator::up::{Manifest, UpOptions, up};

use crate::{
    args::UpArgs,
    logging::{self, escape},
};

pub fn run(args: &UpArgs) -> anyhow::Result<()> {
    let text = read(&args.filename)?;
    let (manifest, warnings) = Manifest::read(&text, args.workspace.as_deref())
        .with_context(|| format!("cannot run {}", args.filename.display()))?;
    for warning in warnings {
        logging::say(&format!("warning: {}\n", escape::lines(&warning)));
    }
    let kaito = std::env::current_exe().context("cannot find this program")?;
    let options = UpOptions { kaito: &kaito, port: args.port, weights: args.weights.as_deref(), log: log_line };
    let runtime = tokio::runtime::Runtime::new().context("cannot start threads")?;
    // The program that reads the conditions may stop reading them; the model runs on.
    runtime.block_on(up(&manifest, &options, logging::patient_stdout())).map_err(anyhow::Error::from)
}

/// A line of a process of the pod.
fn log_line(prefix: &str, line: &str) {
    logging::say(&format!("{} | {}\n", escape::line(prefix), escape::line(line)));
}

fn read(path: &Path) -> anyhow::Result<String> {
    if path == Path::new("-") {
        let mut text = String::new();
        return io::stdin().read_to_string(&mut text).map(|_| text).context("cannot read stdin");
    }
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

//! `kaito crd`: the definition of the resource.

use std::io::{self, Write};

use anyhow::Context;
use kaito_operator::{crd::custom_resource_definition, yaml};

use crate::args::CrdArgs;

pub fn run(args: &CrdArgs) -> anyhow::Result<()> {
    let definition = custom_resource_definition();
    let text = if args.json {
        format!("{}\n", serde_json::to_string_pretty(&definition).context("cannot write the definition as JSON")?)
    } else {
        yaml::to_string(&definition)?
    };
    match io::stdout().write_all(text.as_bytes()) {
        // `kaito crd | head` is no failure.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome.context("cannot write to stdout"),
    }
}

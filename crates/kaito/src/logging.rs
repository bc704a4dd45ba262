use std::io::{self, IsTerminal, Write};

use anyhow::Context;
use tracing_subscriber::{EnvFilter, fmt};

use crate::{
    args::{LogFormat, LoggingArgs},
    progress,
};

/// Sends the log to stderr; `default` is what is logged unless the user says otherwise.
pub fn init(args: &LoggingArgs, default: &str) -> anyhow::Result<()> {
    let filter = args.log.as_deref().unwrap_or(default);
    let filter = EnvFilter::try_new(filter)
        .with_context(|| format!("--log {filter:?} is no level (error, warn, info, debug, trace) nor a filter"))?;
    let builder = fmt().with_env_filter(filter).with_writer(|| Stderr);
    match args.log_format {
        LogFormat::Text => builder.with_ansi(io::stderr().is_terminal()).with_target(false).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}

/// Lines go above the progress bars instead of through them.
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        progress::bars().suspend(|| io::stderr().write_all(line))?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

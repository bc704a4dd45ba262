//! Flags of `kaito supervise`.

use std::{ffi::OsString, num::NonZeroUsize, path::PathBuf, time::Duration};

use clap::Args;
use url::Url;

use crate::values;

const EXAMPLES: &str = "\
Exit status: 0 after SIGTERM, 1 where this rank's engine ended by itself before the others', which its last line tells.

One machine:    kaito supervise --front http://127.0.0.1:5000 -- vllm serve MODEL --port 8000
Rank 1 of two:  kaito supervise --rank 1 --ranks 2 --first model-0.model -- vllm serve MODEL ...";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct SuperviseArgs {
    /// Number of this rank, from 0
    #[arg(long, env = "KAITO_RANK", value_name = "N", default_value_t = 0)]
    pub rank: usize,
    /// How many ranks serve the model together
    #[arg(long, env = "KAITO_RANKS", value_name = "N", default_value = "1", value_parser = values::count::<1024>)]
    pub ranks: NonZeroUsize,
    /// Name or address of rank 0's supervisor, which listens on the same port; needed by all other ranks
    #[arg(long, env = "KAITO_FIRST", value_name = "HOST", value_parser = values::not_empty)]
    pub first: Option<String>,
    /// Address to listen on, for the other ranks and for probes
    #[arg(long, env = "KAITO_HOST", value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub host: String,
    /// Port to listen on
    #[arg(long, env = "KAITO_PORT", default_value_t = 5001)]
    pub port: u16,
    /// The `kaito serve --upstream` before this engine, at rank 0: it says when the engine is stuck, and when its last requests are
    /// answered
    #[arg(long, env = "KAITO_FRONT", value_name = "URL", value_parser = values::url)]
    pub front: Option<Url>,
    /// Argument that the engine gets at rank 0 alone, behind the others; may be given several times
    #[arg(long, env = "KAITO_FIRST_ARGUMENT", value_name = "ARGUMENT", allow_hyphen_values = true)]
    pub first_argument: Vec<OsString>,
    /// Argument that it gets at all other ranks
    #[arg(long, env = "KAITO_OTHER_ARGUMENT", value_name = "ARGUMENT", allow_hyphen_values = true)]
    pub other_argument: Vec<OsString>,
    /// How long an engine that is told to end may take until all its processes are killed
    #[arg(long, env = "KAITO_GRACE", value_name = "TIME", value_parser = values::duration, default_value = "15s")]
    pub grace: Duration,
    /// Folder that only this engine uses, emptied before each of its starts: shared memory that killed processes left
    #[arg(long, env = "KAITO_SCRATCH", value_name = "DIR")]
    pub scratch: Option<PathBuf>,
    /// Copy this program to PATH, for a container whose image lacks it, and exit
    #[arg(long, env = "KAITO_INSTALL", value_name = "PATH", conflicts_with = "program")]
    pub install: Option<PathBuf>,
    /// The engine's program and its arguments
    #[arg(env = "KAITO_PROGRAM", value_name = "PROGRAM", last = true)]
    pub program: Vec<OsString>,
}

//! Flags of `kaito validate`.

use std::path::PathBuf;

use clap::Args;

const EXIT_STATUS: &str = "\
Exit status: 0 if every workspace would be admitted to the cluster, 1 if one is refused, a file cannot be read or \
there is no workspace, 2 after wrong usage.";

#[derive(Debug, Args)]
#[command(after_help = EXIT_STATUS)]
pub struct ValidateArgs {
    /// Files of manifests, or directories of them; - is standard input
    #[arg(
        long = "filename", short = 'f', env = "KAITO_FILENAME", value_name = "FILE", required = true, num_args = 1..
    )]
    pub filename: Vec<PathBuf>,
    /// File with instance types of your own, a list or the ConfigMap's manifest
    #[arg(long, env = "KAITO_INSTANCE_TYPES", value_name = "FILE")]
    pub instance_types: Option<PathBuf>,
    /// Print JSON
    #[arg(long, env = "KAITO_JSON")]
    pub json: bool,
}

//! Flags of `kaito up`.

use std::path::PathBuf;

use clap::Args;

use super::RegistryArgs;
use crate::values;

#[derive(Debug, Args)]
pub struct UpArgs {
    /// Manifest of the workspace; - is standard input
    #[arg(long = "filename", short = 'f', env = "KAITO_FILENAME", value_name = "FILE")]
    pub filename: PathBuf,
    /// Which workspace, where the file has several
    #[arg(long, env = "KAITO_WORKSPACE", value_name = "NAME", value_parser = values::not_empty)]
    pub workspace: Option<String>,
    /// Local port of the service; 0 takes any that is free
    #[arg(long, env = "KAITO_PORT", default_value_t = 8080)]
    pub port: u16,
    /// Directory of the preset's weights, instead of a download
    #[arg(long, env = "KAITO_WEIGHTS", value_name = "DIR")]
    pub weights: Option<PathBuf>,
    /// vLLM's program, where vLLM computes [default: `vllm` in PATH]
    #[arg(long, env = "KAITO_VLLM", value_name = "PROGRAM")]
    pub vllm: Option<PathBuf>,
    #[command(flatten)]
    pub registry: RegistryArgs,
}

//! Flags of `kaito download`.

use std::path::PathBuf;

use clap::Args;

use crate::values;

#[derive(Debug, Args)]
pub struct DownloadArgs {
    /// A preset's name (see `kaito presets`), or a hub repository (organisation/name[@revision], and which of its GGUF files:
    /// :Q4_K_M)
    #[arg(env = "KAITO_MODEL", value_parser = values::not_empty)]
    pub model: String,
    /// Make this a link to the model, which lies in the hub's cache. Where it is one to a whole model of that name already, the hub
    /// is not asked
    #[arg(long, env = "KAITO_LINK", value_name = "PATH")]
    pub link: Option<PathBuf>,
}

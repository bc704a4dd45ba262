//! Flags of `kaito crd`.

use clap::Args;

#[derive(Debug, Args)]
pub struct CrdArgs {
    /// Print JSON
    #[arg(long, env = "KAITO_JSON")]
    pub json: bool,
}

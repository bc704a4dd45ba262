//! Flags of `kaito devices`.

use clap::Args;

#[derive(Debug, Args)]
pub struct DevicesArgs {
    /// Print JSON
    #[arg(long, env = "KAITO_JSON")]
    pub json: bool,
}

//! Flags of `kaito presets`.

use clap::Args;

#[derive(Debug, Args)]
pub struct PresetsArgs {
    /// Show this preset in full
    #[arg(env = "KAITO_PRESET")]
    pub name: Option<String>,
    /// Print JSON
    #[arg(long, env = "KAITO_JSON")]
    pub json: bool,
}

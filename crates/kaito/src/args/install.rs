//! Flags of `kaito install`.

use clap::Args;

use super::NodeArgs;

#[derive(Debug, Args)]
pub struct InstallArgs {
    /// Print the manifests, for kubectl apply --server-side -f -
    #[arg(long, env = "KAITO_PRINT")]
    pub print: bool,
    /// Container registry that kaito's image is in, like registry.example.com/team
    #[arg(long, env = "KAITO_REGISTRY", value_name = "REGISTRY")]
    pub registry: String,
    /// Container registry of the public presets' images [default: the same]
    #[arg(long, env = "KAITO_PRESET_REGISTRY", value_name = "REGISTRY")]
    pub preset_registry: Option<String>,
    /// Namespace of the controller
    #[arg(long, env = "KAITO_NAMESPACE", value_name = "NAME", default_value = "kaito-system")]
    pub namespace: String,
    #[command(flatten)]
    pub nodes: NodeArgs,
}

//! Flags of `kaito instance-types`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use kaito_presets::Cloud;

#[derive(Debug, Args)]
pub struct InstanceTypesArgs {
    /// Show this type in full, and which presets fit on it
    #[arg(env = "KAITO_INSTANCE_TYPE", value_name = "NAME")]
    pub instance_type: Option<String>,
    /// List only the types of this cloud
    #[arg(long, env = "KAITO_CLOUD", value_enum)]
    pub cloud: Option<CloudName>,
    /// File with types of your own, a list or the ConfigMap's manifest
    #[arg(long, env = "KAITO_INSTANCE_TYPES", value_name = "FILE")]
    pub instance_types: Option<PathBuf>,
    /// Print JSON
    #[arg(long, env = "KAITO_JSON")]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CloudName {
    Azure,
    Aws,
    Google,
    /// Those of --instance-types
    Custom,
}

impl From<CloudName> for Cloud {
    fn from(name: CloudName) -> Self {
        match name {
            CloudName::Azure => Cloud::Azure,
            CloudName::Aws => Cloud::Aws,
            CloudName::Google => Cloud::Google,
            CloudName::Custom => Cloud::Custom,
        }
    }
}

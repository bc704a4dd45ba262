//! Flags of `kaito install`.

use std::path::PathBuf;

use clap::Args;
use kaito_operator::install::InstallOptions;

use super::{NodeArgs, RolloutArgs};
use crate::values;

#[derive(Debug, Args)]
pub struct InstallArgs {
    /// Print the manifests, for kubectl apply --server-side -f -
    #[arg(long, env = "KAITO_PRINT")]
    pub print: bool,
    /// Container registry that holds kaito's image, like registry.example.com/team
    #[arg(long, env = "KAITO_REGISTRY", value_name = "REGISTRY")]
    pub registry: String,
    /// Container registry of the public presets' images [default: the same]
    #[arg(long, env = "KAITO_PRESET_REGISTRY", value_name = "REGISTRY")]
    pub preset_registry: Option<String>,
    /// Tag of the public presets' images [default: the version of kaito]
    #[arg(long, env = "KAITO_PRESET_TAG", value_name = "TAG", value_parser = values::tag)]
    pub preset_tag: Option<String>,
    /// Namespace of the controller
    #[arg(long, env = "KAITO_NAMESPACE", value_name = "NAME", default_value = "kaito-system")]
    pub namespace: String,
    /// Replicas of the controller: one leads, all answer admission requests
    #[arg(long, env = "KAITO_REPLICAS", value_name = "N", default_value_t = InstallOptions::DEFAULT_REPLICAS, value_parser = clap::value_parser!(u32).range(1..))]
    pub replicas: u32,
    /// Image of vLLM for nodes with NVIDIA's GPUs [default: the one of kaito controller]
    #[arg(long, env = "KAITO_VLLM_IMAGE", value_name = "IMAGE")]
    pub vllm_image: Option<String>,
    /// Image of vLLM for nodes with AMD's GPUs [default: the one of kaito controller]
    #[arg(long, env = "KAITO_VLLM_ROCM_IMAGE", value_name = "IMAGE")]
    pub vllm_rocm_image: Option<String>,
    /// File with instance types of your own, a list or the ConfigMap's manifest
    #[arg(long, env = "KAITO_INSTANCE_TYPES", value_name = "FILE")]
    pub instance_types: Option<PathBuf>,
    #[command(flatten)]
    pub rollouts: RolloutArgs,
    #[command(flatten)]
    pub nodes: NodeArgs,
}

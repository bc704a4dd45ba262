//! Flags of `kaito controller`.

use std::{num::NonZeroU32, time::Duration};

use clap::{Args, ValueEnum};
use kaito_operator::decide::{NodeClass, Options, RolloutPolicy, Window};
use url::Url;

use crate::values;

#[derive(Debug, Args)]
pub struct ControllerArgs {
    /// Reconcile the workspaces of this namespace only [default: of all namespaces]
    #[arg(long, env = "KAITO_NAMESPACE", value_name = "NAMESPACE", value_parser = values::not_empty)]
    pub namespace: Option<String>,
    /// Registry, with a folder in it if need be, of the public presets' images REGISTRY/kaito-PRESET:TAG
    /// [default: that of the variable PRESET_REGISTRY_NAME]
    #[arg(long, env = "KAITO_PRESET_REGISTRY", value_name = "REGISTRY")]
    pub preset_registry: Option<String>,
    /// Tag of the public presets' images; running models keep theirs until their rollout, see Rollouts
    #[arg(long, env = "KAITO_PRESET_TAG", value_name = "TAG", value_parser = values::tag, default_value = env!("CARGO_PKG_VERSION"))]
    pub preset_tag: String,
    /// Image of kaito: the server beside weights that do not lie in its image, and what copies or downloads them
    #[arg(long, env = "KAITO_SERVER_IMAGE", value_name = "IMAGE", value_parser = values::not_empty)]
    pub server_image: Option<String>,
    /// Image of vLLM for nodes with NVIDIA's GPUs
    #[arg(long, env = "KAITO_VLLM_IMAGE", value_name = "IMAGE", value_parser = values::not_empty, default_value = Options::DEFAULT_VLLM_IMAGE)]
    pub vllm_image: String,
    /// Image of vLLM for nodes with AMD's GPUs
    #[arg(long, env = "KAITO_VLLM_ROCM_IMAGE", value_name = "IMAGE", value_parser = values::not_empty, default_value = Options::DEFAULT_VLLM_ROCM_IMAGE)]
    pub vllm_rocm_image: String,
    /// Address of the hub that weights are downloaded from [default: https://huggingface.co]
    #[arg(long, env = "KAITO_HUB_ENDPOINT", value_name = "URL", value_parser = values::url)]
    pub hub_endpoint: Option<Url>,
    /// Name of a ConfigMap, in the controller's namespace, that describes further instance types
    #[arg(long, env = "KAITO_INSTANCE_TYPES", value_name = "NAME", value_parser = values::not_empty)]
    pub instance_types: Option<String>,
    /// Act without asking whether another replica leads
    #[arg(long, env = "KAITO_NO_LEADER_ELECTION")]
    pub no_leader_election: bool,
    #[command(flatten)]
    pub rollouts: RolloutArgs,
    #[command(flatten)]
    pub nodes: NodeArgs,
    #[command(flatten)]
    pub ports: PortArgs,
    #[command(flatten)]
    pub webhook: WebhookArgs,
}

/// When running models are restarted although nobody changed their workspaces: for another tag, other images, or pods that
/// this version makes differently.
#[derive(Debug, Args)]
#[command(next_help_heading = "Rollouts")]
pub struct RolloutArgs {
    /// Most models that are restarted at the same time for a change of the controller or its flags alone (a rollout)
    #[arg(long, env = "KAITO_MAX_ROLLOUTS", value_name = "N", default_value_t = NonZeroU32::new(RolloutPolicy::AT_ONCE).unwrap_or(NonZeroU32::MIN))]
    pub max_rollouts: NonZeroU32,
    /// When a rollout may begin, in UTC, like "Sat,Sun 02:00-06:00"; several by repeating the flag, or with semicolons
    /// between them [default: at any time]
    #[arg(long, env = "KAITO_MAINTENANCE_WINDOW", value_name = "WINDOW", value_delimiter = ';')]
    pub maintenance_window: Vec<Window>,
    /// How long a restarted model must have answered before the next rollout begins; before the first one, how long the
    /// controller must have led
    #[arg(long, env = "KAITO_ROLLOUT_PAUSE", value_name = "TIME", value_parser = values::duration, default_value = "60s")]
    pub rollout_pause: Duration,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Nodes")]
pub struct NodeArgs {
    /// Who makes the nodes that a workspace lacks
    #[arg(long, env = "KAITO_NODE_PROVISIONER", value_enum, default_value_t = NodeProvisioner::None)]
    pub node_provisioner: NodeProvisioner,
    /// Node class of the nodes that Karpenter makes, like EC2NodeClass.karpenter.k8s.aws/default
    #[arg(
        long,
        env = "KAITO_NODE_CLASS",
        value_name = "KIND.GROUP/NAME",
        required_if_eq("node_provisioner", "karpenter")
    )]
    pub node_class: Option<NodeClass>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NodeProvisioner {
    /// Nobody: a workspace waits until its nodes are there
    None,
    /// Karpenter, by one NodeClaim for each node
    Karpenter,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Ports")]
pub struct PortArgs {
    /// Address that all ports listen on [default: 127.0.0.1; in a container, all addresses]
    #[arg(long, env = "KAITO_HOST", value_name = "HOST")]
    pub host: Option<String>,
    /// Port of /metrics; 0 takes any that is free
    #[arg(long, env = "KAITO_METRICS_PORT", value_name = "PORT", default_value_t = 8080)]
    pub metrics_port: u16,
    /// Port of /healthz and /readyz; 0 takes any that is free
    #[arg(long, env = "KAITO_HEALTH_PORT", value_name = "PORT", default_value_t = 8081)]
    pub health_port: u16,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Admission webhook")]
pub struct WebhookArgs {
    /// Do not serve the admission webhook
    #[arg(long, env = "KAITO_NO_WEBHOOK")]
    pub no_webhook: bool,
    /// Port of the webhook
    #[arg(long, env = "KAITO_WEBHOOK_PORT", value_name = "PORT", default_value_t = 9443)]
    pub webhook_port: u16,
    /// Service through which the API server reaches the webhook; the webhook configurations have this name too
    #[arg(long, env = "KAITO_WEBHOOK_SERVICE", value_name = "NAME", value_parser = values::not_empty, default_value = "kaito-webhook")]
    pub webhook_service: String,
    /// Secret that keeps the webhook's certificates
    #[arg(long, env = "KAITO_WEBHOOK_SECRET", value_name = "NAME", value_parser = values::not_empty, default_value = "kaito-webhook")]
    pub webhook_secret: String,
}

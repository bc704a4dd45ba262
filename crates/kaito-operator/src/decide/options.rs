//! What an installation decides for all its workspaces.

use std::{fmt, str::FromStr};

use kaito_presets::{ComputeCapability, GpuVendor, InstanceTypes};

use super::rollout_policy::RolloutPolicy;
use crate::layout::Hardware;

/// What an installation decides for all its workspaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Registry, and folder in it, of the images of public presets. `None` where the installation has none.
    pub preset_registry: Option<String>,
    /// Tag of the images of public presets.
    pub preset_tag: String,
    /// The image that serves weights of another image. `None` where the installation has none.
    pub server_image: Option<String>,
    /// The image that serves models with vLLM on NVIDIA's GPUs.
    pub vllm_image: String,
    /// The same on AMD's.
    pub vllm_rocm_image: String,
    /// The address of the hub that weights are downloaded from, where it is another than the usual one.
    pub hub_endpoint: Option<String>,
    /// What provisions missing nodes.
    pub provisioner: Provisioner,
    /// The instance types that are known.
    pub instance_types: InstanceTypes,
    /// When running models may be restarted for changes of the installation alone.
    pub rollouts: RolloutPolicy,
}

impl Options {
    /// The default of `vllm_image`.
    pub const DEFAULT_VLLM_IMAGE: &str = "docker.io/vllm/vllm-openai:v0.32.0";
    /// The default of `vllm_rocm_image`. Nobody has tried whether that tag exists.
    pub const DEFAULT_VLLM_ROCM_IMAGE: &str = "docker.io/vllm/vllm-openai-rocm:v0.32.0";

    /// The image of a public preset.
    pub fn public_image(&self, preset: &str) -> Option<String> {
        let registry = self.preset_registry.as_deref()?.trim_end_matches('/');
        Some(format!("{registry}/kaito-{preset}:{}", self.preset_tag))
    }

    /// The image that serves models with vLLM on a vendor's GPUs.
    pub fn engine_image(&self, vendor: GpuVendor) -> &str {
        match vendor {
            GpuVendor::Nvidia => &self.vllm_image,
            GpuVendor::Amd => &self.vllm_rocm_image,
        }
    }

    /// Who makes the GPUs of nodes of that type, if the type is known.
    pub fn vendor(&self, instance_type: Option<&str>) -> Option<GpuVendor> {
        self.instance_types.find(instance_type?).ok().map(|known| known.gpu.vendor)
    }

    /// What the nodes of that type have, if the type is known.
    pub fn hardware(&self, instance_type: Option<&str>) -> Option<Hardware> {
        let known = self.instance_types.find(instance_type?).ok()?;
        Some(Hardware {
            gpus: known.gpus,
            gpu_memory: known.gpu.usable_memory,
            has_bf16: known.gpu.compute_capability.is_none_or(|capability| capability >= ComputeCapability::BF16),
        })
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            preset_registry: None,
            preset_tag: env!("CARGO_PKG_VERSION").to_owned(),
            server_image: None,
            vllm_image: Self::DEFAULT_VLLM_IMAGE.to_owned(),
            vllm_rocm_image: Self::DEFAULT_VLLM_ROCM_IMAGE.to_owned(),
            hub_endpoint: None,
            provisioner: Provisioner::None,
            instance_types: InstanceTypes::built_in(),
            rollouts: RolloutPolicy::default(),
        }
    }
}

/// What provisions nodes that a workspace lacks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Provisioner {
    /// Nothing: a workspace waits until somebody adds nodes.
    #[default]
    None,
    /// Karpenter, by one `NodeClaim` a node, with nodes of this class.
    Karpenter(NodeClass),
}

/// The kind and name of the object that describes a cloud's nodes to Karpenter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeClass {
    /// `karpenter.k8s.aws`
    pub group: String,
    /// `EC2NodeClass`
    pub kind: String,
    /// `default`
    pub name: String,
}

impl fmt::Display for NodeClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}/{}", self.kind, self.group, self.name)
    }
}

impl FromStr for NodeClass {
    type Err = NotANodeClass;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let not = || NotANodeClass(text.to_owned());
        let (class, name) = text.split_once('/').ok_or_else(not)?;
        let (kind, group) = class.split_once('.').ok_or_else(not)?;
        let is_name =
            |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || "-.".contains(c));
        if ![kind, group, name].into_iter().all(is_name) {
            return Err(not());
        }
        Ok(Self { group: group.to_owned(), kind: kind.to_owned(), name: name.to_owned() })
    }
}

/// Text that does not name a node class.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a node class; expected KIND.GROUP/NAME, like EC2NodeClass.karpenter.k8s.aws/default")]
pub struct NotANodeClass(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_classes_are_read_and_printed() {
        for text in ["EC2NodeClass.karpenter.k8s.aws/default", "AKSNodeClass.karpenter.azure.com/image-family-ubuntu"] {
            assert_eq!(text.parse::<NodeClass>().unwrap().to_string(), text);
        }
        for text in
            ["", "default", "EC2NodeClass/default", "EC2NodeClass.karpenter.k8s.aws", ".a/b", "A./b", "A.b/", "A.b/c d"]
        {
            let error = text.parse::<NodeClass>().unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")) && error.contains("KIND.GROUP/NAME"), "{error}");
        }
    }

    #[test]
    fn public_images_are_named_after_preset_and_tag() {
        let options = |registry: Option<&str>| Options {
            preset_registry: registry.map(str::to_owned),
            preset_tag: "0.1.0".to_owned(),
            ..Options::default()
        };
        for registry in ["registry.example/models", "registry.example/models/"] {
            assert_eq!(
                options(Some(registry)).public_image("falcon-7b").as_deref(),
                Some("registry.example/models/kaito-falcon-7b:0.1.0")
            );
        }
        assert_eq!(options(None).public_image("falcon-7b"), None);
    }
}

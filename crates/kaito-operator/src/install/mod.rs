//! `kaito install`: the manifests that a cluster needs to run `kaito controller`.
//!
//! The Helm chart is the source: `charts/render` renders it with placeholders, and here they are filled in.

use crate::{
    admission::image,
    crd,
    decide::{Provisioner, RolloutPolicy},
    instance_types, yaml,
};

/// What the installation depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstallOptions {
    /// Namespace of the controller.
    pub namespace: String,
    /// Container registry of kaito's images, like `registry.example.com/team`.
    pub registry: String,
    /// Registry of the public presets' images, where it is another one.
    pub preset_registry: Option<String>,
    /// Tag of the public presets' images, where it is not the controller's version.
    pub preset_tag: Option<String>,
    /// When running models may be restarted for changes of the installation alone.
    pub rollouts: RolloutPolicy,
    /// What provisions missing nodes.
    pub provisioner: Provisioner,
    /// The image of the runtime vllm on NVIDIA's GPUs, where it is not the one that this version was written for.
    pub vllm_image: Option<String>,
    /// The same on AMD's GPUs.
    pub vllm_rocm_image: Option<String>,
    /// A list of instance types that the table lacks, in YAML or JSON.
    pub instance_types: Option<String>,
    /// Replicas of the controller.
    pub replicas: u32,
}

impl InstallOptions {
    /// The same as in the chart's values.
    pub const DEFAULT_REPLICAS: u32 = 2;
}

/// A value that cannot stand in a manifest.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// Not a name that a namespace can have.
    #[error(
        "{0:?} cannot be a namespace: a name of 1 to 63 lower-case letters, digits and hyphens that begins and ends with a \
         letter or digit"
    )]
    Namespace(String),
    /// Not a container registry.
    #[error(
        "{0:?} is no container registry: HOST[:PORT][/PATH], like registry.example.com/team or [2001:db8::5]:5000, without \
         scheme and tag"
    )]
    Registry(String),
    /// Not a reference to an image.
    #[error("{0:?} is no image: REGISTRY/NAME:TAG, like registry.example.com/team/vllm-openai:v0.10.0")]
    Image(String),
    /// Not a tag.
    #[error("{0:?} is no tag of an image: at most 128 letters, digits, underscores, dots and hyphens, like 0.1.0")]
    Tag(String),
    /// Not a list of instance types.
    #[error("the instance types: {0}")]
    InstanceTypes(#[from] instance_types::Error),
    /// The CRD cannot be written.
    #[error(transparent)]
    Crd(#[from] crate::Error),
}

/// The maintenance window in the rendered manifests, to be replaced.
const WINDOW: &str = "            - --maintenance-window=Mon 00:00-00:01\n";
const ANY_WINDOW: &str = "Mon 00:00-00:01";

const WITHOUT_PROVISIONER: &str = include_str!("rendered/none.yaml");
const WITH_KARPENTER: &str = include_str!("rendered/karpenter.yaml");

/// All manifests, in an order in which they can be applied.
///
/// # Errors
///
/// [`InstallError`] for a value that cannot stand in one.
pub fn manifests(options: &InstallOptions) -> Result<String, InstallError> {
    let InstallOptions {
        namespace,
        registry,
        preset_registry,
        preset_tag,
        rollouts,
        provisioner,
        vllm_image,
        vllm_rocm_image,
        instance_types,
        replicas,
    } = options;
    if !is_dns_label(namespace) {
        return Err(InstallError::Namespace(namespace.clone()));
    }
    let registry = checked_registry(registry)?;
    let preset_registry = preset_registry.as_deref().map_or(Ok(registry), checked_registry)?;
    let mut images = [vllm_image, vllm_rocm_image].into_iter().flatten();
    if let Some(image) = images.find(|image| !is_image(image)) {
        return Err(InstallError::Image(image.clone()));
    }
    let rendered = match provisioner {
        Provisioner::None => WITHOUT_PROVISIONER.to_owned(),
        Provisioner::Karpenter(class) => WITH_KARPENTER.replace("KAITO.NODE/CLASS", &class.to_string()),
    };
    let rendered = rendered
        .replace("KAITO_NAMESPACE", namespace)
        .replace("KAITO_PRESET_REGISTRY", preset_registry)
        .replace("KAITO_REGISTRY", registry)
        .replace("\n  replicas: 2\n", &format!("\n  replicas: {replicas}\n"));
    let rendered = match vllm_image {
        Some(image) => rendered.replace("KAITO_VLLM_IMAGE", image),
        None => rendered.replace("            - --vllm-image=KAITO_VLLM_IMAGE\n", ""),
    };
    let rendered = match vllm_rocm_image {
        Some(image) => rendered.replace("KAITO_VLLM_ROCM_IMAGE", image),
        None => rendered.replace("            - --vllm-rocm-image=KAITO_VLLM_ROCM_IMAGE\n", ""),
    };
    if let Some(tag) = preset_tag.as_deref().filter(|tag| !is_tag(tag)) {
        return Err(InstallError::Tag(tag.to_owned()));
    }
    let rendered = match preset_tag {
        Some(tag) => rendered.replace("KAITO_PRESET_TAG", tag),
        None => rendered.replace("            - --preset-tag=KAITO_PRESET_TAG\n", ""),
    };
    let windows = rollouts.windows.iter().map(|window| WINDOW.replace(ANY_WINDOW, &window.to_string()));
    let rendered = rendered
        .replace(WINDOW, &windows.collect::<String>())
        .replace("- --max-rollouts=1\n", &format!("- --max-rollouts={}\n", rollouts.at_once))
        .replace(
            "- --rollout-pause=60s\n",
            &format!("- --rollout-pause={}s\n", rollouts.pause.as_millis().div_ceil(1000)),
        );
    let rendered = match instance_types {
        Some(text) => rendered.replace(NO_INSTANCE_TYPES, &format!("{INSTANCE_TYPES}{}", indented_list(text)?)),
        None => rendered,
    };
    // With a single replica, a disruption budget would keep its node from being drained.
    let rendered = if *replicas > 1 { rendered } else { without(&rendered, "PodDisruptionBudget") };
    // The comment at the top of the file is for this repository only.
    let (_, rendered) = rendered.split_once("---\n").unwrap_or_default();
    let crd = yaml::to_string(&crd::custom_resource_definition())?;
    Ok(format!("{}---\n{crd}---\n{rendered}", namespace_manifest(namespace)))
}

const INSTANCE_TYPES: &str = "  instance-types.yaml: |\n";
/// As the chart renders an empty list.
const NO_INSTANCE_TYPES: &str = "  instance-types.yaml: |\n    []\n";

/// A list of instance types as the ConfigMap has it.
fn indented_list(text: &str) -> Result<String, InstallError> {
    let list = yaml::to_string(&instance_types::described(text)?)?;
    Ok(list.lines().map(|line| format!("    {line}\n")).collect())
}

/// The manifests without those of one kind.
fn without(manifests: &str, kind: &str) -> String {
    let line = format!("kind: {kind}");
    let kept = manifests.split("---\n").filter(|document| !document.lines().any(|it| it == line));
    kept.collect::<Vec<_>>().join("---\n")
}

/// The namespace, with the label of the restricted Pod Security Standard, which the controller's pods follow.
fn namespace_manifest(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n  labels:\n    \
         pod-security.kubernetes.io/enforce: restricted\n"
    )
}

fn is_dns_label(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=63).contains(&name.len()) && name.chars().all(inner) && !name.starts_with('-') && !name.ends_with('-')
}

/// Whether an image can have this tag.
pub fn is_tag(text: &str) -> bool {
    image::is_tag(text)
}

fn is_image(text: &str) -> bool {
    image::read(text).is_ok()
}

fn checked_registry(registry: &str) -> Result<&str, InstallError> {
    let trimmed = registry.strip_suffix('/').unwrap_or(registry);
    let (host, path) = trimmed.split_once('/').map_or((trimmed, None), |(host, path)| (host, Some(path)));
    let plain = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || "._-/".contains(c));
    let fits = image::is_registry(host)
        && path.is_none_or(|path| plain(path) && !path.split('/').any(str::is_empty))
        && trimmed.len() <= 255;
    if fits { Ok(trimmed) } else { Err(InstallError::Registry(registry.to_owned())) }
}

#[cfg(test)]
mod tests;

//! What a cluster needs to run `kaito controller`, as plain manifests.
//!
//! The Helm chart is the source: `charts/render` renders it with placeholders, and here they are filled in.

use crate::{crd, decide::Provisioner, yaml};

/// What the installation depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstallOptions {
    /// Namespace of the controller.
    pub namespace: String,
    /// Container registry of kaito's images, like `registry.example.com/team`.
    pub registry: String,
    /// Registry of the public presets' images, where it is another one.
    pub preset_registry: Option<String>,
    /// Who makes missing nodes.
    pub provisioner: Provisioner,
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
    /// Not a place for images.
    #[error(
        "{0:?} is no container registry: HOST[:PORT][/PATH], like registry.example.com/team, without scheme and tag"
    )]
    Registry(String),
    /// The CRD cannot be written.
    #[error(transparent)]
    Crd(#[from] crate::Error),
}

const WITHOUT_PROVISIONER: &str = include_str!("rendered/none.yaml");
const WITH_KARPENTER: &str = include_str!("rendered/karpenter.yaml");

/// All manifests, in an order in which they can be applied.
///
/// # Errors
///
/// [`InstallError`] for a value that cannot stand in one.
pub fn manifests(options: &InstallOptions) -> Result<String, InstallError> {
    let InstallOptions { namespace, registry, preset_registry, provisioner } = options;
    if !is_dns_label(namespace) {
        return Err(InstallError::Namespace(namespace.clone()));
    }
    let registry = checked_registry(registry)?;
    let preset_registry = preset_registry.as_deref().map_or(Ok(registry), checked_registry)?;
    let rendered = match provisioner {
        Provisioner::None => WITHOUT_PROVISIONER.to_owned(),
        Provisioner::Karpenter(class) => WITH_KARPENTER.replace("KAITO.NODE/CLASS", &class.to_string()),
    };
    let rendered = rendered
        .replace("KAITO_NAMESPACE", namespace)
        .replace("KAITO_PRESET_REGISTRY", preset_registry)
        .replace("KAITO_REGISTRY", registry);
    // What the file says of itself is of no use outside the repository.
    let (_, rendered) = rendered.split_once("---\n").unwrap_or_default();
    let crd = yaml::to_string(&crd::custom_resource_definition())?;
    Ok(format!("{}---\n{crd}---\n{rendered}", namespace_manifest(namespace)))
}

/// The namespace; the controller's pods keep to what its labels ask for.
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

fn checked_registry(registry: &str) -> Result<&str, InstallError> {
    let trimmed = registry.strip_suffix('/').unwrap_or(registry);
    let (host, path) = trimmed.split_once('/').unwrap_or((trimmed, ""));
    let (host, port) = host.split_once(':').unwrap_or((host, "0"));
    let plain = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || "._-/".contains(c));
    let fits = !host.is_empty()
        && plain(host)
        && port.parse::<u16>().is_ok()
        && plain(path)
        && trimmed.len() <= 255
        && !trimmed.split('/').any(str::is_empty);
    if fits { Ok(trimmed) } else { Err(InstallError::Registry(registry.to_owned())) }
}

#[cfg(test)]
mod tests;

//! The `Workspace` resource: `resource`, `inference` and `status` at its top level, without a `spec`.
//!
//! Two ways to read one:
//!
//! - serde, as the API server sends it. Unknown fields are ignored, so that a controller still works when a newer release has
//!   added fields. They are not lost in the cluster, because a whole workspace is never written back: defaults and finalizers
//!   are patches, and the status is written by server-side apply.
//! - [`strict::read`], for what a person wrote: it names every unknown field with its path. The API server does the same for
//!   all but [`InferenceSpec::template`] and [`AdapterSource::volume_source`], whose schema is open; the admission webhook
//!   closes that gap.

mod inference;
mod names;
mod resource_spec;
mod runtime;
mod status;
pub mod strict;
mod tolerant;

use std::{borrow::Cow, collections::BTreeMap};

pub use inference::{AccessMode, AdapterSource, AdapterSpec, InferenceSpec, PresetOptions, PresetSpec};
use k8s_openapi::{NamespaceResourceScope, apimachinery::pkg::apis::meta::v1::ObjectMeta};
pub use names::{
    ANNOTATION_BYPASS_RESOURCE_CHECKS, ANNOTATION_DISABLE_NETWORK_POLICY, ANNOTATION_ENABLE_LB, ANNOTATION_RUNTIME,
    FINALIZER, GROUP, KIND, LABEL_INSTANCE_TYPE, LABEL_WORKSPACE, LABEL_WORKSPACE_NAMESPACE, PLURAL,
};
pub use resource_spec::{MOST_NODES, ResourceSpec};
pub use runtime::{Runtime, RuntimeChoice, UnknownRuntime};
use serde::{Deserialize, Serialize};
pub use status::{ConditionType, WorkspaceState, WorkspaceStatus};

/// A model to serve, and the nodes to serve it on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Workspace {
    /// Group and version of the manifest. The items of a list may lack it.
    #[serde(default)]
    pub api_version: ApiVersion,
    /// Always `Workspace`.
    #[serde(default)]
    pub kind: Kind,
    /// Name, namespace, labels, annotations.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// The nodes.
    pub resource: ResourceSpec,
    /// The model. Absent only from workspaces that an older release tuned a model with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inference: Option<InferenceSpec>,
    /// What the controller observed last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<WorkspaceStatus>,
}

/// Group and version. Both versions have the same fields; the API server converts by changing this one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ApiVersion {
    /// Of the first releases.
    #[serde(rename = "kaito.sh/v1alpha1")]
    V1Alpha1,
    /// The version in which workspaces are stored.
    #[default]
    #[serde(rename = "kaito.sh/v1beta1")]
    V1Beta1,
}

impl ApiVersion {
    /// Oldest first.
    pub const ALL: [Self; 2] = [Self::V1Alpha1, Self::V1Beta1];

    /// Without the group: `v1beta1`.
    pub fn version(self) -> &'static str {
        match self {
            Self::V1Alpha1 => "v1alpha1",
            Self::V1Beta1 => "v1beta1",
        }
    }
}

/// The one kind that a [`Workspace`] can have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// `Workspace`.
    #[default]
    Workspace,
}

impl Workspace {
    /// The name, or an empty string before the API server has made one from `generateName`.
    pub fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    /// The namespace, or an empty string in a manifest that leaves it to the client.
    pub fn namespace(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or_default()
    }

    /// Whether an object has this workspace as an owner, by its uid: another workspace may have had the name before.
    pub fn owns(&self, object: &ObjectMeta) -> bool {
        object.owner_references.iter().flatten().any(|owner| Some(&owner.uid) == self.metadata.uid.as_ref())
    }

    /// Whether the labels of a node claim, or of the node that came of it, name this workspace. Both have no namespace, so
    /// one label has the name, and another the namespace.
    pub fn is_on_labels_of(&self, object: &ObjectMeta) -> bool {
        let label = |key: &str| object.labels.as_ref().and_then(|labels| labels.get(key)).map(String::as_str);
        label(LABEL_WORKSPACE) == Some(self.name()) && label(LABEL_WORKSPACE_NAMESPACE) == Some(self.namespace())
    }

    /// The preset to serve, if it is not a pod template.
    pub fn preset(&self) -> Option<&PresetSpec> {
        self.inference.as_ref()?.preset.as_ref()
    }

    /// An annotation's value.
    pub fn annotation(&self, name: &str) -> Option<&str> {
        self.metadata.annotations.as_ref()?.get(name).map(String::as_str)
    }

    /// Whether insufficient hardware is to be a warning: [`ANNOTATION_BYPASS_RESOURCE_CHECKS`].
    pub fn bypasses_resource_checks(&self) -> bool {
        self.is_annotated_true(ANNOTATION_BYPASS_RESOURCE_CHECKS)
    }

    /// Whether the service is to be of type LoadBalancer: [`ANNOTATION_ENABLE_LB`].
    pub fn wants_load_balancer(&self) -> bool {
        self.is_annotated_true(ANNOTATION_ENABLE_LB)
    }

    /// Whether there is to be no network policy: [`ANNOTATION_DISABLE_NETWORK_POLICY`].
    pub fn declines_network_policy(&self) -> bool {
        self.is_annotated_true(ANNOTATION_DISABLE_NETWORK_POLICY)
    }

    /// What is to serve the model: [`ANNOTATION_RUNTIME`].
    ///
    /// # Errors
    ///
    /// [`UnknownRuntime`] where the annotation names none of those there are.
    pub fn runtime(&self) -> Result<RuntimeChoice, UnknownRuntime> {
        self.annotation(ANNOTATION_RUNTIME).map_or(Ok(RuntimeChoice::default()), str::parse)
    }

    /// The labels of everything that this workspace owns.
    pub fn owned_labels(&self) -> BTreeMap<String, String> {
        BTreeMap::from([(LABEL_WORKSPACE.to_owned(), self.name().to_owned())])
    }

    /// The documented spelling is `"True"`; any case means the same.
    fn is_annotated_true(&self, name: &str) -> bool {
        self.annotation(name).is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }
}

// By hand, since the derive of custom resources needs a `spec`.
impl kube::Resource for Workspace {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        KIND.into()
    }

    fn group((): &()) -> Cow<'_, str> {
        GROUP.into()
    }

    fn version((): &()) -> Cow<'_, str> {
        ApiVersion::default().version().into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        PLURAL.into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests;

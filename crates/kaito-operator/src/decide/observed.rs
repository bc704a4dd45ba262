//! The cluster, as far as one workspace is concerned: what a decision is made from.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, StatefulSet},
        core::v1::{Node, Pod, Service},
        networking::v1::NetworkPolicy,
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
    jiff::Timestamp,
};

use super::{
    object::{AnyObject, Object, ObjectKind},
    rollout_policy::Rollouts,
};
use crate::{karpenter::NodeClaim, reason::Reason};

/// What the cluster holds, as far as one workspace is concerned.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// Every node of the cluster.
    pub nodes: Vec<Arc<Node>>,
    /// GPUs that pods of other workspaces hold, by the name of their node.
    pub taken: BTreeMap<String, Vec<Taken>>,
    /// The workspace's node claims.
    pub claims: Claims,
    /// The workspace's services.
    pub services: Vec<Arc<Service>>,
    /// The network policy of the workspace's name.
    pub network_policy: Option<Arc<NetworkPolicy>>,
    /// The workload of a workspace without ranks.
    pub deployment: Option<Arc<Deployment>>,
    /// The workload of a workspace with ranks.
    pub stateful_set: Option<Arc<StatefulSet>>,
    /// The workspace's pods.
    pub pods: Vec<Arc<Pod>>,
    /// The last failure of each of the workspace's node claims, by the claim's name, from events: Karpenter deletes a claim for
    /// which a cloud has no machine, so the claim itself cannot tell.
    pub claim_failures: BTreeMap<String, ClaimFailure>,
    /// The ConfigMap that `inference.config` names.
    pub config: Config,
    /// The claim that `presetOptions.weightsClaim` names.
    pub weights_claim: WeightsClaim,
    /// How far the weights of pods are on their way, in words, by the pod's name.
    pub weights_progress: BTreeMap<String, String>,
    /// Why the workload's pods could not be made, where no condition of the workload says so.
    pub pod_failures: Vec<PodFailure>,
    /// Whether the API server left image volumes out when a workload with one was last tried.
    pub without_image_volumes: bool,
    /// Writes that the API server refused when they were last tried.
    pub refusals: Vec<Refusal>,
    /// Objects that applying did not change though they differ from what is wanted: a webhook of the cluster sets a field back, say.
    /// Applying again would change nothing either.
    pub in_vain: Vec<InVain>,
    /// Rollouts of other workspaces.
    pub rollouts: Rollouts,
}

impl Observed {
    /// The node that a claim became: by the claim's status, or by the node's owner.
    ///
    /// Karpenter writes the node first and the claim's status after it, and the two come by different watches.
    pub fn node_of<'a>(&'a self, claim: &'a NodeClaim) -> Option<&'a str> {
        let is_owner = |owner: &OwnerReference| {
            owner.kind == ObjectKind::NodeClaim.as_str() && Some(&owner.uid) == claim.metadata.uid.as_ref()
        };
        claim.node_name().or_else(|| {
            let node = self.nodes.iter().find(|node| node.metadata.owner_references.iter().flatten().any(is_owner))?;
            Some(name(&node.metadata))
        })
    }

    /// Whether applying `wanted` would change nothing.
    pub fn was_in_vain(&self, wanted: &Object) -> bool {
        let mut tried =
            self.in_vain.iter().filter(|tried| (tried.kind, tried.name.as_str()) == (wanted.kind(), wanted.name()));
        let current = self.current(wanted).and_then(|current| current.metadata().resource_version.as_deref());
        tried.any(|tried| Some(tried.version.as_str()) == current)
    }

    /// The object in the cluster that has the kind and name of `wanted`.
    pub fn current(&self, wanted: &Object) -> Option<&dyn AnyObject> {
        fn named<'a, K: AnyObject>(objects: &'a [Arc<K>], wanted: &Object) -> Option<&'a dyn AnyObject> {
            let found = objects.iter().find(|object| name(object.metadata()) == wanted.name())?;
            Some(found.as_ref())
        }
        match wanted {
            Object::Service(_) => named(&self.services, wanted),
            Object::NetworkPolicy(_) => self.network_policy.as_deref().map(|object| object as &dyn AnyObject),
            Object::Deployment(_) => self.deployment.as_deref().map(|object| object as &dyn AnyObject),
            Object::StatefulSet(_) => self.stateful_set.as_deref().map(|object| object as &dyn AnyObject),
            Object::NodeClaim(_) => named(self.claims.all(), wanted),
        }
    }
}

/// GPUs that a pod of another workspace holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// `namespace/name` of that workspace.
    pub workspace: String,
    /// How many.
    pub gpus: u32,
}

/// Node claims, in a cluster that may not have Karpenter.
#[derive(Debug, Clone, Default)]
pub enum Claims {
    /// The cluster does not have the kind, or the controller does not claim nodes.
    #[default]
    Absent,
    /// Those with the workspace's labels, or with one of the names that its claims would get.
    Present(Vec<Arc<NodeClaim>>),
}

impl Claims {
    /// All of them, whatever their state.
    pub fn all(&self) -> &[Arc<NodeClaim>] {
        match self {
            Self::Absent => &[],
            Self::Present(claims) => claims,
        }
    }
}

/// A ConfigMap with flags of the server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Config {
    /// The workspace names none, or it has not been read yet.
    #[default]
    NotRead,
    /// There is none of that name.
    Missing,
    /// Its data.
    Data(BTreeMap<String, String>),
}

/// A PersistentVolumeClaim for weights.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum WeightsClaim {
    /// The workspace names none, or it has not been read yet.
    #[default]
    NotRead,
    /// There is none of that name.
    Missing,
    /// Its access modes, as Kubernetes calls them.
    Modes(Vec<String>),
}

/// A failed attempt at creating a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodFailure {
    /// What the API server said.
    pub message: String,
}

/// The failure of a node claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimFailure {
    /// Karpenter's own reason.
    pub reason: String,
    /// What the cloud said.
    pub message: String,
    /// When.
    pub at: Timestamp,
}

/// A write that changed nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InVain {
    /// Kind of the object.
    pub kind: ObjectKind,
    /// Name of the object.
    pub name: String,
    /// The object's resource version then.
    pub version: String,
}

/// A write that the API server refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Kind of the object.
    pub kind: ObjectKind,
    /// Name of the object.
    pub name: String,
    /// The cause, for programs.
    pub reason: Reason,
    /// What the API server said, or, where nothing was written, what it would have done.
    pub message: String,
}

impl Refusal {
    /// An API server without the feature takes a workload, but leaves its image volumes out: its containers would start without
    /// what is in them.
    pub fn without_image_volumes(object: &Object) -> Self {
        Self {
            kind: object.kind(),
            name: object.name().to_owned(),
            reason: Reason::ImageVolumesUnsupported,
            message: format!(
                "it leaves out the image volume {}, which the workspace itself asks for, since this cluster does not support image \
                 volumes: enable the feature gate ImageVolume of Kubernetes 1.33 or later on its API server and nodes, or use a volume \
                 of another kind",
                object.image_volumes().join(", ")
            ),
        }
    }
}

/// An object's name, or nothing before it has one.
pub fn name(metadata: &ObjectMeta) -> &str {
    metadata.name.as_deref().unwrap_or_default()
}

/// An object's label.
pub fn label<'a>(metadata: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    metadata.labels.as_ref()?.get(key).map(String::as_str)
}

/// Whether someone has asked for its deletion.
pub fn is_going(metadata: &ObjectMeta) -> bool {
    metadata.deletion_timestamp.is_some()
}

/// Whether a pod's containers have ended for good: it holds nothing of its node any more.
pub fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, StatefulSet},
        core::v1::{Node, Pod, Service},
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
    jiff::Timestamp,
};

use super::{claims::NodeClaim, object::Object, rollout::Rollouts};

/// What the cluster holds, as far as one workspace is concerned.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// Every node of the cluster.
    pub nodes: Vec<Arc<Node>>,
    /// GPUs of nodes that pods of other workspaces hold, by the node's name.
    pub taken: BTreeMap<String, Vec<Taken>>,
    /// The workspace's claims of nodes.
    pub claims: Claims,
    /// The workspace's services.
    pub services: Vec<Arc<Service>>,
    /// The workload of a workspace without ranks.
    pub deployment: Option<Arc<Deployment>>,
    /// The workload of a workspace with ranks.
    pub stateful_set: Option<Arc<StatefulSet>>,
    /// The workspace's pods.
    pub pods: Vec<Arc<Pod>>,
    /// The last failure of each of the workspace's claims, by the claim's name: Karpenter deletes a claim for which a
    /// cloud has no machine, so the claim itself cannot tell.
    pub claim_failures: BTreeMap<String, ClaimFailure>,
    /// The ConfigMap that `inference.config` names.
    pub config: Config,
    /// Why the workload's pods could not be made, where no condition of the workload says so.
    pub pod_failures: Vec<PodFailure>,
    /// Writes that the API server refused when they were last tried.
    pub refusals: Vec<Refusal>,
    /// Which models are being restarted for what the installation alone changes.
    pub rollouts: Rollouts,
}

impl Observed {
    /// The node that a claim became: by the claim's status, or by the node's owner.
    ///
    /// Karpenter writes the node first and the claim's status after it, and the two come to us by watches of their own.
    pub fn node_of<'a>(&'a self, claim: &'a NodeClaim) -> Option<&'a str> {
        let is_owner =
            |owner: &OwnerReference| owner.kind == "NodeClaim" && Some(&owner.uid) == claim.metadata.uid.as_ref();
        claim.node_name().or_else(|| {
            let node = self.nodes.iter().find(|node| node.metadata.owner_references.iter().flatten().any(is_owner))?;
            Some(name(&node.metadata))
        })
    }

    /// The version of the object in the cluster that has the kind and name of `wanted`.
    pub fn version(&self, wanted: &Object) -> Option<&str> {
        let metadata = match wanted {
            Object::Service(_) => {
                let service = self.services.iter().find(|service| name(&service.metadata) == wanted.name())?;
                &service.metadata
            }
            Object::Deployment(_) => &self.deployment.as_ref()?.metadata,
            Object::StatefulSet(_) => &self.stateful_set.as_ref()?.metadata,
            Object::NodeClaim(_) => {
                let claim = self.claims.all().iter().find(|claim| name(&claim.metadata) == wanted.name())?;
                &claim.metadata
            }
        };
        metadata.resource_version.as_deref()
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

/// Claims of nodes, in a cluster that may not know them.
#[derive(Debug, Clone, Default)]
pub enum Claims {
    /// The cluster does not have the kind, or nobody asked for it.
    #[default]
    Absent,
    /// Those that bear the workspace's labels or one of the names that its claims would get.
    Present(Vec<Arc<NodeClaim>>),
}

impl Claims {
    /// Those of them, whatever their state.
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
    /// The workspace names none, or nobody has looked yet.
    #[default]
    NotRead,
    /// There is none of that name.
    Missing,
    /// Its data.
    Data(BTreeMap<String, String>),
}

/// A failed attempt at making a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodFailure {
    /// What the API server said.
    pub message: String,
}

/// A claim of a node that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimFailure {
    /// Names the cause, in Karpenter's words.
    pub reason: String,
    /// What the cloud said.
    pub message: String,
    /// When.
    pub at: Timestamp,
}

/// A write that the API server refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Kind of the object.
    pub kind: &'static str,
    /// Name of the object.
    pub name: String,
    /// Names the cause, for programs.
    pub reason: &'static str,
    /// What the API server said, or what it would have done.
    pub message: String,
}

impl Refusal {
    /// The cause where the API server names no other.
    pub const APPLY: &str = "ApplyRefused";

    /// Of an API server that takes a workload, but leaves its image volumes out: the servers would start without weights.
    pub fn without_image_volumes(object: &Object) -> Self {
        Self {
            kind: object.kind(),
            name: object.name().to_owned(),
            reason: "ImageVolumesUnsupported",
            message: "it leaves out the image volume with the weights, for this cluster does not support image volumes: enable \
                      the feature gate ImageVolume of Kubernetes 1.33 or later on its API server and nodes, or use an image \
                      with server and weights in presetOptions.image and the runtime kaito"
                .to_owned(),
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

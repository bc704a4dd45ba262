//! `karpenter.sh/v1`'s NodeClaim, as far as it is used here: a request for one node, which Karpenter fulfils.

use std::{borrow::Cow, collections::BTreeMap};

use k8s_openapi::{
    ClusterResourceScope,
    api::core::v1::Taint,
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{Condition, ObjectMeta},
    },
};
use serde::{Deserialize, Serialize};

use crate::workspace::Workspace;

/// A request for one node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeClaim {
    /// Name and labels. It has no namespace.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// The node that is wanted. Karpenter forbids changes to it.
    #[serde(default)]
    pub spec: NodeClaimSpec,
    /// How far Karpenter has come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<NodeClaimStatus>,
}

/// The node that is wanted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeClaimSpec {
    /// What it must be.
    #[serde(default)]
    pub requirements: Vec<Requirement>,
    /// What it must have.
    #[serde(default)]
    pub resources: Resources,
    /// Taints of the node, which keep other pods off it.
    #[serde(default)]
    pub taints: Vec<Taint>,
    /// The cloud's description of it.
    #[serde(default)]
    pub node_class_ref: NodeClassRef,
}

/// A requirement on a label of the node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requirement {
    /// The label.
    pub key: String,
    /// `In` in the claims that are made here.
    pub operator: String,
    /// Its values.
    #[serde(default)]
    pub values: Vec<String>,
}

/// What a node must have.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Resources {
    /// At least this much of each resource.
    #[serde(default)]
    pub requests: BTreeMap<String, Quantity>,
}

/// Names a node class.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeClassRef {
    /// Its API group.
    #[serde(default)]
    pub group: String,
    /// Its kind.
    #[serde(default)]
    pub kind: String,
    /// Its name.
    #[serde(default)]
    pub name: String,
}

/// How far Karpenter has come with a claim.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeClaimStatus {
    /// The node, once there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// `Launched`, `Registered`, `Initialized`, `Ready`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conditions: Option<Vec<Condition>>,
}

impl kube::Resource for NodeClaim {
    type DynamicType = ();
    type Scope = ClusterResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "NodeClaim".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "karpenter.sh".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "nodeclaims".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl NodeClaim {
    /// The node that it became, as far as its status says so. The node may be there before: see
    /// [`Observed::node_of`](crate::decide::Observed::node_of).
    pub fn node_name(&self) -> Option<&str> {
        self.status.as_ref()?.node_name.as_deref()
    }

    fn condition(&self, type_: &str) -> Option<&Condition> {
        self.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == type_)
    }

    /// Whether it became a ready node.
    pub fn is_ready(&self) -> bool {
        self.condition("Ready").is_some_and(|ready| ready.status == "True")
    }

    /// Whether it is one of the workspace's own.
    pub fn belongs_to(&self, workspace: &Workspace) -> bool {
        workspace.is_on_labels_of(&self.metadata)
    }

    /// Why Karpenter cannot fulfil it, as far as it says so.
    pub fn failure(&self) -> Option<&Condition> {
        self.condition("Launched")
            .filter(|launched| launched.status != "True")
            // These are its reasons before the first attempt.
            .filter(|launched| !matches!(launched.reason.as_str(), "" | "AwaitingReconciliation" | "Unknown"))
    }
    /// How far Karpenter has come, in words.
    pub fn stage(&self) -> &'static str {
        let is_true = |type_| self.condition(type_).is_some_and(|condition| condition.status == "True");
        match (is_true("Launched"), is_true("Registered"), is_true("Initialized")) {
            (false, _, _) => "being launched",
            (true, false, _) => "launched, not yet registered as a node",
            (true, true, false) => "registered, not yet initialized",
            (true, true, true) => "initialized, not yet ready",
        }
    }
}

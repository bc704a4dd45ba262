//! `status`: what the controller observed last.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde::{Deserialize, Deserializer, Serialize};

use super::tolerant;
use crate::named::named;

named! {
    /// Types of a workspace's conditions.
    pub enum ConditionType {
        /// Whether the nodes are there.
        ResourceReady,
        /// Whether Karpenter has fulfilled the node claims; only where node claims are made.
        NodeClaimReady,
        /// Whether the model answers.
        InferenceReady,
        /// Whether the server applies the adapters as the workspace says; only where there are any.
        AdaptersReady,
        /// Whether all of the ConfigMap that `inference.config` names has an effect; only where it names one.
        ConfigApplied,
        /// Whether the pods are as this controller makes them; only while they are not.
        UpToDate,
        /// Sums up the others.
        WorkspaceReady,
    }
}

impl ConditionType {
    /// Whether it counts in WorkspaceReady: the other types do not say whether the model answers.
    pub fn is_about_readiness(self) -> bool {
        !matches!(self, Self::AdaptersReady | Self::ConfigApplied | Self::UpToDate)
    }
}

/// What the controller observed last.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkspaceStatus {
    /// Names of the nodes in use.
    #[serde(default, deserialize_with = "tolerant::null", skip_serializing_if = "Vec::is_empty")]
    pub worker_nodes: Vec<String>,
    /// At most one of each type.
    #[serde(default, deserialize_with = "tolerant::null", skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// The conditions in one word.
    #[serde(default, deserialize_with = "known_state", skip_serializing_if = "Option::is_none")]
    pub state: Option<WorkspaceState>,
    /// How many nodes the model needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_node_count: Option<i32>,
}

impl WorkspaceStatus {
    /// The condition of a type.
    pub fn condition(&self, type_: ConditionType) -> Option<&Condition> {
        self.conditions.iter().find(|condition| condition.type_ == type_.as_str())
    }
}

/// The conditions of a workspace in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum WorkspaceState {
    /// Something is not ready yet, and nothing fails.
    Pending,
    /// The model answers.
    Ready,
    /// Something fails; the conditions say what.
    NotReady,
}

/// Other releases have further states. They are ignored, and the next reconcile overwrites them.
fn known_state<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<WorkspaceState>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum State {
        Known(WorkspaceState),
        Other(serde::de::IgnoredAny),
    }
    Ok(match Option::<State>::deserialize(deserializer)? {
        Some(State::Known(state)) => Some(state),
        Some(State::Other(_)) | None => None,
    })
}

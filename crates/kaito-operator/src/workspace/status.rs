use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde::{Deserialize, Deserializer, Serialize};

use super::tolerant;

/// Type of the condition that says whether the nodes are there.
pub const RESOURCE_READY: &str = "ResourceReady";
/// Type of the condition that says whether the claims of nodes are fulfilled; only where claims are made.
pub const NODE_CLAIM_READY: &str = "NodeClaimReady";
/// Type of the condition that says whether the model answers.
pub const INFERENCE_READY: &str = "InferenceReady";
/// Type of the condition that sums up the others.
pub const WORKSPACE_READY: &str = "WorkspaceReady";

/// What the controller observed last.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkspaceStatus {
    /// Names of the nodes in use.
    #[serde(default, deserialize_with = "tolerant::null", skip_serializing_if = "Vec::is_empty")]
    pub worker_nodes: Vec<String>,
    /// One of a type.
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
    pub fn condition(&self, type_: &str) -> Option<&Condition> {
        self.conditions.iter().find(|condition| condition.type_ == type_)
    }
}

/// The conditions of a workspace in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum WorkspaceState {
    /// Something is still on its way.
    Pending,
    /// The model answers.
    Ready,
    /// Something fails; the conditions say what.
    NotReady,
}

/// Other releases know states of work that is not done here. The next reconcile overwrites them.
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

//! Workspaces that cannot be read: a field has the wrong type. The API server stores them where the schema is open
//! (`inference.template`) and the admission webhook did not check.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, Time},
    jiff::Timestamp,
};

use super::{
    decision::{Action, Notice},
    status::truncated,
};
use crate::{
    reason::Reason,
    workspace::{ConditionType, WorkspaceState, WorkspaceStatus, strict::ReadError},
};

/// The status of a workspace that cannot be read, and the event for it.
pub fn unreadable(metadata: &ObjectMeta, error: &ReadError, now: Timestamp) -> (WorkspaceStatus, Notice) {
    let (type_, reason) = (ConditionType::WorkspaceReady, Reason::ManifestUnreadable);
    let message = truncated(&format!(
        "{error}. Nothing is done for the workspace until that is corrected; its pods are left as they are"
    ));
    let status = WorkspaceStatus {
        conditions: vec![Condition {
            type_: type_.to_string(),
            status: "False".to_owned(),
            reason: reason.to_string(),
            message: message.clone(),
            observed_generation: metadata.generation,
            last_transition_time: Time(now),
        }],
        state: Some(WorkspaceState::NotReady),
        ..WorkspaceStatus::default()
    };
    let notice = Notice { is_warning: true, reason, action: Action::Condition(type_), message };
    (status, notice)
}

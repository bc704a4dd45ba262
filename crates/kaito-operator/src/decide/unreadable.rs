//! Workspaces that hold what no workspace can have. The API server takes them where the schema is open and no webhook looks.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, Time},
    jiff::Timestamp,
};

use super::{Notice, status::truncated};
use crate::workspace::{WORKSPACE_READY, WorkspaceState, WorkspaceStatus, strict::ReadError};

/// What is said of a workspace that cannot be read.
pub fn unreadable(metadata: &ObjectMeta, error: &ReadError, now: Timestamp) -> (WorkspaceStatus, Notice) {
    let reason = "ManifestUnreadable";
    let message = truncated(&format!(
        "{error}. Nothing is done for the workspace before that is corrected; what it runs is left as it is"
    ));
    let status = WorkspaceStatus {
        conditions: vec![Condition {
            type_: WORKSPACE_READY.to_owned(),
            status: "False".to_owned(),
            reason: reason.to_owned(),
            message: message.clone(),
            observed_generation: metadata.generation,
            last_transition_time: Time(now),
        }],
        state: Some(WorkspaceState::NotReady),
        ..WorkspaceStatus::default()
    };
    let notice = Notice { is_warning: true, reason: reason.to_owned(), action: WORKSPACE_READY.to_owned(), message };
    (status, notice)
}

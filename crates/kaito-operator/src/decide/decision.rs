//! What a decision consists of.

use std::{fmt, time::Duration};

use super::{
    object::{Change, Object, ObjectKind},
    observed::is_going,
    replacement::Replaced,
};
use crate::{
    reason::Reason,
    workspace::{ConditionType, Workspace, WorkspaceStatus},
};

/// What is to be done, in this order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Decision {
    /// The workspace's finalizers, if they are to change.
    pub finalizers: Option<Vec<String>>,
    /// All objects that the workspace is to own.
    pub objects: Vec<Object>,
    /// Those of `objects`, by index, that must be written, and why.
    pub writes: Vec<(usize, Change)>,
    /// What is to be deleted: kind and name.
    pub deletes: Vec<(ObjectKind, String)>,
    /// Pods to be deleted, so that others take their places.
    pub replaced: Vec<Replaced>,
    /// The status, if it is to change.
    pub status: Option<WorkspaceStatus>,
    /// Events about the writes and deletions, to be sent once they are done.
    pub deeds: Vec<Notice>,
    /// Events about changes of the status.
    pub notices: Vec<Notice>,
    /// When to reconcile again though nothing happens.
    pub requeue: Option<Duration>,
    /// Whether this starts the rollout of a running model. The caller must then decide again while no other rollout can start.
    pub starts_rollout: bool,
}

impl Decision {
    /// Whether nothing is to be written.
    pub fn is_empty(&self) -> bool {
        self.finalizers.is_none()
            && self.writes.is_empty()
            && self.deletes.is_empty()
            && self.replaced.is_empty()
            && self.status.is_none()
    }

    /// Whether this lets a workspace go that is being deleted.
    pub fn releases(&self, workspace: &Workspace) -> bool {
        is_going(&workspace.metadata) && self.finalizers.is_some()
    }
}

/// An event of the workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Whether someone should look: the event is of type Warning.
    pub is_warning: bool,
    /// What happened, for programs.
    pub reason: Reason,
    /// What was done, or which condition changed.
    pub action: Action,
    /// What happened, for people.
    pub message: String,
}

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Objects were applied.
    Apply,
    /// The workspace is being deleted.
    Delete,
    /// A condition changed.
    Condition(ConditionType),
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Apply => f.write_str("Apply"),
            Self::Delete => f.write_str("Delete"),
            Self::Condition(type_) => type_.fmt(f),
        }
    }
}

//! One condition of the status, and what follows from the condition of that type before it.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

use super::super::decision::{Action, Notice};
use crate::{
    reason::{Problem, Reason},
    workspace::{ConditionType, Workspace},
};

/// A condition, before it is compared with the last one of its type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub type_: ConditionType,
    pub is_true: bool,
    /// Whether something is wrong, rather than not ready yet.
    pub is_failure: bool,
    pub reason: Reason,
    pub message: String,
}

impl Verdict {
    pub fn good(type_: ConditionType, reason: Reason, message: String) -> Self {
        Self { type_, is_true: true, is_failure: false, reason, message }
    }

    pub fn waiting(type_: ConditionType, reason: Reason, message: String) -> Self {
        Self { type_, is_true: false, is_failure: false, reason, message }
    }

    pub fn failing(type_: ConditionType, reason: Reason, message: String) -> Self {
        Self { type_, is_true: false, is_failure: true, reason, message }
    }

    /// That of a problem: waiting or failing.
    pub fn of_problem(type_: ConditionType, is_failure: bool, problem: &Problem) -> Self {
        Self { type_, is_true: false, is_failure, reason: problem.reason, message: problem.message.clone() }
    }
}

/// The conditions that a workspace has, and the time, by which verdicts become conditions and events.
#[derive(Debug, Clone, Copy)]
pub struct History<'a> {
    pub workspace: &'a Workspace,
    pub now: Timestamp,
}

impl History<'_> {
    fn previous(&self, type_: ConditionType) -> Option<&Condition> {
        self.workspace.status.as_ref()?.condition(type_)
    }

    /// Since when the condition has the verdict's status.
    pub fn transition(&self, verdict: &Verdict) -> Time {
        let status = status_of(verdict.is_true);
        match self.previous(verdict.type_).filter(|previous| previous.status == status) {
            Some(previous) => previous.last_transition_time.clone(),
            // The API server keeps no fractions.
            None => Time(Timestamp::from_second(self.now.as_second()).unwrap_or(self.now)),
        }
    }

    pub fn condition(&self, verdict: &Verdict) -> Condition {
        Condition {
            type_: verdict.type_.to_string(),
            status: status_of(verdict.is_true).to_owned(),
            reason: verdict.reason.to_string(),
            message: truncated(&verdict.message),
            observed_generation: self.workspace.metadata.generation,
            last_transition_time: self.transition(verdict),
        }
    }

    /// The event, if status or reason changed.
    pub fn notice(&self, verdict: &Verdict) -> Option<Notice> {
        use ConditionType::{AdaptersReady, ConfigApplied, WorkspaceReady};
        // Until all is ready, the sum has the reason of a condition that has an event of its own.
        if verdict.type_ == WorkspaceReady && !verdict.is_true {
            return None;
        }
        let status = status_of(verdict.is_true);
        let is_new = self
            .previous(verdict.type_)
            .is_none_or(|previous| previous.status != status || previous.reason != verdict.reason.as_str());
        is_new.then(|| Notice {
            is_warning: verdict.is_failure
                || (matches!(verdict.type_, AdaptersReady | ConfigApplied) && !verdict.is_true),
            reason: verdict.reason,
            action: Action::Condition(verdict.type_),
            message: verdict.message.clone(),
        })
    }
}

/// Longest message: the API server takes a little more in an event's note, and conditions have the same text.
const LONGEST_MESSAGE: usize = 1000;

/// A message that is cut if it is too long, and then ends with `...`.
pub fn truncated(message: &str) -> String {
    if message.chars().count() <= LONGEST_MESSAGE {
        return message.to_owned();
    }
    message.chars().take(LONGEST_MESSAGE - 3).chain("...".chars()).collect()
}

fn status_of(is_true: bool) -> &'static str {
    if is_true { "True" } else { "False" }
}

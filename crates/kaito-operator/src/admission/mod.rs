//! Which workspaces are admitted: pure rules, for the admission webhook and for `kaito validate`.
//!
//! What the controller could not carry out is refused here, so that its author sees the error at once. Each message has the
//! path of the field, the numbers, and what would be accepted. Where the Kaito project refuses the same, the message begins
//! like that project's.

mod adapters;
mod hardware;
pub(crate) mod image;
mod inference;
mod metadata;
mod names;
mod resource;
mod syntax;
mod template;

use std::fmt;

use kaito_presets::InstanceTypes;
use serde::Serialize;

use crate::workspace::Workspace;

/// What the rules say about a workspace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Why the workspace is refused; empty where it is admitted.
    pub errors: Vec<FieldError>,
    /// Warnings, each with the path of the field; they do not refuse it.
    pub warnings: Vec<String>,
}

/// One reason to refuse a workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FieldError {
    /// The field: `inference.adapters[0].source.name`; empty for the whole.
    pub path: String,
    /// What is wrong with it, and what would be accepted.
    pub message: String,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

impl Verdict {
    /// Whether the workspace is admitted.
    pub fn is_allowed(&self) -> bool {
        self.errors.is_empty()
    }

    fn refuse(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.errors.push(FieldError { path: path.into(), message: message.into() });
    }

    fn warn(&mut self, path: impl fmt::Display, message: impl fmt::Display) {
        self.warnings.push(format!("{path}: {message}"));
    }
}

/// Whether this workspace may be created.
pub fn validate_create(workspace: &Workspace, instance_types: &InstanceTypes) -> Verdict {
    let mut verdict = Verdict::default();
    metadata::check_name(workspace, &mut verdict);
    metadata::check_annotations(workspace, &mut verdict);
    resource::check(&workspace.resource, &mut verdict);
    inference::check(workspace, hardware::instance_type(workspace, instance_types), &mut verdict);
    hardware::check(workspace, instance_types, &mut verdict);
    verdict
}

/// Whether the workspace `old` may become `new`.
///
/// Only changed fields are checked: a workspace that is older than a rule can still be updated, and its finalizer removed.
pub fn validate_update(old: &Workspace, new: &Workspace) -> Verdict {
    let mut verdict = Verdict::default();
    if old.metadata.annotations != new.metadata.annotations {
        metadata::check_annotations(new, &mut verdict);
    }
    resource::check_update(&old.resource, &new.resource, &mut verdict);
    inference::check_update(old, new, &mut verdict);
    let adapters = |workspace: &Workspace| workspace.inference.clone().map(|inference| inference.adapters);
    if old.runtime() != new.runtime() || adapters(old) != adapters(new) {
        inference::check_runtime(new, None, &mut verdict);
    }
    verdict
}

/// The workspace with the defaults that the schema cannot give: each adapter at full strength.
#[must_use]
pub fn defaults(workspace: &Workspace) -> Workspace {
    let mut workspace = workspace.clone();
    for adapter in workspace.inference.iter_mut().flat_map(|inference| &mut inference.adapters) {
        adapter.strength.get_or_insert_with(|| "1.0".to_owned());
    }
    workspace
}

/// `field is immutable` and the values; it begins like the Kaito project's message.
fn immutable(old: impl fmt::Display, new: impl fmt::Display) -> String {
    format!("field is immutable: it is {old} and cannot become {new}; {ANEW}")
}

/// What to do instead of changing an immutable field.
const ANEW: &str = "delete the workspace and create it anew";

/// `"a"`, or `nothing` for a field that is not set.
fn quoted(value: Option<&str>) -> String {
    value.map_or_else(|| "nothing".to_owned(), |value| format!("{value:?}"))
}

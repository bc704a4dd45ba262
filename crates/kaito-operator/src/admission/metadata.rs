use super::{Verdict, syntax};
use crate::workspace::{ANNOTATION_BYPASS_RESOURCE_CHECKS, ANNOTATION_ENABLE_LB, ANNOTATION_RUNTIME, Workspace};

/// Longest name: a label on the ranks' pods adds a hyphen and ten characters to it.
const LONGEST: usize = 52;
/// What the API server adds to a `generateName`.
const GENERATED: usize = 5;

/// A workspace's name is the name of its Service.
pub fn check_name(workspace: &Workspace, verdict: &mut Verdict) {
    let begins = |name: &str| name.starts_with(|c: char| c.is_ascii_lowercase());
    let what = format!(
        "must be the name of a Service: at most {LONGEST} lower-case letters, digits and hyphens, beginning with a letter and \
         ending with a letter or digit"
    );
    let name = workspace.name();
    let prefix = workspace.metadata.generate_name.as_deref().unwrap_or_default();
    if name.is_empty() && prefix.is_empty() {
        verdict.refuse("metadata.name", format!("is missing; it {what}"));
    } else if name.is_empty() {
        let example = format!("{prefix}{}", "x".repeat(GENERATED));
        if !syntax::is_dns_label(&example, LONGEST) || !begins(prefix) {
            verdict.refuse(
                "metadata.generateName",
                format!("is {prefix:?}, but with the {GENERATED} characters that are added to it {what}"),
            );
        }
    } else if name.len() > LONGEST {
        let length = name.len();
        verdict.refuse("metadata.name", format!("is {name:?}, of {length} characters, but {what}"));
    } else if !syntax::is_dns_label(name, LONGEST) || !begins(name) {
        verdict.refuse("metadata.name", format!("is {name:?}, but {what}"));
    }
}

/// The annotations that are ours.
const KNOWN: [&str; 3] = [ANNOTATION_BYPASS_RESOURCE_CHECKS, ANNOTATION_ENABLE_LB, ANNOTATION_RUNTIME];

pub fn check_annotations(workspace: &Workspace, verdict: &mut Verdict) {
    if let Err(unknown) = workspace.runtime() {
        verdict.refuse(path(ANNOTATION_RUNTIME), unknown.to_string());
    }
    for name in [ANNOTATION_BYPASS_RESOURCE_CHECKS, ANNOTATION_ENABLE_LB] {
        if let Some(value) = workspace.annotation(name)
            && !["true", "false"].iter().any(|known| value.eq_ignore_ascii_case(known))
        {
            verdict.warn(path(name), format!("is {value:?}, which means no; \"True\" means yes"));
        }
    }
    for name in workspace.metadata.annotations.iter().flatten().map(|(name, _)| name.as_str()) {
        let misspelt = KNOWN.iter().find(|known| **known != name && bare(known) == bare(name));
        if let Some(meant) = misspelt {
            verdict.warn(path(name), format!("nothing reads this annotation; {meant} may be meant"));
        }
    }
}

/// Slips in writing an annotation: case, and hyphens.
fn bare(name: &str) -> String {
    name.chars().filter(|c| !matches!(c, '-' | '_')).flat_map(char::to_lowercase).collect()
}

fn path(annotation: &str) -> String {
    format!("metadata.annotations[{annotation}]")
}

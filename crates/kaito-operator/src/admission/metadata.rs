use super::{Verdict, syntax};
use crate::workspace::{
    ANNOTATION_BYPASS_RESOURCE_CHECKS, ANNOTATION_DISABLE_NETWORK_POLICY, ANNOTATION_ENABLE_LB, ANNOTATION_RUNTIME,
    Workspace,
};

/// Longest name: a label that Kubernetes puts on the ranks' pods adds a hyphen and ten characters to it.
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

/// The annotations that have an effect.
const KNOWN: [&str; 4] =
    [ANNOTATION_BYPASS_RESOURCE_CHECKS, ANNOTATION_DISABLE_NETWORK_POLICY, ANNOTATION_ENABLE_LB, ANNOTATION_RUNTIME];

/// Prefix of our annotations and labels, which the Kaito project has too.
const PREFIX: &str = "kaito.sh/";

/// Annotations that have an effect in release 0.12 of the Kaito project and none here, and what to use instead.
const UPSTREAM: &[(&str, &str)] = &[
    ("kaito.sh/disable-benchmark", "there is no benchmark after loading to be disabled"),
    (
        "kaito.sh/model-mirror-storage-class",
        "no volume is made for weights: presetOptions.weightsClaim names a claim of yours that keeps those which are downloaded",
    ),
    (
        "kaito.sh/model-streaming",
        "weights are not streamed: the image has them, or presetOptions.weightsImage names one that does",
    ),
    (
        "kaito.sh/node-class-name",
        "the installation decides about the node class of all NodeClaims, by karpenter.nodeClass of its chart",
    ),
    ("kaito.sh/node-image-family", "the node class of the installation decides about the image of nodes"),
    (
        "kaito.sh/performance-mode",
        "give flags of vLLM by inference.config, like max-num-seqs and max-num-batched-tokens",
    ),
    ("kaito.sh/streaming-service-account", "weights are not streamed, and the pods need no ServiceAccount for it"),
    (
        "kaito.sh/upgrade-start-time",
        "the installation decides when pods change, by rollouts of its chart, and the condition UpToDate says what is due",
    ),
    (
        "kaito.sh/use-local-weights",
        "weights are not taken from a folder of the node: the image has them, or presetOptions.weightsImage names one that does",
    ),
];

/// The same for labels of a workspace.
const UPSTREAM_LABELS: &[(&str, &str)] = &[
    ("kaito.sh/inference-role", "prefill and decoding are not served by different workspaces"),
    (
        "kaito.sh/upgrade-to-version",
        "the installation decides when pods change, by rollouts of its chart, and the condition UpToDate says what is due",
    ),
];

pub fn check_annotations(workspace: &Workspace, verdict: &mut Verdict) {
    if let Err(unknown) = workspace.runtime() {
        verdict.refuse(path(ANNOTATION_RUNTIME), unknown.to_string());
    }
    for name in [ANNOTATION_BYPASS_RESOURCE_CHECKS, ANNOTATION_DISABLE_NETWORK_POLICY, ANNOTATION_ENABLE_LB] {
        if let Some(value) = workspace.annotation(name)
            && !["true", "false"].iter().any(|known| value.eq_ignore_ascii_case(known))
        {
            verdict.warn(path(name), format!("is {value:?}, which means no; \"True\" means yes"));
        }
    }
    for name in workspace.metadata.annotations.iter().flatten().map(|(name, _)| name.as_str()) {
        let misspelt = KNOWN.iter().find(|known| **known != name && bare(known) == bare(name));
        let upstream = UPSTREAM.iter().find(|(known, _)| bare(known) == bare(name));
        if let Some(meant) = misspelt {
            verdict.warn(path(name), format!("nothing reads this annotation; {meant} may be meant"));
        } else if let Some((_, instead)) = upstream {
            verdict.warn(path(name), format!("has no effect here: {instead}"));
        } else if name.starts_with(PREFIX) && !KNOWN.contains(&name) {
            verdict.warn(path(name), format!("nothing reads this annotation; there are {}", KNOWN.join(", ")));
        }
    }
    for name in workspace.metadata.labels.iter().flatten().map(|(name, _)| name.as_str()) {
        if let Some((_, instead)) = UPSTREAM_LABELS.iter().find(|(known, _)| *known == name) {
            verdict.warn(format!("metadata.labels[{name}]"), format!("has no effect here: {instead}"));
        }
    }
}

/// The annotation without case and hyphens, by which misspelt ones are found.
fn bare(name: &str) -> String {
    name.chars().filter(|c| !matches!(c, '-' | '_')).flat_map(char::to_lowercase).collect()
}

fn path(annotation: &str) -> String {
    format!("metadata.annotations[{annotation}]")
}

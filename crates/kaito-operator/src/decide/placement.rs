//! Where the pods of a workspace may go: node affinity, anti-affinity, tolerations.

use k8s_openapi::{
    api::core::v1::{
        Affinity, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodAffinityTerm,
        PodAntiAffinity, PodTemplateSpec, PreferredSchedulingTerm, Toleration,
    },
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};

use kaito_presets::GpuVendor;

use super::taints::gpu_tolerations;
use crate::{
    layout::Layout,
    workspace::{InferenceSpec, LABEL_INSTANCE_TYPE, Workspace},
};

const HOSTNAME: &str = "kubernetes.io/hostname";

/// Lets pods run on any node that the workspace selects, one pod on each.
///
/// The chosen nodes are not named: the choice changes when a node is unready for a moment, and every change of a pod template
/// restarts the model.
pub fn spread(template: &mut PodTemplateSpec, workspace: &Workspace, layout: &Layout) {
    let Some(spec) = &mut template.spec else { return };
    let affinity = spec.affinity.get_or_insert_default();
    let required = required_nodes(workspace);
    let preferred = preferred_nodes(workspace);
    let node_affinity = affinity.node_affinity.get_or_insert_default();
    if !required.is_empty() {
        let terms = &mut node_affinity
            .required_during_scheduling_ignored_during_execution
            .get_or_insert_with(NodeSelector::default)
            .node_selector_terms;
        *terms = both(terms, &required);
    }
    if let Some(preferred) = preferred {
        node_affinity.preferred_during_scheduling_ignored_during_execution.get_or_insert_default().push(preferred);
    }
    if *node_affinity == NodeAffinity::default() {
        affinity.node_affinity = None;
    }
    if layout.pods > 1 {
        let anti_affinity = affinity.pod_anti_affinity.get_or_insert_with(PodAntiAffinity::default);
        anti_affinity.required_during_scheduling_ignored_during_execution.get_or_insert_default().push(
            PodAffinityTerm {
                label_selector: Some(LabelSelector {
                    match_labels: Some(workspace.owned_labels()),
                    match_expressions: None,
                }),
                topology_key: HOSTNAME.to_owned(),
                ..PodAffinityTerm::default()
            },
        );
    }
    if *affinity == Affinity::default() {
        spec.affinity = None;
    }
    tolerate_gpu_nodes(spec.tolerations.get_or_insert_default(), layout.vendor);
}

fn tolerate_gpu_nodes(tolerations: &mut Vec<Toleration>, vendor: GpuVendor) {
    for toleration in gpu_tolerations(vendor) {
        if !tolerations.contains(&toleration) {
            tolerations.push(toleration);
        }
    }
}

/// What the pods of a workspace would tolerate, where no pod template can be made.
pub fn tolerations(inference: Option<&InferenceSpec>, vendor: GpuVendor) -> Vec<Toleration> {
    let template = inference.and_then(|inference| inference.template.as_ref()?.spec.as_ref());
    let mut tolerations = template.and_then(|spec| spec.tolerations.clone()).unwrap_or_default();
    tolerate_gpu_nodes(&mut tolerations, vendor);
    tolerations
}

/// Node selector terms that hold where one of `ours` and one of `theirs` holds. Terms are alternatives, and all requirements
/// within a term must hold, so this is every combination.
fn both(ours: &[NodeSelectorTerm], theirs: &[NodeSelectorTerm]) -> Vec<NodeSelectorTerm> {
    if ours.is_empty() {
        return theirs.to_vec();
    }
    let join = |a: &NodeSelectorTerm, b: &NodeSelectorTerm| {
        let mut joined = a.clone();
        joined.match_expressions.get_or_insert_default().extend(b.match_expressions.iter().flatten().cloned());
        joined
    };
    ours.iter().flat_map(|a| theirs.iter().map(move |b| join(a, b))).collect()
}

fn required_nodes(workspace: &Workspace) -> Vec<NodeSelectorTerm> {
    let requirement = |key: &str, operator: &str, values: Option<Vec<String>>| NodeSelectorRequirement {
        key: key.to_owned(),
        operator: operator.to_owned(),
        values,
    };
    let selector = &workspace.resource.label_selector;
    let mut labels: Vec<_> = selector
        .match_labels
        .iter()
        .flatten()
        .map(|(key, value)| requirement(key, "In", Some(vec![value.clone()])))
        .collect();
    labels.extend(
        selector.match_expressions.iter().flatten().map(|term| {
            requirement(&term.key, &term.operator, term.values.clone().filter(|values| !values.is_empty()))
        }),
    );
    let alternatives = match &workspace.resource.instance_type {
        // Where nodes do not have the label, the user's word is taken for it.
        Some(instance_type) => vec![
            Some(requirement(LABEL_INSTANCE_TYPE, "In", Some(vec![instance_type.clone()]))),
            Some(requirement(LABEL_INSTANCE_TYPE, "DoesNotExist", None)),
        ],
        None => vec![None],
    };
    alternatives
        .into_iter()
        .map(|alternative| labels.iter().cloned().chain(alternative).collect::<Vec<_>>())
        .filter(|requirements| !requirements.is_empty())
        .map(|requirements| NodeSelectorTerm { match_expressions: Some(requirements), match_fields: None })
        .collect()
}

fn preferred_nodes(workspace: &Workspace) -> Option<PreferredSchedulingTerm> {
    let preferred = &workspace.resource.preferred_nodes;
    (!preferred.is_empty()).then(|| PreferredSchedulingTerm {
        weight: 100,
        preference: NodeSelectorTerm {
            match_expressions: Some(vec![NodeSelectorRequirement {
                key: HOSTNAME.to_owned(),
                operator: "In".to_owned(),
                values: Some(preferred.clone()),
            }]),
            match_fields: None,
        },
    })
}

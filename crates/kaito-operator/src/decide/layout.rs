//! How a model is spread over pods and GPUs.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{PodSpec, PodTemplateSpec},
    apimachinery::pkg::api::resource::Quantity,
};
use kaito_presets::{Preset, WorkloadKind};

use super::{
    Problem,
    division::{Among, Division, can_share, divide},
    nodes::{GPU, INSTANCE_TYPE, gpus, is_candidate},
    observed::{Observed, label},
    options::{Hardware, Options},
};
use crate::{
    runtime::{self, Sizes},
    workspace::Workspace,
};

/// How a model is spread over pods and GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// What makes the pods.
    pub kind: WorkloadKind,
    /// One for each node.
    pub pods: u32,
    /// GPUs of each pod: what the model needs and a node has; none where CPUs compute.
    pub gpus: u32,
    /// How the GPUs share the model.
    pub division: Division,
    /// What the nodes have, if known.
    pub hardware: Option<Hardware>,
}

impl Layout {
    /// Whether pods are ranks of one model. A workload that may have ranks is addressed in the same way when it has one.
    pub fn has_ranks(&self) -> bool {
        self.kind == WorkloadKind::StatefulSet
    }

    /// What makes the pods of a preset on so many nodes: checkpoints of Meta's are cut for several.
    pub fn kind_of(preset: &Preset, pods: u32) -> WorkloadKind {
        let is_shardable = preset.shape.family.published_by_meta;
        if is_shardable && pods > 1 { WorkloadKind::StatefulSet } else { preset.workload.kind }
    }

    /// The layout of a preset. Without ranks, every pod serves the whole model.
    ///
    /// # Errors
    ///
    /// Where the model is to be divided as it cannot be.
    pub fn of_preset(
        workspace: &Workspace,
        preset: &Preset,
        sizes: &Sizes,
        observed: &Observed,
        options: &Options,
    ) -> Result<Self, Problem> {
        let pods = u32::try_from(workspace.resource.count).unwrap_or(0).max(1);
        let kind = Self::kind_of(preset, pods);
        let nodes = Nodes::of(workspace, observed, options);
        let together = if kind == WorkloadKind::StatefulSet { pods } else { 1 };
        if !workspace.runtime().is_ok_and(runtime::uses_gpus) {
            let division = Division::usual(0, together);
            return Ok(Self { kind, pods, gpus: 0, division, hardware: nodes.hardware });
        }
        let needed = match kind {
            WorkloadKind::Deployment => preset.workload.gpus,
            WorkloadKind::StatefulSet => preset.workload.gpus.div_ceil(pods),
        };
        // A device plugin that goes away for a moment is no reason to start the model anew with fewer.
        let offered = nodes.gpus.map(|offered| offered.max(current_gpus(observed)));
        let usual = match (kind, offered) {
            (WorkloadKind::StatefulSet, offered) => slices(preset, needed, offered.unwrap_or(u32::MAX)),
            (WorkloadKind::Deployment, Some(offered)) => offered.min(needed),
            (WorkloadKind::Deployment, None) => needed,
        };
        // Nodes without GPUs are told of elsewhere.
        let offered = offered.filter(|offered| *offered > 0);
        let (division, gpus) = divide(preset, sizes, Among { pods: together, usual, offered })?;
        Ok(Self { kind, pods, gpus, division, hardware: nodes.hardware })
    }

    /// The layout of a template: as many pods as nodes, each with what the template asks for.
    pub fn of_template(workspace: &Workspace, template: &PodTemplateSpec) -> Self {
        Self {
            kind: WorkloadKind::Deployment,
            pods: u32::try_from(workspace.resource.count).unwrap_or(0).max(1),
            gpus: template.spec.as_ref().map_or(0, gpus_of_spec),
            division: Division::usual(0, 1),
            hardware: None,
        }
    }
}

/// GPUs for a pod that needs so many, of those that are offered: as many as the matrices can be cut for, heads and inner
/// vectors in equal parts.
fn slices(preset: &Preset, needed: u32, offered: u32) -> u32 {
    let offered = offered.min(u32::try_from(preset.shape.num_heads).unwrap_or(u32::MAX));
    let can_be = |gpus: &u32| can_share(preset, *gpus);
    (needed..=offered).find(can_be).or_else(|| (1..=offered.min(needed)).rev().find(can_be)).unwrap_or(0)
}

/// What is known of the nodes that a workspace can run on.
struct Nodes {
    /// GPUs of one, where any is known.
    gpus: Option<u32>,
    /// The least of their types.
    hardware: Option<Hardware>,
}

impl Nodes {
    fn of(workspace: &Workspace, observed: &Observed, options: &Options) -> Self {
        if let Some(hardware) = options.hardware(workspace.resource.instance_type.as_deref()) {
            return Self { gpus: Some(hardware.gpus), hardware: Some(hardware) };
        }
        let candidates: Vec<_> = observed
            .nodes
            .iter()
            .filter(|node| is_candidate(workspace, node))
            .map(|node| (gpus(node), options.hardware(label(&node.metadata, INSTANCE_TYPE))))
            .collect();
        let known = |hardware: &Option<Hardware>| hardware.map_or(0, |hardware| hardware.gpus);
        Self {
            gpus: candidates.iter().map(|(offered, hardware)| (*offered).max(known(hardware))).max(),
            hardware: candidates
                .iter()
                .filter_map(|(_, hardware)| *hardware)
                .min_by_key(|known| (known.has_bf16, known.gpu_memory)),
        }
    }
}

fn current_gpus(observed: &Observed) -> u32 {
    let deployment = observed.deployment.as_ref().and_then(|it| it.spec.as_ref()).map(|spec| &spec.template);
    let stateful_set = observed.stateful_set.as_ref().and_then(|it| it.spec.as_ref()).map(|spec| &spec.template);
    deployment.or(stateful_set).and_then(|template| template.spec.as_ref()).map_or(0, gpus_of_spec)
}

/// What a pod asks of its node: GPUs, or, where it has none and is of a preset, CPUs and memory.
pub fn requests(template: &PodTemplateSpec, is_preset: bool) -> BTreeMap<String, Quantity> {
    let Some(spec) = &template.spec else { return BTreeMap::new() };
    match gpus_of_spec(spec) {
        0 if is_preset => {
            let containers = spec.containers.iter();
            containers.filter_map(|container| container.resources.as_ref()?.requests.clone()).flatten().collect()
        }
        0 => BTreeMap::new(),
        gpus => BTreeMap::from([(GPU.to_owned(), Quantity(gpus.to_string()))]),
    }
}

/// GPUs that the containers of a pod hold together.
pub fn gpus_of_spec(spec: &PodSpec) -> u32 {
    spec.containers
        .iter()
        .filter_map(|container| container.resources.as_ref()?.limits.as_ref()?.get(GPU)?.0.parse::<u32>().ok())
        .fold(0, u32::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_has_gpus_that_a_model_can_be_cut_for() {
        let preset = |name| kaito_presets::find(name).unwrap();
        for (name, needed, offered, gpus) in [
            ("llama-2-70b", 8, 8, 8),
            ("llama-2-70b", 4, 4, 4),
            ("llama-2-70b", 4, 8, 4),
            // Three nodes for eight ranks.
            ("llama-2-70b", 3, 4, 4),
            ("llama-2-70b", 3, 3, 2),
            ("llama-2-70b", 4, 3, 2),
            ("llama-2-70b", 3, u32::MAX, 4),
            ("llama-2-70b", 1, 0, 0),
            // 40 heads, but 13824 inner rows.
            ("llama-2-13b", 2, 8, 2),
            ("llama-2-13b", 5, 7, 4),
            ("llama-2-7b", 1, 1, 1),
        ] {
            assert_eq!(slices(preset(name), needed, offered), gpus, "{name}: {needed} of {offered}");
        }
    }
}

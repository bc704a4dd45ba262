//! Computes how a model is spread over the nodes that a workspace can run on.

use std::collections::BTreeMap;

use k8s_openapi::{api::core::v1::PodTemplateSpec, apimachinery::pkg::api::resource::Quantity};
use kaito_presets::{GpuVendor, Preset, WorkloadKind};

use super::{
    division::{Among, divide},
    hosts::Hosts,
    model::{Model, PresetModel},
    observed::Observed,
    options::Options,
};
use crate::{
    layout::{Division, Layout, can_share, gpus_of, vendor_of, workload_kind},
    reason::Problem,
    runtime,
    workspace::Workspace,
};

/// The layout of a workspace's model.
///
/// # Errors
///
/// Where the ConfigMap asks for a division that the model or the nodes do not allow.
pub fn layout(
    workspace: &Workspace,
    model: &Model<'_>,
    observed: &Observed,
    options: &Options,
) -> Result<Layout, Problem> {
    let pods = u32::try_from(workspace.resource.count).unwrap_or(0).max(1);
    match model {
        Model::Preset(model) => of_preset(workspace, model, pods, observed, options),
        // As many pods as nodes, each with what the template requests.
        Model::Template(template) => Ok(Layout {
            kind: WorkloadKind::Deployment,
            pods,
            gpus: template.spec.as_ref().map_or(0, gpus_of),
            vendor: template.spec.as_ref().map_or(GpuVendor::default(), vendor_of),
            division: Division::usual(0, 1),
            hardware: None,
        }),
    }
}

/// Without ranks, every pod serves the whole model.
fn of_preset(
    workspace: &Workspace,
    model: &PresetModel<'_>,
    pods: u32,
    observed: &Observed,
    options: &Options,
) -> Result<Layout, Problem> {
    let preset = model.preset;
    let kind = workload_kind(preset, pods);
    let nodes = Hosts::of(workspace, observed, options);
    let together = if kind == WorkloadKind::StatefulSet { pods } else { 1 };
    if !model.runtime.as_ref().is_ok_and(|runtime| runtime::uses_gpus(*runtime)) {
        let division = Division::usual(0, together);
        return Ok(Layout { kind, pods, gpus: 0, vendor: nodes.vendor, division, hardware: nodes.hardware });
    }
    let needed = match kind {
        WorkloadKind::Deployment => preset.workload.gpus,
        WorkloadKind::StatefulSet => preset.workload.gpus.div_ceil(pods),
    };
    let offered = nodes.gpus;
    let usual = match (kind, offered) {
        (WorkloadKind::StatefulSet, offered) => gpus_that_share(preset, needed, offered.unwrap_or(u32::MAX)),
        (WorkloadKind::Deployment, Some(offered)) => {
            let memory = nodes.hardware.map(|hardware| hardware.gpu_memory);
            let holding = memory.and_then(|memory| runtime::gpus_that_hold(preset, offered, memory));
            holding.unwrap_or(offered.min(needed))
        }
        (WorkloadKind::Deployment, None) => needed,
    };
    // Nodes without any GPU are refused later, by the runtime.
    let offered = offered.filter(|offered| *offered > 0);
    // A wrong ConfigMap counts as an empty one here; the workload is refused for it later.
    let sizes = model.config.as_ref().map(|config| config.sizes).unwrap_or_default();
    let (division, gpus) = divide(preset, &sizes, Among { pods: together, usual, offered })?;
    Ok(Layout { kind, pods, gpus, vendor: nodes.vendor, division, hardware: nodes.hardware })
}

/// GPUs for a pod that needs `needed` of `offered` GPUs: the nearest number that can share each layer evenly.
fn gpus_that_share(preset: &Preset, needed: u32, offered: u32) -> u32 {
    let offered = offered.min(u32::try_from(preset.shape.num_heads).unwrap_or(u32::MAX));
    let can_be = |gpus: &u32| can_share(preset, *gpus);
    (needed..=offered).find(can_be).or_else(|| (1..=offered.min(needed)).rev().find(can_be)).unwrap_or(0)
}

/// What a pod requests of its node: GPUs, or, for a preset on CPUs, CPUs and memory.
pub fn requests(template: &PodTemplateSpec, is_preset: bool) -> BTreeMap<String, Quantity> {
    let Some(spec) = &template.spec else { return BTreeMap::new() };
    match gpus_of(spec) {
        0 if is_preset => {
            let containers = spec.containers.iter();
            containers.filter_map(|container| container.resources.as_ref()?.requests.clone()).flatten().collect()
        }
        0 => BTreeMap::new(),
        gpus => BTreeMap::from([(vendor_of(spec).resource().to_owned(), Quantity(gpus.to_string()))]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_has_more_gpus_than_asked_for_where_those_are_too_small() {
        let gib = kaito_presets::GIB;
        for (name, offered, memory, gpus) in [
            ("falcon-40b", 2, 80, Some(2)),
            ("falcon-40b", 8, 80, Some(2)),
            ("falcon-40b", 8, 40, Some(4)),
            ("falcon-40b", 3, 40, None),
            ("falcon-40b", 8, 16, Some(8)),
            ("falcon-40b", 4, 22, None),
            ("mistral-7b", 1, 24, Some(1)),
            ("mistral-7b", 4, 15, Some(2)),
            ("mistral-7b", 1, 15, None),
            ("mistral-7b", 0, 80, None),
        ] {
            let preset = kaito_presets::find(name).unwrap();
            assert_eq!(
                runtime::gpus_that_hold(preset, offered, memory * gib),
                gpus,
                "{name}: {offered} of {memory} GiB"
            );
        }
    }

    #[test]
    fn a_pod_has_gpus_that_can_share_each_layer() {
        let preset = |name| kaito_presets::find(name).unwrap();
        for (name, needed, offered, gpus) in [
            ("llama-2-70b", 8, 8, 8),
            ("llama-2-70b", 4, 4, 4),
            ("llama-2-70b", 4, 8, 4),
            // A model of eight GPUs on three nodes.
            ("llama-2-70b", 3, 4, 4),
            ("llama-2-70b", 3, 3, 2),
            ("llama-2-70b", 4, 3, 2),
            ("llama-2-70b", 3, u32::MAX, 4),
            ("llama-2-70b", 1, 0, 0),
            // 40 heads, but an MLP of width 13824.
            ("llama-2-13b", 2, 8, 2),
            ("llama-2-13b", 5, 7, 4),
            ("llama-2-7b", 1, 1, 1),
        ] {
            assert_eq!(gpus_that_share(preset(name), needed, offered), gpus, "{name}: {needed} of {offered}");
        }
    }
}

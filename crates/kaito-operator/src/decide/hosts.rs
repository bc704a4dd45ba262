//! What the nodes that a workspace can run on have.

use super::{
    nodes::{gpus, is_candidate},
    observed::{Observed, label},
    options::Options,
};
use crate::{
    layout::{Hardware, gpus_of},
    workspace::{LABEL_INSTANCE_TYPE, Workspace},
};

/// What is known of the nodes that a workspace can run on.
pub struct Hosts {
    /// The most GPUs that one of them has, where any is known.
    pub gpus: Option<u32>,
    /// The weakest of their instance types.
    pub hardware: Option<Hardware>,
    /// Whether there are enough with GPUs for the workspace.
    pub have_gpus: bool,
}

impl Hosts {
    /// By the instance type that the workspace names, else by the nodes that there are.
    ///
    /// While a device plugin restarts, a node offers no GPUs. A model is not restarted with fewer for that, so those that its pods
    /// have count too.
    pub fn of(workspace: &Workspace, observed: &Observed, options: &Options) -> Self {
        let current = current_gpus(observed);
        if let Some(hardware) = options.hardware(workspace.resource.instance_type.as_deref()) {
            let gpus = hardware.gpus.max(current);
            return Self { gpus: Some(gpus), hardware: Some(hardware), have_gpus: gpus > 0 };
        }
        let candidates: Vec<_> = observed
            .nodes
            .iter()
            .filter(|node| is_candidate(workspace, node))
            .map(|node| (gpus(node), options.hardware(label(&node.metadata, LABEL_INSTANCE_TYPE))))
            .collect();
        let known = |hardware: &Option<Hardware>| hardware.map_or(0, |hardware| hardware.gpus);
        let each: Vec<u32> = candidates.iter().map(|(offered, hardware)| (*offered).max(known(hardware))).collect();
        let wanted = usize::try_from(workspace.resource.count).unwrap_or(1).max(1);
        Self {
            gpus: each.iter().copied().max().map(|most| most.max(current)).or((current > 0).then_some(current)),
            hardware: candidates
                .iter()
                .filter_map(|(_, hardware)| *hardware)
                .min_by_key(|known| (known.has_bf16, known.gpu_memory)),
            have_gpus: current > 0 || each.iter().filter(|gpus| **gpus > 0).count() >= wanted,
        }
    }
}

fn current_gpus(observed: &Observed) -> u32 {
    let deployment = observed.deployment.as_ref().and_then(|it| it.spec.as_ref()).map(|spec| &spec.template);
    let stateful_set = observed.stateful_set.as_ref().and_then(|it| it.spec.as_ref()).map(|spec| &spec.template);
    deployment.or(stateful_set).and_then(|template| template.spec.as_ref()).map_or(0, gpus_of)
}

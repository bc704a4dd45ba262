//! What the nodes that a workspace can run on have.

use k8s_openapi::api::core::v1::{Node, PodSpec};
use kaito_presets::GpuVendor;

use super::{
    nodes::{gpus, is_candidate},
    observed::{Observed, label},
    options::Options,
};
use crate::{
    layout::{Hardware, gpus_of, vendor_of},
    workspace::{LABEL_INSTANCE_TYPE, Workspace},
};

/// What is known of the nodes that a workspace can run on.
pub struct Hosts {
    /// Who makes the GPUs that count; those of others do not.
    pub vendor: GpuVendor,
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
        let held = current_pods(observed).map(|pod| (vendor_of(pod), gpus_of(pod))).filter(|(_, gpus)| *gpus > 0);
        let held_of = |vendor| held.filter(|(theirs, _)| *theirs == vendor).map_or(0, |(_, gpus)| gpus);
        let instance_type = workspace.resource.instance_type.as_deref();
        if let Some((hardware, vendor)) = options.hardware(instance_type).zip(options.vendor(instance_type)) {
            let gpus = hardware.gpus.max(held_of(vendor));
            return Self { vendor, gpus: Some(gpus), hardware: Some(hardware), have_gpus: gpus > 0 };
        }
        let candidates: Vec<_> = observed
            .nodes
            .iter()
            .filter(|node| is_candidate(workspace, node))
            .map(|node| Candidate::of(node, options))
            .collect();
        let vendor = vendor(&candidates, held.map(|(vendor, _)| vendor));
        let current = held_of(vendor);
        let each: Vec<u32> = candidates.iter().map(|candidate| candidate.gpus(vendor)).collect();
        let wanted = usize::try_from(workspace.resource.count).unwrap_or(1).max(1);
        Self {
            vendor,
            gpus: each.iter().copied().max().map(|most| most.max(current)).or((current > 0).then_some(current)),
            hardware: candidates
                .iter()
                .filter_map(|candidate| candidate.hardware.filter(|_| candidate.vendor == Some(vendor)))
                .min_by_key(|known| (known.has_bf16, known.gpu_memory)),
            have_gpus: current > 0 || each.iter().filter(|gpus| **gpus > 0).count() >= wanted,
        }
    }
}

/// A node that a workspace can run on.
struct Candidate<'a> {
    node: &'a Node,
    /// By its instance type, where that is known.
    hardware: Option<Hardware>,
    vendor: Option<GpuVendor>,
}

impl<'a> Candidate<'a> {
    fn of(node: &'a Node, options: &Options) -> Self {
        let instance_type = label(&node.metadata, LABEL_INSTANCE_TYPE);
        Self { node, hardware: options.hardware(instance_type), vendor: options.vendor(instance_type) }
    }

    /// GPUs of a vendor that it offers, or will once its device plugin runs.
    fn gpus(&self, vendor: GpuVendor) -> u32 {
        let known = self.hardware.filter(|_| self.vendor == Some(vendor)).map_or(0, |hardware| hardware.gpus);
        gpus(self.node, vendor).max(known)
    }
}

/// Whose GPUs count, since all pods of a workspace are alike: those that the pods hold, as long as a node has such or none has
/// others; else those that the most nodes have.
fn vendor(candidates: &[Candidate<'_>], held: Option<GpuVendor>) -> GpuVendor {
    let nodes = |vendor: GpuVendor| candidates.iter().filter(|candidate| candidate.gpus(vendor) > 0).count();
    let stays = |held: &GpuVendor| nodes(*held) > 0 || GpuVendor::ALL.iter().all(|vendor| nodes(*vendor) == 0);
    // Of equals the last is the most, and the first vendor is to be taken.
    let of_most = || GpuVendor::ALL.into_iter().rev().max_by_key(|vendor| nodes(*vendor)).unwrap_or_default();
    held.filter(stays).unwrap_or_else(of_most)
}

/// The pods of the workload that there is.
pub fn current_pods(observed: &Observed) -> Option<&PodSpec> {
    let deployment = observed.deployment.as_ref().and_then(|it| it.spec.as_ref()).map(|spec| &spec.template);
    let stateful_set = observed.stateful_set.as_ref().and_then(|it| it.spec.as_ref()).map(|spec| &spec.template);
    deployment.or(stateful_set).and_then(|template| template.spec.as_ref())
}

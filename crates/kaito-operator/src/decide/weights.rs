//! How the weights of a preset reach its pods, by what the cluster has.

use super::{
    hosts::current_pods,
    observed::{Observed, WeightsClaim},
};
use crate::{
    reason::{Problem, Reason},
    runtime::weights::is_copied_in,
    workspace::{PresetSpec, Workspace},
};

/// Access modes of a claim that several nodes can have at once.
const MANY_NODES: [&str; 2] = ["ReadWriteMany", "ReadOnlyMany"];

/// Whether images of weights are mounted rather than copied.
///
/// A workload that copies goes on copying, though the API server may take image volumes by now: a running model is not to be
/// restarted for that.
pub fn are_mounted(observed: &Observed) -> bool {
    !observed.without_image_volumes && !current_pods(observed).is_some_and(is_copied_in)
}

/// Why the pods cannot all have the volume that keeps the weights, if they cannot.
pub fn claim_problem(workspace: &Workspace, spec: &PresetSpec, observed: &Observed) -> Option<Problem> {
    let name = spec.preset_options.weights_claim.as_deref()?;
    let pods = workspace.resource.count;
    let message = match &observed.weights_claim {
        WeightsClaim::NotRead => return None,
        WeightsClaim::Missing => format!(
            "there is no PersistentVolumeClaim {name} in namespace {}, which inference.preset.presetOptions.weightsClaim names",
            workspace.namespace()
        ),
        WeightsClaim::Modes(modes) => {
            if pods <= 1 || modes.iter().any(|mode| MANY_NODES.contains(&mode.as_str())) {
                return None;
            }
            format!(
                "the PersistentVolumeClaim {name} can be used by one node at a time ({}), but {pods} nodes are to read the weights from \
                 it: use one with the access mode {}, or leave weightsClaim out, and each pod downloads for itself",
                modes.join(", "),
                MANY_NODES.join(" or ")
            )
        }
    };
    Some(Problem { reason: Reason::WeightsClaimUnsuitable, message })
}

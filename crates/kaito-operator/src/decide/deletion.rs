//! Deleting a workspace: the finalizer keeps it until all that it owns is deleted.
//!
//! Owner references alone do not suffice. Where the CRD is deleted soon after the last workspace, a garbage collector that
//! lags behind no longer knows the kind of the owner, and servers would stay on their GPUs for ever. Pods have their workload
//! as owner, whose kind is always known, so those are left to the garbage collector.

use k8s_openapi::jiff::Timestamp;
use kube::Resource;

use super::{
    decision::{Action, Decision, Notice},
    left_claims,
    object::ObjectKind,
    observed::{Observed, is_going, name},
    options::Options,
    status,
};
use crate::{
    reason::Reason,
    text,
    workspace::{FINALIZER, Workspace},
};

/// Deletes what a workspace owns and its node claims, and removes the finalizer once they are gone.
pub fn release(workspace: &Workspace, observed: &Observed, options: &Options, now: Timestamp) -> Decision {
    let held = workspace.metadata.finalizers.as_deref().unwrap_or_default();
    if !held.iter().any(|finalizer| finalizer == FINALIZER) {
        return Decision::default();
    }
    let claims: Vec<_> = observed.claims.all().iter().filter(|claim| claim.belongs_to(workspace)).collect();
    // Workloads first: a node drains faster when no pods are recreated on it.
    let mut deletes = owned(workspace, observed);
    let remaining = claims.iter().filter(|claim| !is_going(&claim.metadata));
    deletes.extend(remaining.map(|claim| (ObjectKind::NodeClaim, name(&claim.metadata).to_owned())));
    if deletes.is_empty() && claims.is_empty() {
        let others = held.iter().filter(|finalizer| *finalizer != FINALIZER).cloned().collect();
        let left = left_claims::note(workspace, observed, options).map(|message| Notice {
            is_warning: true,
            reason: Reason::NodeClaimsLeft,
            action: Action::Delete,
            message,
        });
        return Decision { finalizers: Some(others), deeds: left.into_iter().collect(), ..Decision::default() };
    }
    let names: Vec<_> = deletes.iter().map(|(kind, name)| format!("{kind} {name}")).collect();
    let deed = (!names.is_empty()).then(|| Notice {
        is_warning: false,
        reason: Reason::Deleting,
        action: Action::Delete,
        message: format!("deleted {}", text::list(&names)),
    });
    let mut names: Vec<_> = claims.iter().map(|claim| name(&claim.metadata).to_owned()).collect();
    names.sort();
    let status = (!names.is_empty()).then(|| status::deleting(workspace, &names, now));
    Decision {
        deletes,
        status: status.filter(|status| workspace.status.as_ref() != Some(status)),
        deeds: deed.into_iter().collect(),
        ..Decision::default()
    }
}

/// Kind and name of every object that the workspace owns, by its uid, and that nobody has deleted yet.
fn owned(workspace: &Workspace, observed: &Observed) -> Vec<(ObjectKind, String)> {
    let workloads = [
        (ObjectKind::Deployment, observed.deployment.as_ref().map(|it| it.meta())),
        (ObjectKind::StatefulSet, observed.stateful_set.as_ref().map(|it| it.meta())),
    ];
    let services = observed.services.iter().map(|service| (ObjectKind::Service, service.meta()));
    let policies = observed.network_policy.iter().map(|policy| (ObjectKind::NetworkPolicy, policy.meta()));
    workloads
        .into_iter()
        .filter_map(|(kind, metadata)| Some((kind, metadata?)))
        .chain(services)
        .chain(policies)
        .filter(|(_, metadata)| workspace.owns(metadata) && !is_going(metadata))
        .map(|(kind, metadata)| (kind, name(metadata).to_owned()))
        .collect()
}

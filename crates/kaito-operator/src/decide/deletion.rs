//! How a workspace goes.
//!
//! What it owns would go after it by its owner reference, as long as somebody can look the owner up: where the CRD is deleted
//! soon after the last workspace, a garbage collector that lags no longer knows the kind, and leaves servers on their GPUs for
//! ever. So the workspace stays until all of it is deleted. Pods go with their workload, whose kind is always known.

use k8s_openapi::jiff::Timestamp;
use kube::Resource;

use super::{
    Decision, Notice, left_claims,
    nodes::Choice,
    observed::{Observed, is_going, name},
    options::Options,
    rollout::State,
    status::Findings,
    text,
};
use crate::workspace::{FINALIZER, Workspace};

/// Deletes what a workspace owns and its claims, and lets it go once they are gone.
pub fn release(workspace: &Workspace, observed: &Observed, options: &Options, now: Timestamp) -> Decision {
    let held = workspace.metadata.finalizers.as_deref().unwrap_or_default();
    if !held.iter().any(|finalizer| finalizer == FINALIZER) {
        return Decision::default();
    }
    let claims: Vec<_> = observed.claims.all().iter().filter(|claim| claim.belongs_to(workspace)).collect();
    // Workloads first: a node drains faster when nothing is made anew on it.
    let mut deletes = owned(workspace, observed);
    let remaining = claims.iter().filter(|claim| !is_going(&claim.metadata));
    deletes.extend(remaining.map(|claim| ("NodeClaim", name(&claim.metadata).to_owned())));
    if deletes.is_empty() && claims.is_empty() {
        let others = held.iter().filter(|finalizer| *finalizer != FINALIZER).cloned().collect();
        let left = left_claims::note(workspace, observed, options).map(|message| Notice {
            is_warning: true,
            reason: "NodeClaimsLeft".to_owned(),
            action: "Delete".to_owned(),
            message,
        });
        return Decision { finalizers: Some(others), deeds: left.into_iter().collect(), ..Decision::default() };
    }
    let deeds = if deletes.is_empty() {
        Vec::new()
    } else {
        let names: Vec<_> = deletes.iter().map(|(kind, name)| format!("{kind} {name}")).collect();
        vec![Notice {
            is_warning: false,
            reason: "Deleting".to_owned(),
            action: "Delete".to_owned(),
            message: format!("deleted {}", text::list(&names)),
        }]
    };
    let status = (!claims.is_empty()).then(|| {
        let mut names: Vec<_> = claims.iter().map(|claim| name(&claim.metadata).to_owned()).collect();
        names.sort();
        let choice = Choice::default();
        let rollout = &State::Current;
        let findings = Findings {
            workspace,
            observed,
            options,
            choice: &choice,
            claims: None,
            layout: None,
            problem: None,
            rollout,
            now,
        };
        findings.deleting(&names)
    });
    Decision {
        deletes,
        status: status.filter(|status| workspace.status.as_ref() != Some(status)),
        deeds,
        ..Decision::default()
    }
}

/// Kind and name of what is the workspace's by its uid, as far as nobody has deleted it yet.
fn owned(workspace: &Workspace, observed: &Observed) -> Vec<(&'static str, String)> {
    let workloads = [
        ("Deployment", observed.deployment.as_ref().map(|it| it.meta())),
        ("StatefulSet", observed.stateful_set.as_ref().map(|it| it.meta())),
    ];
    let services = observed.services.iter().map(|service| ("Service", service.meta()));
    workloads
        .into_iter()
        .filter_map(|(kind, metadata)| Some((kind, metadata?)))
        .chain(services)
        .filter(|(_, metadata)| workspace.owns(metadata) && !is_going(metadata))
        .map(|(kind, metadata)| (kind, name(metadata).to_owned()))
        .collect()
}

//! Which pods of several ranks are deleted, so that pods of the last template take their places.
//!
//! Ranks of different versions cannot compute together, and no rank is ready before all are. So a StatefulSet of several pods has
//! the update strategy `OnDelete`: Kubernetes makes pods of the last template where some are missing, and deletes none for it. The
//! first rank's pod goes first, and alone: its server has the requests, which it answers before it ends, and the other ranks
//! compute them. Once it has gone, the others go all together.
//!
//! A template that waits for its rollout is not in the cluster yet ([`rollout`](super::rollout)), so nothing is deleted for it.

use std::time::Duration;

use k8s_openapi::{
    api::{apps::v1::StatefulSet, core::v1::Pod},
    jiff::{SignedDuration, Timestamp},
};

use super::observed::{Observed, is_going, label, name};
use crate::workspace::Workspace;

/// The update strategy of StatefulSets whose pods are replaced from here.
pub const ON_DELETE: &str = "OnDelete";
/// On a pod: the revision of the template that its StatefulSet made it from.
const REVISION: &str = "controller-revision-hash";
/// How old a pod is at least when it is deleted. Where a StatefulSet's new pods were of an old template again, they would be deleted
/// as fast as they are made.
const YOUNGEST: Duration = Duration::from_secs(10);

/// A pod that is to be deleted: no other one that has its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replaced {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

/// Pods to delete now, and when there may be more of them though nothing happens.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Replacement {
    /// At most one for each rank.
    pub pods: Vec<Replaced>,
    /// When to reconcile again.
    pub again: Option<Timestamp>,
}

/// What is to be deleted, once the StatefulSet in the cluster is as it is wanted.
pub fn replacement(workspace: &Workspace, observed: &Observed, now: Timestamp) -> Replacement {
    let Some(set) = observed.stateful_set.as_deref() else { return Replacement::default() };
    let Some(revision) = revision(set).filter(|_| workspace.owns(&set.metadata) && !is_going(&set.metadata)) else {
        return Replacement::default();
    };
    let is_of_set = |pod: &&Pod| {
        pod.metadata.owner_references.iter().flatten().any(|owner| Some(&owner.uid) == set.metadata.uid.as_ref())
    };
    let is_outdated = |pod: &&Pod| label(&pod.metadata, REVISION).is_some_and(|its| its != revision);
    let mut outdated: Vec<&Pod> =
        observed.pods.iter().map(AsRef::as_ref).filter(is_of_set).filter(is_outdated).collect();
    outdated.sort_by(|a, b| name(&a.metadata).cmp(name(&b.metadata)));
    let first = format!("{}-0", name(&set.metadata));
    if let Some(first) = outdated.iter().find(|pod| name(&pod.metadata) == first) {
        outdated = vec![first];
    }
    let mut replacement = Replacement::default();
    for pod in outdated.into_iter().filter(|pod| !is_going(&pod.metadata)) {
        let Some(uid) = pod.metadata.uid.clone() else { continue };
        let of_age = pod.metadata.creation_timestamp.as_ref().and_then(|created| after(created.0, YOUNGEST));
        match of_age.filter(|of_age| *of_age > now) {
            Some(of_age) => replacement.again = replacement.again.into_iter().chain([of_age]).min(),
            None => replacement.pods.push(Replaced { name: name(&pod.metadata).to_owned(), uid }),
        }
    }
    replacement
}

/// The revision of a StatefulSet's template, where its pods are replaced from here, and its controller has seen that template.
fn revision(set: &StatefulSet) -> Option<&str> {
    let strategy = set.spec.as_ref()?.update_strategy.as_ref()?.type_.as_deref();
    let status = set.status.as_ref()?;
    let is_seen = status.observed_generation >= set.metadata.generation;
    status.update_revision.as_deref().filter(|_| is_seen && strategy == Some(ON_DELETE))
}

fn after(time: Timestamp, duration: Duration) -> Option<Timestamp> {
    time.checked_add(SignedDuration::try_from(duration).ok()?).ok()
}

//! What is wrong with a rank as such: it has no pod, no node, or its node is lost.

use std::time::Duration;

use k8s_openapi::{
    api::core::v1::{Node, Pod},
    jiff::{SignedDuration, Timestamp},
};

use super::{Cause, CauseKind, Expected, condition};
use crate::decide::{
    nodes::unready,
    observed::{Observed, has_ended, is_going, name},
};

/// How long the other pods have been there when a rank without one is told of: a StatefulSet makes one after the other.
const PATIENCE: Duration = Duration::from_secs(10);
/// Ranks beyond this one are not looked for: no model is divided among so many.
const MOST_RANKS: usize = 4096;

/// Causes of ranks, and when another one is told of though nothing happens.
pub fn of_ranks(observed: &Observed, set: &str, expected: &Expected) -> (Vec<Cause>, Option<Timestamp>) {
    let mut causes = Vec::new();
    let mut again = None;
    let youngest =
        observed.pods.iter().filter_map(|pod| pod.metadata.creation_timestamp.as_ref()).map(|time| time.0).max();
    let told_at = youngest.and_then(|time| time.checked_add(SignedDuration::try_from(PATIENCE).ok()?).ok());
    for rank in 0..expected.pods.min(MOST_RANKS) {
        let pod_name = format!("{set}-{rank}");
        let pod = observed.pods.iter().find(|pod| name(&pod.metadata) == pod_name && !has_ended(pod));
        let told = match pod.map(AsRef::as_ref) {
            Some(pod) => of_rank(pod, observed),
            // Before the first pod there is nothing to tell, and there may be a refusal.
            None => match told_at {
                Some(at) if at <= expected.now => Some((CauseKind::RankMissing, "has no pod".to_owned())),
                at => {
                    again = at;
                    None
                }
            },
        };
        causes.extend(told.map(|(kind, detail)| Cause {
            kind,
            detail: format!("rank {rank} {detail}"),
            pod: Some(pod_name),
            container: None,
        }));
    }
    (causes, again)
}

fn of_rank(pod: &Pod, observed: &Observed) -> Option<(CauseKind, String)> {
    if let Some(node) = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) {
        let found = observed.nodes.iter().find(|known| name(&known.metadata) == node);
        if let Some(why) = lost(found.map(AsRef::as_ref)) {
            return Some((CauseKind::RankLost, format!("is lost with its node {node}, which {why}")));
        }
    } else if let Some(unscheduled) = condition(pod, "PodScheduled").filter(|it| it.status == "False")
        && unscheduled.reason.as_deref() == Some("Unschedulable")
    {
        let said = unscheduled.message.as_deref().unwrap_or("no node takes it");
        return Some((CauseKind::RankUnschedulable, format!("is missing: {said}")));
    }
    is_going(&pod.metadata).then(|| (CauseKind::RankMissing, "ends, and another pod takes its place".to_owned()))
}

fn lost(node: Option<&Node>) -> Option<String> {
    let Some(node) = node else { return Some("is gone".to_owned()) };
    unready(node).map(|why| format!("is not ready ({why})"))
}

//! What Prometheus reads of the controller.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use kaito_metrics::Format;
use kube::runtime::reflector::ObjectRef;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

use super::{backoff::lock, cache::Cache};
use crate::{
    reason::Reason,
    workspace::{ConditionType, Workspace, WorkspaceState},
};

const SECONDS: [f64; 9] = [0.001, 0.005, 0.02, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0];

/// How a reconcile ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReconcileLabels {
    /// `changed`, `unchanged`, `refused` or `failed`.
    pub result: &'static str,
}

/// A request that may change the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct WriteLabels {
    /// The kind of object.
    pub kind: &'static str,
    /// `apply`, `delete`, `create`, `patch` or `apply status`.
    pub verb: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabels {
    phase: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RolloutLabels {
    state: &'static str,
}

/// What Prometheus reads of the controller.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    /// 1 while this replica leads.
    pub leader: Gauge,
    /// Reconciles by how they ended.
    pub reconciles: Family<ReconcileLabels, Counter>,
    durations: Histogram,
    /// Requests that may change the cluster.
    pub writes: Family<WriteLabels, Counter>,
    queue: Gauge,
    queued: Arc<Mutex<HashSet<ObjectRef<Workspace>>>>,
    workspaces: Family<PhaseLabels, Gauge>,
    rollouts: Family<RolloutLabels, Gauge>,
    observed: Arc<Mutex<Option<Cache<Workspace>>>>,
}

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Self {
            registry: Arc::new(Mutex::new(Registry::with_prefix("kaito"))),
            leader: Gauge::default(),
            reconciles: Family::default(),
            durations: Histogram::new(SECONDS),
            writes: Family::default(),
            queue: Gauge::default(),
            queued: Arc::default(),
            workspaces: Family::default(),
            rollouts: Family::default(),
            observed: Arc::default(),
        };
        metrics.register(|registry| {
            registry.register("leader", "1 while this replica leads", metrics.leader.clone());
            registry.register(
                "reconciles",
                "Reconciles by result: changed or unchanged, refused by the API server, or failed and tried again",
                metrics.reconciles.clone(),
            );
            registry.register_with_unit(
                "reconcile_duration",
                "How long a reconcile takes",
                Unit::Seconds,
                metrics.durations.clone(),
            );
            registry.register("queue", "Workspaces that wait to be reconciled", metrics.queue.clone());
            registry.register(
                "writes",
                "Requests that may change the cluster, by kind and verb",
                metrics.writes.clone(),
            );
            registry.register("workspaces", "Workspaces by phase", metrics.workspaces.clone());
            registry.register(
                "rollouts",
                "Workspaces with a rollout that is due or under way",
                metrics.rollouts.clone(),
            );
        });
        metrics
    }
}

impl Metrics {
    /// Adds metrics of other parts.
    pub fn register(&self, add: impl FnOnce(&mut Registry)) {
        add(&mut lock(&self.registry));
    }

    /// Counts the workspaces of this cache.
    pub fn observe_workspaces(&self, workspaces: Cache<Workspace>) {
        *lock(&self.observed) = Some(workspaces);
    }

    /// A workspace is queued.
    pub fn queued(&self, workspace: &ObjectRef<Workspace>) {
        lock(&self.queued).insert(workspace.clone());
    }

    /// Its reconcile begins.
    pub fn begun(&self, workspace: &ObjectRef<Workspace>) {
        lock(&self.queued).remove(workspace);
    }

    /// A reconcile has ended.
    pub fn ended(&self, result: &'static str, took: Duration) {
        self.reconciles.get_or_create(&ReconcileLabels { result }).inc();
        self.durations.observe(took.as_secs_f64());
    }

    /// A request was made.
    pub fn wrote(&self, kind: &'static str, verb: &'static str) {
        self.writes.get_or_create(&WriteLabels { kind, verb }).inc();
    }

    /// All of it, in one of the formats that Prometheus reads.
    pub fn text(&self, format: Format) -> String {
        self.count();
        // Writing to a string does not fail.
        format.encode(&lock(&self.registry)).unwrap_or_default()
    }

    fn count(&self) {
        let mut counts = [("Pending", 0), ("Ready", 0), ("NotReady", 0), ("Deleting", 0)];
        let workspaces = lock(&self.observed).as_ref().map(|cache| cache.store().state()).unwrap_or_default();
        let known: HashSet<_> = workspaces.iter().map(|workspace| ObjectRef::from_obj(workspace.as_ref())).collect();
        let mut queued = lock(&self.queued);
        // A workspace that was deleted while it was queued is never reconciled.
        queued.retain(|workspace| known.contains(workspace));
        self.queue.set(i64::try_from(queued.len()).unwrap_or(i64::MAX));
        drop(queued);
        let mut rollouts = [("due", Reason::RolloutDue, 0), ("under way", Reason::RolloutUnderWay, 0)];
        for workspace in workspaces {
            let up_to_date = workspace.status.as_ref().and_then(|status| status.condition(ConditionType::UpToDate));
            for (_, reason, count) in &mut rollouts {
                *count += i64::from(up_to_date.is_some_and(|condition| condition.reason == reason.as_str()));
            }
            let state = workspace.status.as_ref().and_then(|status| status.state);
            let phase = match state {
                _ if workspace.metadata.deletion_timestamp.is_some() => "Deleting",
                Some(WorkspaceState::Ready) => "Ready",
                Some(WorkspaceState::NotReady) => "NotReady",
                Some(WorkspaceState::Pending) | None => "Pending",
            };
            for (name, count) in &mut counts {
                *count += i64::from(*name == phase);
            }
        }
        for (phase, count) in counts {
            self.workspaces.get_or_create(&PhaseLabels { phase }).set(count);
        }
        for (state, _, count) in rollouts {
            self.rollouts.get_or_create(&RolloutLabels { state }).set(count);
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::runtime::watcher::Event;

    use super::*;

    #[test]
    fn workspaces_are_counted_by_phase() {
        let metrics = Metrics::default();
        let (cache, mut filler) = Cache::<Workspace>::new();
        for (name, state) in [("a", "Ready"), ("b", "Ready"), ("c", "NotReady"), ("d", "Pending")] {
            let text = format!(
                "metadata: {{name: {name}, namespace: ns, resourceVersion: '1'}}\nresource: {{labelSelector: {{}}}}\nstatus: \
                 {{state: {state}, conditions: [{{type: UpToDate, status: 'False', reason: {}, message: '', \
                 lastTransitionTime: '2026-01-01T00:00:00Z'}}]}}",
                if name == "a" { "RolloutDue" } else { "Other" }
            );
            filler.take(&Event::Apply(serde_saphyr::from_str(&text).unwrap()));
        }
        metrics.observe_workspaces(cache);
        metrics.queued(&ObjectRef::new("a").within("ns"));
        metrics.queued(&ObjectRef::new("gone").within("ns"));
        metrics.ended("changed", Duration::from_millis(3));
        metrics.wrote("Service", "apply");
        let text = metrics.text(Format::Text);
        for line in [
            "kaito_workspaces{phase=\"Ready\"} 2",
            "kaito_workspaces{phase=\"NotReady\"} 1",
            "kaito_workspaces{phase=\"Pending\"} 1",
            "kaito_workspaces{phase=\"Deleting\"} 0",
            "kaito_rollouts{state=\"due\"} 1",
            "kaito_rollouts{state=\"under way\"} 0",
            "kaito_queue 1",
            "kaito_reconciles_total{result=\"changed\"} 1",
            "kaito_reconcile_duration_seconds_count 1",
            "kaito_writes_total{kind=\"Service\",verb=\"apply\"} 1",
            "kaito_leader 0",
        ] {
            assert!(text.lines().any(|it| it == line), "no {line} in\n{text}");
        }
    }
}

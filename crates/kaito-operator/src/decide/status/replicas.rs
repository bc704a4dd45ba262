//! How many of a workload's pods are ready.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kaito_presets::WorkloadKind;

use super::super::{
    causes::{self, Expected},
    model::Model,
    observed::Observed,
    rollout::Health,
};
use crate::layout::Layout;

/// How many pods a workload has.
pub struct Replicas {
    pub kind: WorkloadKind,
    pub wanted: usize,
    pub ready: usize,
    /// Whether all pods are of the last template.
    is_current: bool,
}

impl Replicas {
    /// `None` where the workload does not exist.
    pub fn of(observed: &Observed, layout: Layout) -> Option<Self> {
        let number = |count: Option<i32>| usize::try_from(count.unwrap_or(0)).unwrap_or(0);
        let (generation, observed_generation, updated, ready) = match layout.kind {
            WorkloadKind::Deployment => {
                let deployment = observed.deployment.as_ref()?;
                let status = deployment.status.clone().unwrap_or_default();
                let generation = deployment.metadata.generation;
                (generation, status.observed_generation, status.updated_replicas, status.ready_replicas)
            }
            WorkloadKind::StatefulSet => {
                let set = observed.stateful_set.as_ref()?;
                let status = set.status.clone().unwrap_or_default();
                let generation = set.metadata.generation;
                (generation, status.observed_generation, status.updated_replicas, status.ready_replicas)
            }
        };
        let wanted = layout.pods as usize;
        let is_current = observed_generation >= generation && number(updated) >= wanted;
        Some(Self { kind: layout.kind, wanted, ready: number(ready), is_current })
    }

    pub fn is_ready(&self) -> bool {
        self.is_current && self.ready >= self.wanted
    }
}

/// How a workspace's workload is.
pub fn health(
    model: Option<&Model<'_>>,
    observed: &Observed,
    layout: Layout,
    has_nodes: bool,
    now: Timestamp,
) -> Health {
    let none = Health { has_nodes, answers_since: None, fails: false };
    let Some(replicas) = Replicas::of(observed, layout) else { return none };
    if replicas.is_ready() {
        let ready =
            observed.pods.iter().filter(|pod| causes::is_ready(pod)).filter_map(|pod| causes::milestones(pod).ready);
        return Health { answers_since: Some(ready.max().unwrap_or(Timestamp::UNIX_EPOCH)), ..none };
    }
    let (cause, _) = causes::worst(observed, &expected(model, &replicas, now));
    Health { fails: replicas.ready == 0 && cause.kind.is_failure(), ..none }
}

/// When the status may be another one though nothing happens.
pub fn look_again_at(
    model: Option<&Model<'_>>,
    observed: &Observed,
    layout: Layout,
    now: Timestamp,
) -> Option<Timestamp> {
    let replicas = Replicas::of(observed, layout).filter(|replicas| !replicas.is_ready())?;
    causes::look_again_at(observed, &expected(model, &replicas, now))
}

/// What the pods are measured by.
pub fn expected(model: Option<&Model<'_>>, replicas: &Replicas, now: Timestamp) -> Expected {
    Expected { pods: replicas.wanted, limit: time_limit(model), now }
}

/// How long the model may take to load; half an hour for pods of the user's own.
fn time_limit(model: Option<&Model<'_>>) -> Duration {
    let preset = model.and_then(Model::as_preset).map(|model| model.preset);
    preset.map_or(Duration::from_secs(1800), |preset| preset.workload.ready_within)
}

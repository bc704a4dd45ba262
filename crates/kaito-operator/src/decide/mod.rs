//! What is to be done for a workspace: a pure function of the workspace, the cluster and the time.
//!
//! Level-triggered: whatever happened before, the same cluster gives the same decision, and a decision that has been
//! carried out gives none.

mod adapters;
mod causes;
mod claims;
mod deletion;
mod division;
mod layout;
mod left_claims;
mod nodes;
mod object;
mod observed;
mod options;
mod rollout;
mod services;
mod status;
mod taints;
mod text;
mod unreadable;
mod window;
mod workload;

use std::time::Duration;

pub use claims::{NodeClaim, NodeClaimSpec, NodeClaimStatus, NodeClassRef, Requirement, Resources, claim_names};
pub use division::Division;
use k8s_openapi::{
    api::core::v1::{Pod, PodTemplateSpec},
    jiff::Timestamp,
};
use kaito_presets::{Preset, WorkloadKind};
pub use layout::Layout;
pub use nodes::{Choice, GPU, GRACE, INSTANCE_TYPE, PodNeeds, TurnedDown, choose};
pub use object::{APPLIED, Change, Object};
pub use observed::{ClaimFailure, Claims, Config, Observed, PodFailure, Refusal, Taken};
pub use options::{Hardware, NodeClass, NotANodeClass, Options, Provisioner};
pub use rollout::{RolloutPolicy, Rollouts, under_way_since};
use serde_json::Value;
use status::Findings;
pub use status::{ADAPTERS_READY, CONFIG_APPLIED, UP_TO_DATE};
pub use taints::Tolerations;
pub use unreadable::unreadable;
pub use window::{NotAWindow, Window};
pub use workload::TERMINATION_GRACE_SECONDS;

use self::{
    claims::{ClaimPlan, Need},
    observed::{is_going, name},
    rollout::Draft,
};
use crate::workspace::{FINALIZER, InferenceSpec, Workspace, WorkspaceStatus};

/// Why something that a workspace asks for cannot be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Names the cause, for programs.
    pub reason: &'static str,
    /// The cause and what to do, for people.
    pub message: String,
}

/// What is to be done, in this order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Decision {
    /// The workspace's finalizers, if they are to change.
    pub finalizers: Option<Vec<String>>,
    /// All that the workspace is to own.
    pub objects: Vec<Object>,
    /// Those of `objects`, by their place, that must be written, and why.
    pub writes: Vec<(usize, Change)>,
    /// What is to be deleted: kind and name.
    pub deletes: Vec<(&'static str, String)>,
    /// The status, if it is to change.
    pub status: Option<WorkspaceStatus>,
    /// What is told of the writes and deletions, as events, once they are done.
    pub deeds: Vec<Notice>,
    /// What is told of the status, as events.
    pub notices: Vec<Notice>,
    /// When to look again though nothing happens.
    pub requeue: Option<Duration>,
    /// Whether a running model's turn to be restarted begins with it: to be decided anew where nobody else can begin one.
    pub starts_rollout: bool,
}

impl Decision {
    /// Whether nothing is to be written.
    pub fn is_empty(&self) -> bool {
        self.finalizers.is_none() && self.writes.is_empty() && self.deletes.is_empty() && self.status.is_none()
    }
}

/// Something to tell as an event of the workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Whether someone should look.
    pub is_warning: bool,
    /// What happened, for programs.
    pub reason: String,
    /// What it happened to.
    pub action: String,
    /// What happened, for people.
    pub message: String,
}

/// GPUs that a pod of a workspace holds on its node.
pub fn gpus_of_pod(pod: &Pod) -> u32 {
    pod.spec.as_ref().map_or(0, layout::gpus_of_spec)
}

/// What is to be done for a workspace.
pub fn decide(workspace: &Workspace, observed: &Observed, options: &Options, now: Timestamp) -> Decision {
    if is_going(&workspace.metadata) {
        return deletion::release(workspace, observed, options, now);
    }
    let inference = workspace.inference.as_ref();
    let layout = inference.map(|inference| layout_of(workspace, inference, observed, options));
    let drafted = inference.zip(layout.clone()).map(|(inference, layout)| {
        layout.and_then(|layout| Ok((layout, Draft::of(workspace, inference, &layout, observed, options)?)))
    });
    let layout = layout.and_then(Result::ok);
    let needs = match &drafted {
        Some(Ok((_, draft))) => PodNeeds::of(draft.template(observed), observed),
        Some(Err(_)) | None => PodNeeds {
            gpus: layout.map_or(0, |layout| layout.gpus),
            tolerations: Tolerations::of(&workload::tolerations(inference), observed),
        },
    };
    let choice = choose(workspace, observed, &needs, now);
    let is_started = observed.deployment.is_some() || observed.stateful_set.is_some();
    let mut plan = claim_plan(workspace, observed, options, &choice, drafted.as_ref(), now);
    if matches!(drafted, Some(Err(_))) && !is_started {
        // Nothing could run there.
        plan.new.clear();
    }

    let mut objects: Vec<Object> = plan.new.iter().cloned().map(Object::NodeClaim).collect();
    let mut problem = None;
    let mut rollout = rollout::State::Current;
    let mut starts_rollout = false;
    match drafted {
        Some(Ok((layout, draft))) => {
            objects.extend(services::services(workspace, &layout).into_iter().map(Object::Service));
            let has_nodes = choice.chosen.len() >= usize::try_from(workspace.resource.count).unwrap_or(0);
            let health = status::health(workspace, observed, layout, has_nodes);
            let settled = draft.settled(&health, &observed.rollouts, &options.rollouts, now);
            // What runs is kept up even when nodes go: it may run again when they come back.
            if has_nodes || is_started {
                objects.extend(settled.object);
                (rollout, starts_rollout) = (settled.state, settled.starts);
            }
        }
        Some(Err(cause)) => problem = Some(cause),
        None => {}
    }
    let objects: Vec<_> = objects.into_iter().map(Object::sealed).collect();
    let writes: Vec<_> = objects
        .iter()
        .enumerate()
        .filter_map(|(place, object)| {
            Some((place, object::change(&object.to_json(), current(object, observed).as_ref())?))
        })
        .collect();
    let deletes: Vec<_> = plan.surplus.iter().map(|claim| ("NodeClaim", claim.clone())).collect();

    let progress = claims::progress(workspace, observed, &plan);
    let findings = Findings {
        workspace,
        observed,
        options,
        choice: &choice,
        claims: progress.as_ref(),
        layout,
        problem: problem.as_ref(),
        rollout: &rollout,
        now,
    };
    let (status, notices) = findings.status();
    let deeds = told(&objects, &writes, &deletes);
    Decision {
        finalizers: with_finalizer(workspace),
        objects,
        writes,
        deletes,
        status: (workspace.status.as_ref() != Some(&status)).then_some(status),
        deeds,
        notices,
        requeue: choice
            .give_up_at
            .into_iter()
            .chain(plan.try_again_at)
            .chain(rollout.look_again_at())
            .min()
            .map(|at| seconds_until(at, now))
            .into_iter()
            .chain(awaited(problem.as_ref()))
            .min(),
        starts_rollout,
    }
}

/// When to look again for a ConfigMap that is to come, or to be corrected: those are not watched, and somebody waits.
fn awaited(problem: Option<&Problem>) -> Option<Duration> {
    const CONFIG: Duration = Duration::from_secs(10);
    let is_of_config =
        |problem: &&Problem| matches!(problem.reason, "ConfigMissing" | "ConfigInvalid" | "ConfigDoesNotFit");
    problem.filter(is_of_config).map(|_| CONFIG)
}

/// The pods of a workspace on nodes of its instance type, without a cluster.
///
/// # Errors
///
/// Where the workspace asks for what cannot be had.
pub fn pods(
    workspace: &Workspace,
    observed: &Observed,
    options: &Options,
) -> Result<(Layout, PodTemplateSpec), Problem> {
    let nothing = || Problem {
        reason: "InferenceEmpty",
        message: "the workspace has no inference: there is nothing to run".to_owned(),
    };
    let inference = workspace.inference.as_ref().ok_or_else(nothing)?;
    let layout = layout_of(workspace, inference, observed, options)?;
    let template = match workload::workload(workspace, inference, &layout, observed, options)? {
        Object::Deployment(deployment) => deployment.spec.map(|spec| spec.template),
        Object::StatefulSet(set) => set.spec.map(|spec| spec.template),
        Object::Service(_) | Object::NodeClaim(_) => None,
    };
    Ok((layout, template.ok_or_else(nothing)?))
}

/// How many pods serve a workspace's preset together, if it is more than one.
pub fn ranks(workspace: &Workspace, preset: &Preset) -> Option<u32> {
    let pods = u32::try_from(workspace.resource.count).ok().filter(|pods| *pods > 1)?;
    (Layout::kind_of(preset, pods) == WorkloadKind::StatefulSet).then_some(pods)
}

fn layout_of(
    workspace: &Workspace,
    inference: &InferenceSpec,
    observed: &Observed,
    options: &Options,
) -> Result<Layout, Problem> {
    match (&inference.preset, &inference.template) {
        (Some(spec), _) => {
            let preset = workload::preset(spec)?;
            let config = workload::runtime(workspace)
                .and_then(|runtime| workload::config(workspace, runtime, preset, observed))
                // Whoever makes the pods says what is wrong with it.
                .unwrap_or_default();
            Layout::of_preset(workspace, preset, &config.sizes, observed, options)
        }
        (None, Some(template)) => Ok(Layout::of_template(workspace, template)),
        (None, None) => Err(workload::empty()),
    }
}

fn claim_plan(
    workspace: &Workspace,
    observed: &Observed,
    options: &Options,
    choice: &Choice<'_>,
    drafted: Option<&Result<(Layout, Draft), Problem>>,
    now: Timestamp,
) -> ClaimPlan {
    let Provisioner::Karpenter(class) = &options.provisioner else { return ClaimPlan::default() };
    let preset = workspace.preset().and_then(|spec| workload::preset(spec).ok());
    let template = drafted.and_then(|drafted| drafted.as_ref().ok()?.1.template(observed));
    let requests = template.map(|template| layout::requests(template, preset.is_some())).unwrap_or_default();
    let need = Need { requests, disk: preset.map(|preset| preset.workload.disk) };
    claims::plan(workspace, observed, choice, class, &need, now)
}

/// The object in the cluster, in the form of the one that is wanted.
fn current(wanted: &Object, observed: &Observed) -> Option<Value> {
    match wanted {
        Object::Service(_) => {
            let service = observed.services.iter().find(|service| name(&service.metadata) == wanted.name())?;
            Some(object::to_json(service.as_ref()))
        }
        Object::Deployment(_) => observed.deployment.as_deref().map(object::to_json),
        Object::StatefulSet(_) => observed.stateful_set.as_deref().map(object::to_json),
        Object::NodeClaim(_) => {
            let claim = observed.claims.all().iter().find(|claim| name(&claim.metadata) == wanted.name())?;
            Some(object::to_json(claim.as_ref()))
        }
    }
}

/// A notice for everything that is created, one for what is updated, one for each repair.
fn told(objects: &[Object], writes: &[(usize, Change)], deletes: &[(&'static str, String)]) -> Vec<Notice> {
    let notice = |is_warning, reason: &str, message: String| Notice {
        is_warning,
        reason: reason.to_owned(),
        action: "Apply".to_owned(),
        message,
    };
    let names = |wanted: &Change| -> Vec<String> {
        let of_kind = writes.iter().filter(|(_, change)| change == wanted);
        of_kind.filter_map(|(place, _)| objects.get(*place)).map(|it| format!("{} {}", it.kind(), it.name())).collect()
    };
    let mut notices = Vec::new();
    for (change, reason, verb) in [(Change::Create, "Created", "created"), (Change::Update, "Updated", "updated")] {
        let names = names(&change);
        if !names.is_empty() {
            notices.push(notice(false, reason, format!("{verb} {}", text::list(&names))));
        }
    }
    for (place, change) in writes {
        if let (Some(object), Change::Repair(paths)) = (objects.get(*place), change) {
            let message = format!(
                "set back what others had changed in {} {}: {}",
                object.kind(),
                object.name(),
                text::list(paths)
            );
            notices.push(notice(true, "Repaired", message));
        }
    }
    if !deletes.is_empty() {
        let names: Vec<_> = deletes.iter().map(|(kind, name)| format!("{kind} {name}")).collect();
        notices.push(notice(false, "Deleted", format!("deleted {}, which is not needed", text::list(&names))));
    }
    notices
}

fn with_finalizer(workspace: &Workspace) -> Option<Vec<String>> {
    let mut finalizers = workspace.metadata.finalizers.clone().unwrap_or_default();
    if finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
        return None;
    }
    finalizers.push(FINALIZER.to_owned());
    Some(finalizers)
}

fn seconds_until(at: Timestamp, now: Timestamp) -> Duration {
    let seconds = u64::try_from(at.as_second().saturating_sub(now.as_second())).unwrap_or(0);
    Duration::from_secs(seconds.saturating_add(1))
}

#[cfg(test)]
mod tests;

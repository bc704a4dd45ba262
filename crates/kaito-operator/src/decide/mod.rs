//! What is to be done for a workspace: a pure function of the workspace, the cluster and the time.
//!
//! Level-triggered: whatever happened before, the same cluster gives the same decision, and a decision that has been
//! carried out gives none.
//!
//! The order of a decision, and the modules: what the workspace serves (`model`), how it is spread over pods and GPUs
//! (`layout`), the workload for that (`workload`, held back by `rollout` where only the installation changed), the nodes it
//! can run on (`nodes`), node claims for those that are missing (`claims`), and what the status says of all that (`status`).

mod adapters;
mod causes;
mod claims;
mod decision;
mod deletion;
mod division;
mod hosts;
mod layout;
mod left_claims;
mod model;
mod network_policy;
mod nodes;
mod object;
mod observed;
mod options;
mod placement;
mod replacement;
mod rollout;
mod rollout_policy;
mod services;
mod status;
mod taints;
mod unreadable;
mod weights;
mod window;
mod workload;

use std::time::Duration;

pub use causes::engine_reason;
pub use claims::claim_names;
pub use decision::{Action, Decision, Notice};
use k8s_openapi::{
    api::core::v1::{Pod, PodTemplateSpec},
    jiff::Timestamp,
};
use kaito_presets::GpuVendor;
pub use nodes::{Choice, GRACE, PodNeeds, TurnedDown, choose};
pub use object::{APPLIED, Change, Object, ObjectKind};
pub use observed::{
    ClaimFailure, Claims, Config, InVain, Observed, PodFailure, Refusal, Taken, WeightsClaim, has_ended, is_going,
};
pub use options::{NodeClass, NotANodeClass, Options, Provisioner};
pub use replacement::Replaced;
pub use rollout::under_way_since;
pub use rollout_policy::{RolloutPolicy, Rollouts};
pub use taints::Tolerations;
pub use unreadable::unreadable;
pub use window::{NotAWindow, Window};
pub use workload::TERMINATION_GRACE_SECONDS;

use self::{
    claims::{ClaimPlan, Need},
    model::Model,
    object::AnyObject,
    replacement::{Replacement, replacement},
    rollout::Draft,
    status::Findings,
};
use crate::{
    layout::{Layout, gpus_of},
    reason::{Problem, Reason},
    text,
    workspace::{FINALIZER, Workspace},
};

/// GPUs that a pod of a workspace holds on its node.
pub fn gpus_of_pod(pod: &Pod) -> u32 {
    pod.spec.as_ref().map_or(0, gpus_of)
}

/// What is to be done for a workspace.
pub fn decide(workspace: &Workspace, observed: &Observed, options: &Options, now: Timestamp) -> Decision {
    if is_going(&workspace.metadata) {
        return deletion::release(workspace, observed, options, now);
    }
    // Each of these is computed here and nowhere else in a decision.
    let inference = workspace.inference.as_ref();
    let mut problem = None;
    let model = inference.and_then(|inference| noted(Model::of(workspace, inference, observed, options), &mut problem));
    let model = model.as_ref();
    let layout = model.and_then(|model| noted(layout::layout(workspace, model, observed, options), &mut problem));
    let draft = model
        .zip(layout.as_ref())
        .and_then(|(model, layout)| noted(Draft::of(workspace, model, layout, observed, options), &mut problem));

    let template = draft.as_ref().and_then(|draft| draft.template(observed));
    let needs = match &draft {
        Some(_) => PodNeeds::of(template, observed),
        None => {
            let (gpus, vendor) = layout.map_or((0, GpuVendor::default()), |layout| (layout.gpus, layout.vendor));
            let tolerations = Tolerations::of(&placement::tolerations(inference, vendor), observed);
            PodNeeds { gpus, vendor, tolerations }
        }
    };
    let choice = choose(workspace, observed, &needs, now);
    let is_started = observed.deployment.is_some() || observed.stateful_set.is_some();
    let mut plan = claim_plan(workspace, model, template, observed, options, &choice, now);
    if problem.is_some() && !is_started {
        // Nothing could run on the nodes.
        plan.new.clear();
    }

    let mut objects: Vec<Object> = plan.new.iter().cloned().map(Object::NodeClaim).collect();
    let mut rollout = rollout::State::Current;
    let mut starts_rollout = false;
    let mut has_ranks = false;
    let mut deletes: Vec<_> = plan.surplus.iter().map(|claim| (ObjectKind::NodeClaim, claim.clone())).collect();
    if let Some((layout, draft)) = layout.zip(draft) {
        objects.extend(services::services(workspace, &layout).into_iter().map(Object::Service));
        // Before the pods, so that none is ever without it.
        match model.and_then(|model| network_policy::network_policy(workspace, model, &layout)) {
            Some(policy) => objects.push(Object::NetworkPolicy(policy)),
            None => deletes.extend(network_policy::surplus(workspace, observed)),
        }
        let has_nodes = choice.chosen.len() >= usize::try_from(workspace.resource.count).unwrap_or(0);
        let health = status::health(model, observed, layout, has_nodes, now);
        let settled = draft.settled(&health, &observed.rollouts, &options.rollouts, now);
        // A workload stays even when its nodes go: it runs again when they come back.
        if has_nodes || is_started {
            has_ranks = settled.object.as_ref().is_some_and(|object| object.kind() == ObjectKind::StatefulSet);
            objects.extend(settled.object);
            (rollout, starts_rollout) = (settled.state, settled.starts);
        }
    }
    let objects: Vec<_> = objects.into_iter().map(Object::sealed).collect();
    let writes: Vec<_> = objects
        .iter()
        .enumerate()
        .filter_map(|(place, object)| {
            let current = observed.current(object).map(AnyObject::to_json);
            let change = object::change(&object.to_json(), current.as_ref())?;
            let is_in_vain = matches!(change, Change::Repair(_)) && observed.was_in_vain(object);
            (!is_in_vain).then_some((place, change))
        })
        .collect();
    // What is in the cluster is what is wanted, and not what somebody else made of it.
    let is_written = |kind| writes.iter().any(|(place, _)| objects.get(*place).is_some_and(|it| it.kind() == kind));
    let replacement = if has_ranks && !is_written(ObjectKind::StatefulSet) {
        replacement(workspace, observed, now)
    } else {
        Replacement::default()
    };

    let progress = claims::progress(workspace, observed, &plan);
    let findings = Findings {
        workspace,
        observed,
        options,
        choice: &choice,
        claims: progress.as_ref(),
        model,
        layout,
        problem: problem.as_ref(),
        rollout: &rollout,
        now,
    };
    let (status, notices) = findings.status();
    let deeds = deeds(&objects, &writes, &deletes, &replacement);
    Decision {
        finalizers: with_finalizer(workspace),
        objects,
        writes,
        deletes,
        replaced: replacement.pods,
        status: (workspace.status.as_ref() != Some(&status)).then_some(status),
        deeds,
        notices,
        requeue: choice
            .give_up_at
            .into_iter()
            .chain(plan.try_again_at)
            .chain(rollout.look_again_at())
            .chain(replacement.again)
            .chain(layout.and_then(|layout| status::look_again_at(model, observed, layout, now)))
            .min()
            .map(|at| seconds_until(at, now))
            .into_iter()
            .chain(awaited(problem.as_ref()))
            .chain(causes::fetches_weights(observed).then_some(PROGRESS))
            .min(),
        starts_rollout,
    }
}

/// The value; where there is none, the problem is kept.
fn noted<T>(result: Result<T, Problem>, problem: &mut Option<Problem>) -> Option<T> {
    result.map_err(|found| *problem = Some(found)).ok()
}

/// How often the progress of weights that are on their way is looked at: nothing that is watched tells of it.
const PROGRESS: Duration = Duration::from_secs(20);

/// When to reconcile again for a ConfigMap or a claim that is missing or wrong: they are not watched, and their author waits.
fn awaited(problem: Option<&Problem>) -> Option<Duration> {
    const AWAITED: Duration = Duration::from_secs(10);
    let is_awaited = |problem: &&Problem| {
        matches!(
            problem.reason,
            Reason::ConfigMissing | Reason::ConfigInvalid | Reason::ConfigDoesNotFit | Reason::WeightsClaimUnsuitable
        )
    };
    problem.filter(is_awaited).map(|_| AWAITED)
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
        reason: Reason::InferenceEmpty,
        message: "the workspace has no inference: there is nothing to run".to_owned(),
    };
    let inference = workspace.inference.as_ref().ok_or_else(nothing)?;
    let model = Model::of(workspace, inference, observed, options)?;
    let layout = layout::layout(workspace, &model, observed, options)?;
    let template = workload::workload(workspace, &model, &layout, options)?.template().cloned();
    Ok((layout, template.ok_or_else(nothing)?))
}

fn claim_plan(
    workspace: &Workspace,
    model: Option<&Model<'_>>,
    template: Option<&PodTemplateSpec>,
    observed: &Observed,
    options: &Options,
    choice: &Choice<'_>,
    now: Timestamp,
) -> ClaimPlan {
    let Provisioner::Karpenter(class) = &options.provisioner else { return ClaimPlan::default() };
    let preset = model.and_then(Model::as_preset).map(|model| model.preset);
    let requests = template.map(|template| layout::requests(template, preset.is_some())).unwrap_or_default();
    let need = Need { requests, disk: preset.map(|preset| preset.workload.disk) };
    claims::plan(workspace, observed, choice, class, &need, now)
}

/// An event for all that is created, one for all that is updated, deleted or replaced, one for each repair.
fn deeds(
    objects: &[Object],
    writes: &[(usize, Change)],
    deletes: &[(ObjectKind, String)],
    replacement: &Replacement,
) -> Vec<Notice> {
    let notice =
        |is_warning, reason: Reason, message: String| Notice { is_warning, reason, action: Action::Apply, message };
    let names = |wanted: &Change| -> Vec<String> {
        let of_kind = writes.iter().filter(|(_, change)| change == wanted);
        of_kind.filter_map(|(place, _)| objects.get(*place)).map(|it| format!("{} {}", it.kind(), it.name())).collect()
    };
    let mut notices = Vec::new();
    for (change, reason, verb) in
        [(Change::Create, Reason::Created, "created"), (Change::Update, Reason::Updated, "updated")]
    {
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
            notices.push(notice(true, Reason::Repaired, message));
        }
    }
    if !deletes.is_empty() {
        let names: Vec<_> = deletes.iter().map(|(kind, name)| format!("{kind} {name}")).collect();
        notices.push(notice(false, Reason::Deleted, format!("deleted {}, which is not needed", text::list(&names))));
    }
    if !replacement.pods.is_empty() {
        let names: Vec<_> = replacement.pods.iter().map(|pod| format!("Pod {}", pod.name)).collect();
        let message = format!("deleted {}, which the workload's last template replaces", text::list(&names));
        notices.push(notice(false, Reason::PodsReplaced, message));
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

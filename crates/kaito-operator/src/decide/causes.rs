//! Why the model does not answer yet, by the status of its pods and of the object that makes them.

mod engine;
mod kind;
mod ranks;

use std::time::Duration;

use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        core::v1::{ContainerStateRunning, ContainerStateTerminated, ContainerStatus, Pod, PodCondition},
    },
    jiff::{SignedDuration, Timestamp},
};

pub use kind::CauseKind;

use super::observed::{Observed, has_ended, is_going, name};
use crate::{
    reason::Reason,
    runtime::{ENGINE, SERVER, weights},
    text,
};

/// Why the model does not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// What kind of cause.
    pub kind: CauseKind,
    /// The pod, where one pod is concerned.
    pub pod: Option<String>,
    /// The container, where it is another than the one whose log kubectl shows unless told otherwise.
    pub container: Option<String>,
    /// What the cluster says of it.
    pub detail: String,
}

/// Why an engine ended that said this last, where it is known.
pub fn engine_reason(said: &str) -> Option<Reason> {
    engine::kind(said).map(CauseKind::reason)
}

impl Cause {
    /// The cause as a sentence, with what to do about it.
    pub fn message(&self, others: usize) -> String {
        let mut message = match &self.pod {
            Some(pod) => format!("pod {pod}: {}", self.detail.trim_end().trim_end_matches('.')),
            None => self.detail.trim_end().trim_end_matches('.').to_owned(),
        };
        if others > 0 {
            message.push_str(&format!(" (and {} likewise)", text::count(others, "pod")));
        }
        match (self.kind, &self.container) {
            (CauseKind::ContainerCrashLoopBackOff, Some(container)) => {
                message.push_str(&format!(". See kubectl logs --previous --container {container} of the pod"));
            }
            _ if self.kind.next_step().is_empty() => {}
            _ => message.push_str(&format!(". {}", self.kind.next_step())),
        }
        message
    }
}

/// What the pods of a workload are measured by.
#[derive(Debug, Clone, Copy)]
pub struct Expected {
    /// How many there should be.
    pub pods: usize,
    /// How long the model may take to load.
    pub limit: Duration,
    /// The time.
    pub now: Timestamp,
}

/// The worst cause of all pods, and how many other pods have it too.
pub fn worst(observed: &Observed, expected: &Expected) -> (Cause, usize) {
    let (causes, _) = all(observed, expected);
    let worst = causes.iter().min_by_key(|cause| cause.kind).cloned().unwrap_or(Cause {
        kind: CauseKind::PodsPending,
        pod: None,
        container: None,
        detail: "the pods are being made".to_owned(),
    });
    let others = causes.iter().filter(|cause| cause.kind == worst.kind && cause.pod != worst.pod).count();
    (worst, others)
}

/// When another cause may be the worst though nothing happens.
pub fn look_again_at(observed: &Observed, expected: &Expected) -> Option<Timestamp> {
    all(observed, expected).1
}

fn all(observed: &Observed, expected: &Expected) -> (Vec<Cause>, Option<Timestamp>) {
    let mut pods: Vec<&Pod> = observed.pods.iter().map(AsRef::as_ref).filter(|pod| !is_going(&pod.metadata)).collect();
    pods.sort_by(|a, b| name(&a.metadata).cmp(name(&b.metadata)));
    let set = observed.stateful_set.as_deref().filter(|_| expected.pods > 1);
    let (mut causes, again) =
        set.map(|set| ranks::of_ranks(observed, name(&set.metadata), expected)).unwrap_or_default();
    // A pod that has ended matters only until another pod takes its place.
    let alive = pods.iter().filter(|pod| !has_ended(pod)).count();
    if alive < expected.pods {
        // Once all pods exist, earlier failures to create them no longer matter.
        causes.extend(refused_pods(observed));
    }
    // A rank loads when all of them are there.
    let last_start = pods.iter().filter_map(|pod| engine_start(pod)).max().filter(|_| set.is_some());
    let overdue = |pod: &Pod| {
        let start = engine_start(pod)?;
        last_start.unwrap_or(start).checked_add(SignedDuration::try_from(expected.limit).ok()?).ok()
    };
    let told = pods.iter().filter(|pod| (alive == 0 || !has_ended(pod)) && !is_ready(pod));
    causes.extend(told.clone().filter_map(|pod| of_pod(pod, overdue(pod), expected, observed)));
    let overdues = told.filter_map(|pod| overdue(pod)).filter(|at| *at > expected.now);
    let again = overdues.chain(again).min();
    (causes, again)
}

/// When a pod's engine started, where it has one that runs. Nothing else than [`CauseKind::ModelLoadingTooLong`] tells of one that
/// loads for ever: its supervisor is alive all the time.
fn engine_start(pod: &Pod) -> Option<Timestamp> {
    let (_, running) = computing(pod).filter(|container| container.name == ENGINE).and_then(running)?;
    running.started_at.as_ref().map(|time| time.0)
}

/// Why no pods can be created.
fn refused_pods(observed: &Observed) -> Option<Cause> {
    let of_deployment = observed.deployment.as_deref().and_then(replica_failure);
    let message = of_deployment.or_else(|| observed.pod_failures.last().map(|failure| failure.message.clone()))?;
    Some(refusal(message))
}

/// A refusal of the API server, by what it says.
pub fn refusal(message: String) -> Cause {
    let is_quota = message.contains("exceeded quota") || message.contains("failed quota");
    let kind = if is_quota { CauseKind::QuotaExceeded } else { CauseKind::PodsForbidden };
    Cause { kind, pod: None, container: None, detail: message }
}

fn replica_failure(deployment: &Deployment) -> Option<String> {
    let conditions = deployment.status.as_ref()?.conditions.as_ref()?;
    let failure = conditions.iter().find(|it| it.type_ == "ReplicaFailure" && it.status == "True")?;
    failure.message.clone()
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// A condition of a pod.
pub fn condition<'a>(pod: &'a Pod, type_: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == type_)
}

/// Whether a pod answers.
pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|ready| ready.status == "True")
}

/// Why a pod is not ready.
fn of_pod(pod: &Pod, overdue: Option<Timestamp>, expected: &Expected, observed: &Observed) -> Option<Cause> {
    let cause =
        |kind, detail: String| Some(Cause { kind, pod: Some(name(&pod.metadata).to_owned()), container: None, detail });
    let status = pod.status.as_ref()?;
    if phase(pod) == "Failed" {
        let reason = status.reason.as_deref().unwrap_or("Failed");
        let detail = format!("{reason}: {}", status.message.as_deref().unwrap_or("it ended and is not started again"));
        let kind = if reason == "Evicted" { CauseKind::PodEvicted } else { CauseKind::PodFailed };
        return cause(kind, detail);
    }
    if let Some(unscheduled) = condition(pod, "PodScheduled").filter(|it| it.status == "False") {
        let detail = unscheduled.message.clone().unwrap_or_else(|| "no node takes it".to_owned());
        let reason = unscheduled.reason.as_deref();
        return cause(
            if reason == Some("Unschedulable") { CauseKind::Unschedulable } else { CauseKind::PodsPending },
            detail,
        );
    }
    let statuses = || status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    let fetched = fetched_weights(pod, observed);
    // How it ended before is no news while it gets on.
    let counted = statuses().filter(|container| fetched.is_none() || container.name != weights::FETCHER);
    let told = counted.filter_map(|container| Some((of_container(container)?, container)));
    if let Some(((kind, mut detail), container)) = told.min_by_key(|((kind, _), _)| *kind) {
        if let Some(secret) = weights::token_secret(pod).filter(|_| container.name == weights::FETCHER) {
            detail = format!("{}; its token is HF_TOKEN of the Secret {secret}", detail.trim_end());
        }
        let container = (container.name != SERVER).then(|| container.name.clone());
        return Some(Cause { container, ..cause(kind, detail)? });
    }
    let since = |running: &ContainerStateRunning| {
        running.started_at.as_ref().map(|time| format!(" since {}", text::time(time.0))).unwrap_or_default()
    };
    if let Some(progress) = fetched {
        return cause(CauseKind::WeightsFetching, progress);
    }
    let mut first = status.init_container_statuses.iter().flatten().filter_map(running);
    if let Some((init, state)) = first.next() {
        return cause(CauseKind::PodsStarting, format!("init container {} runs{}", init.name, since(state)));
    }
    // A pod has started when all of its containers run: an engine's image may be fetched for long after the server runs.
    let waits: Vec<&ContainerStatus> = statuses().filter(|container| has_not_run(container)).collect();
    if let (true, Some((container, running))) = (waits.is_empty(), computing(pod).and_then(running)) {
        if container.started == Some(true) && was_ready(pod) {
            let what = if container.name == ENGINE {
                "the engine does not answer: it has ended, loads again, or is stuck. The server's /healthz says which"
            } else {
                "the server runs, but its readiness probe fails"
            };
            return cause(CauseKind::ServerUnhealthy, what.to_owned());
        }
        let (since, limit) =
            (since(running), text::duration(i64::try_from(expected.limit.as_secs()).unwrap_or(i64::MAX)));
        return if overdue.is_some_and(|at| at <= expected.now) {
            cause(CauseKind::ModelLoadingTooLong, format!("the model is loading{since}, and may take {limit}"))
        } else {
            cause(CauseKind::ModelLoading, format!("the model is loading{since}; it may take {limit}"))
        };
    }
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    match (node, waits.first()) {
        (Some(node), Some(image)) => {
            cause(CauseKind::PodsStarting, format!("node {node} fetches and starts image {}", image.image))
        }
        (Some(node), None) => cause(CauseKind::PodsStarting, format!("node {node} starts it")),
        (None, _) => cause(CauseKind::PodsPending, "it waits for the scheduler".to_owned()),
    }
}

/// How far the weights are that are on their way into a pod. A container that was restarted gets on only where it says so: it may be
/// about to end as it did before.
fn fetched_weights(pod: &Pod, observed: &Observed) -> Option<String> {
    let fetcher = weights::running_fetcher(pod)?;
    let progress = observed.weights_progress.get(name(&pod.metadata));
    let told = match progress {
        None if fetcher.restart_count > 0 => return None,
        None => "has begun",
        Some(progress) => progress.as_str(),
    };
    Some(format!("init container {}{}: {told}", fetcher.name, times(fetcher)))
}

/// Whether weights are on their way into a pod of the workspace.
pub fn fetches_weights(observed: &Observed) -> bool {
    observed.pods.iter().any(|pod| !is_going(&pod.metadata) && weights::running_fetcher(pod).is_some())
}

fn has_not_run(container: &ContainerStatus) -> bool {
    container.state.as_ref().is_none_or(|state| state.running.is_none() && state.terminated.is_none())
}

fn running(container: &ContainerStatus) -> Option<(&ContainerStatus, &ContainerStateRunning)> {
    Some((container, container.state.as_ref()?.running.as_ref()?))
}

/// The container that loads the model: the engine where there is one, else the server; of a user's own pods the first.
fn computing(pod: &Pod) -> Option<&ContainerStatus> {
    let containers = pod.status.as_ref()?.container_statuses.as_ref()?;
    let named = |name: &str| containers.iter().find(|container| container.name == name);
    named(ENGINE).or_else(|| named(SERVER)).or_else(|| containers.first())
}

/// Whether the pod has been ready since what computes last started: if so, the condition changed after the start.
fn was_ready(pod: &Pod) -> bool {
    let started = computing(pod).and_then(running).and_then(|(_, running)| Some(running.started_at.as_ref()?.0));
    let unready_since =
        condition(pod, "Ready").and_then(|ready| ready.last_transition_time.as_ref()).map(|time| time.0);
    matches!((started, unready_since), (Some(started), Some(since)) if since > started)
}

const IMAGE_REASONS: &[&str] = &[
    "ErrImageNeverPull",
    "ErrImagePull",
    "ImageInspectError",
    "ImagePullBackOff",
    "InvalidImageName",
    "RegistryUnavailable",
    "SignatureValidationFailed",
];
const CONFIG_REASONS: &[&str] = &[
    "CreateContainerConfigError",
    "CreateContainerError",
    "PostStartHookError",
    "PreCreateHookError",
    "RunContainerError",
];

fn of_container(container: &ContainerStatus) -> Option<(CauseKind, String)> {
    let state = container.state.as_ref();
    let waiting = state.and_then(|state| state.waiting.as_ref());
    let reason = waiting.and_then(|waiting| waiting.reason.as_deref()).unwrap_or_default();
    let said = waiting.and_then(|waiting| waiting.message.as_deref()).unwrap_or_default();
    if IMAGE_REASONS.contains(&reason) {
        return Some((CauseKind::ImagePullError, format!("image {}: {reason}: {said}", container.image)));
    }
    if CONFIG_REASONS.contains(&reason) {
        return Some((CauseKind::ContainerConfigError, format!("container {}: {reason}: {said}", container.name)));
    }
    // A restarted container keeps the cause of its last end until it is ready; otherwise the reason would change back and forth
    // with each restart.
    let ended = state
        .and_then(|state| state.terminated.as_ref())
        .filter(|ended| ended.exit_code != 0)
        .or_else(|| container.last_state.as_ref()?.terminated.as_ref().filter(|_| !container.ready));
    let ended = ended.filter(|ended| ended.exit_code != 0 || reason == "CrashLoopBackOff");
    match ended {
        Some(ended) if ended.reason.as_deref() == Some("OOMKilled") => Some((
            CauseKind::ContainerOomKilled,
            format!("container {} ran out of memory{}", container.name, times(container)),
        )),
        Some(ended) => {
            let said = ended.message.as_deref().filter(|_| container.name == ENGINE);
            let kind = said.and_then(engine::kind).unwrap_or(CauseKind::ContainerCrashLoopBackOff);
            Some((kind, crash(container, ended)))
        }
        None if reason == "CrashLoopBackOff" => Some((
            CauseKind::ContainerCrashLoopBackOff,
            format!("container {} ends again and again{}", container.name, times(container)),
        )),
        None => None,
    }
}

/// The longest termination message that is quoted: it may be pages of a log.
const LONGEST_TERMINATION_MESSAGE: usize = 300;

fn crash(container: &ContainerStatus, ended: &ContainerStateTerminated) -> String {
    let status = match ended.signal {
        Some(signal) if signal != 0 => format!("signal {signal}"),
        _ => format!("exit status {}", ended.exit_code),
    };
    let mut text = format!("container {} ended with {status}{}", container.name, times(container));
    let said = ended.message.as_deref().unwrap_or_default();
    let last_words = engine::last_words(said).map(str::trim_end);
    let words = last_words.unwrap_or_else(|| said.trim());
    let skipped = words.chars().count().saturating_sub(LONGEST_TERMINATION_MESSAGE);
    match (words, skipped, last_words) {
        ("", ..) => {}
        (words, 0, _) => text.push_str(&format!(": {words}")),
        // An engine's begin with what is wrong; a log ends with it.
        (words, _, Some(_)) => {
            let head: String = words.chars().take(LONGEST_TERMINATION_MESSAGE).collect();
            text.push_str(&format!(": {head} [...]"));
        }
        (words, skipped, None) => {
            let tail: String = words.chars().skip(skipped).collect();
            text.push_str(&format!(": ...{tail}"));
        }
    }
    text
}

fn times(container: &ContainerStatus) -> String {
    match container.restart_count {
        0 => String::new(),
        1 => ", was restarted once".to_owned(),
        count => format!(", was restarted {count} times"),
    }
}

/// When each phase of a pod's start ended, as far as it has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Milestones {
    /// A node was found.
    pub scheduled: Option<Timestamp>,
    /// The container that loads the model started.
    pub started: Option<Timestamp>,
    /// The server answered.
    pub ready: Option<Timestamp>,
}

/// When each phase of a pod's start ended.
pub fn milestones(pod: &Pod) -> Milestones {
    let when = |type_: &str| {
        let condition = condition(pod, type_).filter(|condition| condition.status == "True")?;
        condition.last_transition_time.as_ref().map(|time| time.0)
    };
    let started = computing(pod).and_then(running).and_then(|(_, running)| running.started_at.as_ref());
    Milestones { scheduled: when("PodScheduled"), started: started.map(|time| time.0), ready: when("Ready") }
}

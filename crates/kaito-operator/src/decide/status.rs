//! What a workspace's status says.

use std::time::Duration;

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use kaito_presets::WorkloadKind;

use super::{
    Notice, Problem,
    causes::{self, Cause},
    claims::Progress,
    layout::Layout,
    left_claims,
    nodes::{Choice, GRACE},
    observed::{Observed, name},
    options::{Options, Provisioner},
    rollout::{Health, State},
    text, workload,
};
use crate::{
    runtime::{self, ServerConfig},
    workspace::{
        INFERENCE_READY, InferenceSpec, NODE_CLAIM_READY, RESOURCE_READY, Runtime, WORKSPACE_READY, Workspace,
        WorkspaceState, WorkspaceStatus,
    },
};

/// Type of the condition that says whether adapters act as the workspace says; only where there are any.
pub const ADAPTERS_READY: &str = "AdaptersReady";

/// Type of the condition that says what of the ConfigMap that `inference.config` names has an effect; only where it names one.
pub const CONFIG_APPLIED: &str = "ConfigApplied";
/// Type of the condition that says what is due to change in the pods; only while something is.
pub const UP_TO_DATE: &str = "UpToDate";

/// Whether a condition says something of whether the model answers.
fn counts(type_: &str) -> bool {
    ![ADAPTERS_READY, CONFIG_APPLIED, UP_TO_DATE].contains(&type_)
}

/// A condition, before it is compared with the last one.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Verdict {
    type_: &'static str,
    is_true: bool,
    /// Whether something is wrong, rather than on its way.
    is_failure: bool,
    reason: String,
    message: String,
}

impl Verdict {
    fn good(type_: &'static str, reason: &str, message: String) -> Self {
        Self { type_, is_true: true, is_failure: false, reason: reason.to_owned(), message }
    }

    fn waiting(type_: &'static str, reason: &str, message: String) -> Self {
        Self { type_, is_true: false, is_failure: false, reason: reason.to_owned(), message }
    }

    fn failing(type_: &'static str, reason: &str, message: String) -> Self {
        Self { type_, is_true: false, is_failure: true, reason: reason.to_owned(), message }
    }
}

/// What the status is made from.
pub struct Findings<'a> {
    /// The workspace, with its last status.
    pub workspace: &'a Workspace,
    /// The cluster.
    pub observed: &'a Observed,
    /// The installation.
    pub options: &'a Options,
    /// The nodes.
    pub choice: &'a Choice<'a>,
    /// The claims, where there are any.
    pub claims: Option<&'a Progress>,
    /// The layout of the model.
    pub layout: Option<Layout>,
    /// Why there can be no workload.
    pub problem: Option<&'a Problem>,
    /// How far the pods are from what this controller makes.
    pub rollout: &'a State,
    /// The time.
    pub now: Timestamp,
}

impl Findings<'_> {
    /// The status, and a notice of each change in it.
    pub fn status(&self) -> (WorkspaceStatus, Vec<Notice>) {
        let resource = self.resource_ready();
        let mut verdicts = Vec::new();
        verdicts.extend(self.node_claim_ready());
        if let Some(inference) = &self.workspace.inference {
            let resource_time = self.transition(&resource);
            verdicts.push(self.inference_ready(inference, &resource, resource_time));
            verdicts.extend(self.adapters_ready(inference));
            verdicts.extend(self.config_applied(inference));
            verdicts.extend(self.up_to_date());
        }
        verdicts.insert(0, resource);
        let state = state(&verdicts);
        verdicts.push(self.workspace_ready(&verdicts));
        let status = WorkspaceStatus {
            worker_nodes: self.worker_nodes(),
            conditions: verdicts.iter().map(|verdict| self.condition(verdict)).collect(),
            state: Some(state),
            target_node_count: Some(self.workspace.resource.count),
        };
        (status, verdicts.iter().filter_map(|verdict| self.notice(verdict)).collect())
    }

    /// Of a workspace that is being deleted and waits for its claims.
    pub fn deleting(&self, claims: &[String]) -> WorkspaceStatus {
        let message = format!(
            "waits until {} gone: {}",
            if claims.len() == 1 { "a NodeClaim is" } else { "NodeClaims are" },
            text::list(claims)
        );
        let verdict = Verdict::waiting(WORKSPACE_READY, "Deleting", message);
        let mut status = self.workspace.status.clone().unwrap_or_default();
        status.state = Some(WorkspaceState::Pending);
        status.conditions.retain(|condition| condition.type_ != WORKSPACE_READY);
        status.conditions.push(self.condition(&verdict));
        status
    }

    fn worker_nodes(&self) -> Vec<String> {
        let nodes = self.choice.chosen.iter().chain(&self.choice.expected_back);
        let mut names: Vec<_> = nodes.map(|node| name(&node.metadata).to_owned()).collect();
        names.sort();
        names
    }

    fn resource_ready(&self) -> Verdict {
        let wanted = usize::try_from(self.workspace.resource.count).unwrap_or(0);
        let Choice { chosen, expected_back, turned_down, unmatched, .. } = self.choice;
        if chosen.len() >= wanted {
            let mut names: Vec<_> = chosen.iter().map(|node| name(&node.metadata)).collect();
            names.sort_unstable();
            let on_cpus = self.workspace.preset().is_some() && !self.workspace.runtime().is_ok_and(runtime::uses_gpus);
            let note = if on_cpus { "; the runtime kaito computes on CPUs" } else { "" };
            let mut message = format!("{}: {}{note}", text::count(wanted, "ready node"), text::list(&names));
            if let Some(note) = left_claims::note(self.workspace, self.observed, self.options) {
                message.push_str(&format!("; {note}"));
            }
            return Verdict::good(RESOURCE_READY, "NodesReady", message);
        }
        let missing = wanted - chosen.len();
        let mut message = format!("{missing} of {} missing", text::count(wanted, "node"));
        let reasons: Vec<_> = turned_down.iter().map(|(node, why)| format!("{node} {why}")).collect();
        if !reasons.is_empty() {
            message.push_str(&format!("; {}", text::list(&reasons)));
        }
        let selector = selector_text(self.workspace);
        message.push_str(&match (*unmatched, reasons.is_empty()) {
            (0, true) => "; the cluster has no nodes".to_owned(),
            (0, false) => String::new(),
            (unmatched, true) => {
                format!("; none of the cluster's {} has the labels {selector}", text::count(unmatched, "node"))
            }
            (unmatched, false) => format!("; {} without the labels {selector}", text::count(unmatched, "other node")),
        });
        if !expected_back.is_empty() {
            let grace = text::duration(i64::try_from(GRACE.as_secs()).unwrap_or_default());
            message.push_str(&format!(
                ". Another is taken for a node that was in use when it has been unready for {grace}"
            ));
            return Verdict::waiting(RESOURCE_READY, "NodesMissing", message);
        }
        match (&self.options.provisioner, self.claims) {
            (Provisioner::None, _) => {
                let nodes = match &self.workspace.resource.instance_type {
                    Some(instance_type) => format!("{instance_type} nodes"),
                    None => "nodes".to_owned(),
                };
                message.push_str(&format!(". Add {nodes} with the labels {selector}, or label ready ones so"));
                Verdict::failing(RESOURCE_READY, "NodesMissing", message)
            }
            (Provisioner::Karpenter(_), Some(claims)) => {
                let verdict = if claims.is_failing { Verdict::failing } else { Verdict::waiting };
                verdict(RESOURCE_READY, if claims.is_failing { claims.reason } else { "NodesMissing" }, {
                    message.push_str("; see NodeClaimReady");
                    message
                })
            }
            (Provisioner::Karpenter(_), None) => Verdict::waiting(RESOURCE_READY, "NodesMissing", message),
        }
    }

    fn node_claim_ready(&self) -> Option<Verdict> {
        let missing = self.choice.chosen.len() < usize::try_from(self.workspace.resource.count).unwrap_or(0);
        if let (Provisioner::Karpenter(_), super::observed::Claims::Absent, true) =
            (&self.options.provisioner, &self.observed.claims, missing)
        {
            return Some(Verdict::failing(
                NODE_CLAIM_READY,
                "KarpenterMissing",
                "the cluster does not know karpenter.sh/v1 NodeClaims: install Karpenter, or run the controller with \
                 --node-provisioner none and add nodes yourself"
                    .to_owned(),
            ));
        }
        self.claims.map(|progress| Verdict {
            type_: NODE_CLAIM_READY,
            is_true: progress.is_ready,
            is_failure: progress.is_failing,
            reason: progress.reason.to_owned(),
            message: progress.message.clone(),
        })
    }

    fn inference_ready(&self, inference: &InferenceSpec, resource: &Verdict, resource_time: Time) -> Verdict {
        if let Some(problem) = self.problem {
            return Verdict::failing(INFERENCE_READY, problem.reason, problem.message.clone());
        }
        if let Some(refusal) = self.observed.refusals.first() {
            let cause = causes::refusal(refusal.message.clone());
            let reason = match cause.kind {
                causes::CauseKind::QuotaExceeded => cause.kind.reason(),
                _ => refusal.reason,
            };
            let message = format!("the API server refuses {} {}: {}", refusal.kind, refusal.name, refusal.message);
            return Verdict::failing(INFERENCE_READY, reason, message);
        }
        let workload = Replicas::of(self.observed, self.layout);
        let Some(workload) = workload else {
            return if resource.is_true {
                Verdict::waiting(INFERENCE_READY, "PodsPending", "the pods are being made".to_owned())
            } else {
                Verdict::waiting(INFERENCE_READY, "WaitingForNodes", "starts when the nodes are ready".to_owned())
            };
        };
        if workload.is_ready() {
            let answers = match workload.wanted {
                1 => "1 pod answers".to_owned(),
                wanted => format!("{} of {wanted} pods answer", workload.ready),
            };
            let mut message = format!("{answers} at {}", address(self.workspace));
            if let Some(times) = self.times(resource_time) {
                message.push_str(&format!("; {times}"));
            }
            return Verdict::good(INFERENCE_READY, "InferenceReady", message);
        }
        let (cause, others) = causes::worst(self.observed, workload.wanted, limit(inference));
        Self::not_ready(&cause, others, &workload)
    }

    fn not_ready(cause: &Cause, others: usize, workload: &Replicas) -> Verdict {
        let mut message = cause.message(others);
        if workload.ready > 0 && workload.wanted > 1 && workload.kind == WorkloadKind::Deployment {
            message.push_str(&format!("; {} of {} answer", workload.ready, text::count(workload.wanted, "pod")));
        }
        let verdict = if cause.kind.is_failure() { Verdict::failing } else { Verdict::waiting };
        verdict(INFERENCE_READY, cause.kind.reason(), message)
    }

    fn adapters_ready(&self, inference: &InferenceSpec) -> Option<Verdict> {
        let preset = workload::preset(inference.preset.as_ref()?).ok()?;
        if inference.adapters.is_empty() {
            return None;
        }
        let runtime = self.workspace.runtime().unwrap_or(Runtime::Kaito);
        let names: Vec<_> = inference.adapters.iter().map(|adapter| adapter.source.name.as_str()).collect();
        Some(match runtime::adapters_problem(runtime, preset, &inference.adapters) {
            Some(problem) => Verdict::waiting(ADAPTERS_READY, problem.reason, problem.message),
            None => Verdict::good(ADAPTERS_READY, "AdaptersLoaded", format!("the server loads {}", text::list(&names))),
        })
    }

    fn config_applied(&self, inference: &InferenceSpec) -> Option<Verdict> {
        let name = inference.config.as_deref()?;
        let preset = workload::preset(inference.preset.as_ref()?).ok()?;
        let runtime = self.workspace.runtime().ok()?;
        let ServerConfig { flags, sizes, ignored, needless } =
            workload::config(self.workspace, runtime, preset, self.observed).ok()?;
        let sizes = [sizes.tensor.is_some(), sizes.pipeline.is_some(), sizes.data.is_some(), sizes.context.is_some()];
        let taken = flags.len() + sizes.iter().filter(|is_given| **is_given).count();
        let mut message = format!("the server gets {} from ConfigMap {name}", text::count(taken, "flag"));
        if !needless.is_empty() {
            message.push_str(&format!("; not needed: {}", needless.join("; ")));
        }
        if ignored.is_empty() {
            return Some(Verdict::good(CONFIG_APPLIED, "FlagsApplied", message));
        }
        Some(Verdict::waiting(CONFIG_APPLIED, "FlagsIgnored", format!("{}; {message}", ignored.join("; "))))
    }

    fn up_to_date(&self) -> Option<Verdict> {
        match self.rollout {
            State::Current => None,
            State::Due { message, .. } => Some(Verdict::waiting(UP_TO_DATE, "RolloutDue", message.clone())),
            State::UnderWay { since, .. } => {
                let pause = text::duration(i64::try_from(self.options.rollouts.pause.as_secs()).unwrap_or(i64::MAX));
                let message = format!(
                    "the pods change since {}; when they have answered for {pause}, the next workspace's may",
                    text::time(*since)
                );
                Some(Verdict::waiting(UP_TO_DATE, "RolloutUnderWay", message))
            }
        }
    }

    fn workspace_ready(&self, verdicts: &[Verdict]) -> Verdict {
        let counted = || verdicts.iter().filter(|verdict| counts(verdict.type_) && !verdict.is_true);
        // What fails tells more than what waits for it.
        match counted().find(|verdict| verdict.is_failure).or_else(|| counted().next()) {
            Some(verdict) => Verdict {
                type_: WORKSPACE_READY,
                message: format!("{}: {}", verdict.type_, verdict.message),
                ..verdict.clone()
            },
            None if self.workspace.inference.is_some() => Verdict::good(
                WORKSPACE_READY,
                "WorkspaceReady",
                format!("the model answers at {}", address(self.workspace)),
            ),
            None => Verdict::good(WORKSPACE_READY, "WorkspaceReady", "the nodes are ready".to_owned()),
        }
    }

    /// How long each phase took, for the pod that was ready last.
    fn times(&self, nodes_ready: Time) -> Option<String> {
        let pods = self.observed.pods.iter().filter(|pod| causes::is_ready(pod));
        let (pod, milestones) = pods
            .map(|pod| (pod, causes::milestones(pod)))
            .max_by_key(|(pod, milestones)| (milestones.ready, name(&pod.metadata).to_owned()))?;
        let created = self.workspace.metadata.creation_timestamp.as_ref()?.0;
        let pod_created = pod.metadata.creation_timestamp.as_ref()?.0;
        let span = |from, to| text::duration(text::seconds_between(from, to));
        let mut parts = Vec::new();
        // Of a pod that took another's place, the time before it says nothing.
        let is_first = nodes_ready.0 <= pod_created;
        if is_first {
            parts.push(format!("nodes {}", span(created, nodes_ready.0)));
        }
        let causes::Milestones { scheduled, started, ready } = milestones;
        let (scheduled, started, ready) = (scheduled?, started?, ready?);
        parts.push(format!("scheduling {}", span(pod_created, scheduled)));
        parts.push(format!("images {}", span(scheduled, started)));
        parts.push(format!("model {}", span(started, ready)));
        let begin = if is_first { created } else { pod_created };
        Some(format!("ready after {}: {}", span(begin, ready), parts.join(", ")))
    }

    fn previous(&self, type_: &str) -> Option<&Condition> {
        self.workspace.status.as_ref()?.condition(type_)
    }

    fn transition(&self, verdict: &Verdict) -> Time {
        let status = status_of(verdict.is_true);
        match self.previous(verdict.type_).filter(|previous| previous.status == status) {
            Some(previous) => previous.last_transition_time.clone(),
            // The API server keeps no fractions.
            None => Time(Timestamp::from_second(self.now.as_second()).unwrap_or(self.now)),
        }
    }

    fn condition(&self, verdict: &Verdict) -> Condition {
        Condition {
            type_: verdict.type_.to_owned(),
            status: status_of(verdict.is_true).to_owned(),
            reason: verdict.reason.clone(),
            message: truncated(&verdict.message),
            observed_generation: self.workspace.metadata.generation,
            last_transition_time: self.transition(verdict),
        }
    }

    fn notice(&self, verdict: &Verdict) -> Option<Notice> {
        // The sum of the others has nothing to say before it is good.
        if verdict.type_ == WORKSPACE_READY && !verdict.is_true {
            return None;
        }
        let status = status_of(verdict.is_true);
        let is_new = self
            .previous(verdict.type_)
            .is_none_or(|previous| previous.status != status || previous.reason != verdict.reason);
        is_new.then(|| Notice {
            is_warning: verdict.is_failure
                || (matches!(verdict.type_, ADAPTERS_READY | CONFIG_APPLIED) && !verdict.is_true),
            reason: verdict.reason.clone(),
            action: verdict.type_.to_owned(),
            message: verdict.message.clone(),
        })
    }
}

/// What the API server takes of a condition's message, and what an event's note may be.
const LONGEST_MESSAGE: usize = 1000;

/// A message that is cut, where it must be, with a sign of it.
pub fn truncated(message: &str) -> String {
    if message.chars().count() <= LONGEST_MESSAGE {
        return message.to_owned();
    }
    message.chars().take(LONGEST_MESSAGE - 3).chain("...".chars()).collect()
}

fn status_of(is_true: bool) -> &'static str {
    if is_true { "True" } else { "False" }
}

fn state(verdicts: &[Verdict]) -> WorkspaceState {
    let mut counted = verdicts.iter().filter(|verdict| counts(verdict.type_));
    if counted.clone().all(|verdict| verdict.is_true) {
        WorkspaceState::Ready
    } else if counted.any(|verdict| verdict.is_failure) {
        WorkspaceState::NotReady
    } else {
        WorkspaceState::Pending
    }
}

/// Where clients in the cluster find the model.
fn address(workspace: &Workspace) -> String {
    format!("http://{}.{}.svc:80", workspace.name(), workspace.namespace())
}

fn limit(inference: &InferenceSpec) -> Duration {
    let preset = inference.preset.as_ref().and_then(|spec| workload::preset(spec).ok());
    preset.map_or(Duration::from_secs(1800), |preset| preset.workload.ready_within)
}

/// `apps=large_model,zone in (a, b)`
fn selector_text(workspace: &Workspace) -> String {
    let selector = &workspace.resource.label_selector;
    let labels = selector.match_labels.iter().flatten().map(|(key, value)| format!("{key}={value}"));
    let terms = selector.match_expressions.iter().flatten().map(|term| {
        let values = term.values.as_deref().unwrap_or_default().join(", ");
        format!("{} {} ({values})", term.key, term.operator.to_lowercase())
    });
    labels.chain(terms).collect::<Vec<_>>().join(",")
}

/// How a workspace's workload is.
pub fn health(workspace: &Workspace, observed: &Observed, layout: Layout, has_nodes: bool) -> Health {
    let none = Health { has_nodes, answers_since: None, fails: false };
    let (Some(replicas), Some(inference)) = (Replicas::of(observed, Some(layout)), &workspace.inference) else {
        return none;
    };
    if replicas.is_ready() {
        let ready =
            observed.pods.iter().filter(|pod| causes::is_ready(pod)).filter_map(|pod| causes::milestones(pod).ready);
        return Health { answers_since: Some(ready.max().unwrap_or(Timestamp::UNIX_EPOCH)), ..none };
    }
    let (cause, _) = causes::worst(observed, replicas.wanted, limit(inference));
    Health { fails: replicas.ready == 0 && cause.kind.is_failure(), ..none }
}

/// How many pods a workload has.
struct Replicas {
    kind: WorkloadKind,
    wanted: usize,
    ready: usize,
    /// Whether all pods are of the last template.
    is_current: bool,
}

impl Replicas {
    fn of(observed: &Observed, layout: Option<Layout>) -> Option<Self> {
        let layout = layout?;
        let wanted = layout.pods as usize;
        let number = |count: Option<i32>| usize::try_from(count.unwrap_or(0)).unwrap_or(0);
        Some(match layout.kind {
            WorkloadKind::Deployment => {
                let deployment = observed.deployment.as_ref()?;
                let status = deployment.status.clone().unwrap_or_default();
                let is_current = status.observed_generation >= deployment.metadata.generation
                    && number(status.updated_replicas) >= wanted;
                Self { kind: layout.kind, wanted, ready: number(status.ready_replicas), is_current }
            }
            WorkloadKind::StatefulSet => {
                let set = observed.stateful_set.as_ref()?;
                let status = set.status.clone().unwrap_or_default();
                let is_current =
                    status.observed_generation >= set.metadata.generation && number(status.updated_replicas) >= wanted;
                Self { kind: layout.kind, wanted, ready: number(status.ready_replicas), is_current }
            }
        })
    }

    fn is_ready(&self) -> bool {
        self.is_current && self.ready >= self.wanted
    }
}

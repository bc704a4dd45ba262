//! What a workspace's status says.

mod replicas;
mod verdict;

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kaito_presets::WorkloadKind;
use replicas::{Replicas, expected};
pub use replicas::{health, look_again_at};
pub use verdict::truncated;
use verdict::{History, Verdict};

use super::{
    causes::{self, Cause},
    claims::{Progress, ProgressState},
    decision::Notice,
    left_claims,
    model::Model,
    nodes::{Choice, GRACE},
    observed::{Claims, Observed, name},
    options::{Options, Provisioner},
    rollout::State,
};
use crate::{
    layout::Layout,
    reason::{Problem, Reason},
    runtime::{self, ServerConfig},
    text,
    workspace::{
        ConditionType::{
            AdaptersReady, ConfigApplied, InferenceReady, NodeClaimReady, ResourceReady, UpToDate, WorkspaceReady,
        },
        InferenceSpec, Runtime, Workspace, WorkspaceState, WorkspaceStatus,
    },
};

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
    /// How far Karpenter is with the node claims, where there are any.
    pub claims: Option<&'a Progress>,
    /// What the workspace serves, where that can be told.
    pub model: Option<&'a Model<'a>>,
    /// How the model is spread over pods and GPUs, where that can be told.
    pub layout: Option<Layout>,
    /// Why there can be no workload.
    pub problem: Option<&'a Problem>,
    /// How far the workload's rollout is.
    pub rollout: &'a State,
    /// The time.
    pub now: Timestamp,
}

impl Findings<'_> {
    /// The status, and an event for each change in it.
    pub fn status(&self) -> (WorkspaceStatus, Vec<Notice>) {
        let history = History { workspace: self.workspace, now: self.now };
        let resource = self.resource_ready();
        let mut verdicts = Vec::new();
        verdicts.extend(self.node_claim_ready());
        if let Some(inference) = &self.workspace.inference {
            let resource_time = history.transition(&resource);
            verdicts.push(self.inference_ready(&resource, resource_time));
            verdicts.extend(self.adapters_ready(inference));
            verdicts.extend(self.config_applied(inference));
            verdicts.extend(self.up_to_date());
        }
        verdicts.insert(0, resource);
        let state = state(&verdicts);
        verdicts.push(self.workspace_ready(&verdicts));
        let status = WorkspaceStatus {
            worker_nodes: self.worker_nodes(),
            conditions: verdicts.iter().map(|verdict| history.condition(verdict)).collect(),
            state: Some(state),
            target_node_count: Some(self.workspace.resource.count),
        };
        (status, verdicts.iter().filter_map(|verdict| history.notice(verdict)).collect())
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
            let runtime = self.model.and_then(Model::as_preset).and_then(|model| model.runtime.clone().ok());
            let on_cpus = runtime.is_some_and(|runtime| !runtime::uses_gpus(runtime));
            let note = if on_cpus { "; the runtime kaito computes on CPUs" } else { "" };
            let mut message = format!("{}: {}{note}", text::count(wanted, "ready node"), text::list(&names));
            if let Some(note) = left_claims::note(self.workspace, self.observed, self.options) {
                message.push_str(&format!("; {note}"));
            }
            return Verdict::good(ResourceReady, Reason::NodesReady, message);
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
            message.push_str(&format!(". A node that was in use is replaced once it has been unready for {grace}"));
            return Verdict::waiting(ResourceReady, Reason::NodesMissing, message);
        }
        match (&self.options.provisioner, self.claims) {
            (Provisioner::None, _) => {
                let nodes = match &self.workspace.resource.instance_type {
                    Some(instance_type) => format!("{instance_type} nodes"),
                    None => "nodes".to_owned(),
                };
                message.push_str(&format!(". Add {nodes} with the labels {selector}, or label ready ones so"));
                Verdict::failing(ResourceReady, Reason::NodesMissing, message)
            }
            (Provisioner::Karpenter(_), Some(claims)) => {
                message.push_str("; see NodeClaimReady");
                match claims.state {
                    ProgressState::Failing => Verdict::failing(ResourceReady, claims.reason, message),
                    ProgressState::Ready | ProgressState::Waiting => {
                        Verdict::waiting(ResourceReady, Reason::NodesMissing, message)
                    }
                }
            }
            (Provisioner::Karpenter(_), None) => Verdict::waiting(ResourceReady, Reason::NodesMissing, message),
        }
    }

    fn node_claim_ready(&self) -> Option<Verdict> {
        let missing = self.choice.chosen.len() < usize::try_from(self.workspace.resource.count).unwrap_or(0);
        if let (Provisioner::Karpenter(_), Claims::Absent, true) =
            (&self.options.provisioner, &self.observed.claims, missing)
        {
            return Some(Verdict::failing(
                NodeClaimReady,
                Reason::KarpenterMissing,
                "the cluster does not know karpenter.sh/v1 NodeClaims: install Karpenter, or run the controller with \
                 --node-provisioner none and add nodes yourself"
                    .to_owned(),
            ));
        }
        self.claims.map(|progress| Verdict {
            type_: NodeClaimReady,
            is_true: progress.state == ProgressState::Ready,
            is_failure: progress.state == ProgressState::Failing,
            reason: progress.reason,
            message: progress.message.clone(),
        })
    }

    fn inference_ready(&self, resource: &Verdict, resource_time: Time) -> Verdict {
        if let Some(problem) = self.problem {
            return Verdict::of_problem(InferenceReady, true, problem);
        }
        if let Some(refusal) = self.observed.refusals.first() {
            let cause = causes::refusal(refusal.message.clone());
            let reason = match cause.kind {
                causes::CauseKind::QuotaExceeded => cause.kind.reason(),
                _ => refusal.reason,
            };
            let message = format!("the API server refuses {} {}: {}", refusal.kind, refusal.name, refusal.message);
            return Verdict::failing(InferenceReady, reason, message);
        }
        let Some(workload) = self.layout.and_then(|layout| Replicas::of(self.observed, layout)) else {
            return if resource.is_true {
                Verdict::waiting(InferenceReady, Reason::PodsPending, "the pods are being made".to_owned())
            } else {
                Verdict::waiting(InferenceReady, Reason::WaitingForNodes, "starts when the nodes are ready".to_owned())
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
            return Verdict::good(InferenceReady, Reason::InferenceReady, message);
        }
        let (cause, others) = causes::worst(self.observed, &expected(self.model, &workload, self.now));
        Self::not_ready(&cause, others, &workload)
    }

    fn not_ready(cause: &Cause, others: usize, workload: &Replicas) -> Verdict {
        let mut message = cause.message(others);
        if workload.ready > 0 && workload.wanted > 1 && workload.kind == WorkloadKind::Deployment {
            message.push_str(&format!("; {} of {} answer", workload.ready, text::count(workload.wanted, "pod")));
        }
        let verdict = if cause.kind.is_failure() { Verdict::failing } else { Verdict::waiting };
        verdict(InferenceReady, cause.kind.reason(), message)
    }

    fn adapters_ready(&self, inference: &InferenceSpec) -> Option<Verdict> {
        let model = self.model.and_then(Model::as_preset)?;
        if inference.adapters.is_empty() {
            return None;
        }
        let runtime = model.runtime.as_ref().copied().unwrap_or(Runtime::Kaito);
        let names: Vec<_> = inference.adapters.iter().map(|adapter| adapter.source.name.as_str()).collect();
        Some(match runtime::adapters_problem(runtime, model.preset, &inference.adapters) {
            Some(problem) => Verdict::of_problem(AdaptersReady, false, &problem),
            None => {
                Verdict::good(AdaptersReady, Reason::AdaptersLoaded, format!("the server loads {}", text::list(&names)))
            }
        })
    }

    fn config_applied(&self, inference: &InferenceSpec) -> Option<Verdict> {
        let name = inference.config.as_deref()?;
        let model = self.model.and_then(Model::as_preset)?;
        let ServerConfig { flags, sizes, served_names, sequences: _, ignored, needless } =
            model.config.as_ref().ok()?;
        let sizes = [sizes.tensor.is_some(), sizes.pipeline.is_some(), sizes.data.is_some(), sizes.context.is_some()];
        let named = usize::from(!served_names.is_empty());
        let taken = flags.len() + named + sizes.iter().filter(|is_given| **is_given).count();
        let mut message = format!("the server gets {} from ConfigMap {name}", text::count(taken, "flag"));
        if !needless.is_empty() {
            message.push_str(&format!("; not needed: {}", needless.join("; ")));
        }
        if ignored.is_empty() {
            return Some(Verdict::good(ConfigApplied, Reason::FlagsApplied, message));
        }
        Some(Verdict::waiting(ConfigApplied, Reason::FlagsIgnored, format!("{}; {message}", ignored.join("; "))))
    }

    fn up_to_date(&self) -> Option<Verdict> {
        match self.rollout {
            State::Current => None,
            State::Due { message, .. } => Some(Verdict::waiting(UpToDate, Reason::RolloutDue, message.clone())),
            State::UnderWay { since, .. } => {
                let pause = text::duration(i64::try_from(self.options.rollouts.pause.as_secs()).unwrap_or(i64::MAX));
                let message = format!(
                    "the pods are being replaced since {}; the rollout ends when they have answered for {pause}",
                    text::time(*since)
                );
                Some(Verdict::waiting(UpToDate, Reason::RolloutUnderWay, message))
            }
        }
    }

    fn workspace_ready(&self, verdicts: &[Verdict]) -> Verdict {
        let counted = || verdicts.iter().filter(|verdict| verdict.type_.is_about_readiness() && !verdict.is_true);
        // A condition that fails says more than one that waits for it.
        match counted().find(|verdict| verdict.is_failure).or_else(|| counted().next()) {
            Some(verdict) => Verdict {
                type_: WorkspaceReady,
                message: format!("{}: {}", verdict.type_, verdict.message),
                ..verdict.clone()
            },
            None if self.workspace.inference.is_some() => Verdict::good(
                WorkspaceReady,
                Reason::WorkspaceReady,
                format!("the model answers at {}", address(self.workspace)),
            ),
            None => Verdict::good(WorkspaceReady, Reason::WorkspaceReady, "the nodes are ready".to_owned()),
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
        // For a pod that replaced another one, the time before its creation means nothing.
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
}

/// The status of a workspace that is being deleted and waits for its node claims.
pub fn deleting(workspace: &Workspace, claims: &[String], now: Timestamp) -> WorkspaceStatus {
    let message = format!(
        "waits until {} gone: {}",
        if claims.len() == 1 { "a NodeClaim is" } else { "NodeClaims are" },
        text::list(claims)
    );
    let verdict = Verdict::waiting(WorkspaceReady, Reason::Deleting, message);
    let mut status = workspace.status.clone().unwrap_or_default();
    status.state = Some(WorkspaceState::Pending);
    status.conditions.retain(|condition| condition.type_ != WorkspaceReady.as_str());
    status.conditions.push(History { workspace, now }.condition(&verdict));
    status
}

fn state(verdicts: &[Verdict]) -> WorkspaceState {
    let mut counted = verdicts.iter().filter(|verdict| verdict.type_.is_about_readiness());
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

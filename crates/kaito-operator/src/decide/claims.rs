//! Which node claims a workspace is to have, and what has become of them.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta},
    jiff::Timestamp,
};
use kaito_presets::GIB;

use super::{
    nodes::{Choice, TurnedDown, hosts},
    observed::{Claims, Observed, is_going, name},
    options::NodeClass,
    taints,
};
use crate::{
    karpenter::{NodeClaim, NodeClaimSpec, NodeClassRef, Requirement, Resources},
    reason::Reason,
    text,
    workspace::{LABEL_INSTANCE_TYPE, LABEL_WORKSPACE, LABEL_WORKSPACE_NAMESPACE, MOST_NODES, Workspace},
};

/// The node claims that a workspace is to have, and those that are to be deleted.
#[derive(Debug, Default)]
pub struct ClaimPlan {
    /// To be created.
    pub new: Vec<NodeClaim>,
    /// Names of those to keep. They are never written again, since Karpenter forbids changes.
    pub kept: Vec<String>,
    /// Names of those to delete.
    pub surplus: Vec<String>,
    /// Names that this workspace's claims would get and that other claims have.
    pub name_taken: Vec<String>,
    /// When claims that failed are created again.
    pub try_again_at: Option<Timestamp>,
}

/// What each claimed node must offer.
#[derive(Debug, Clone, Default)]
pub struct Need {
    /// What a pod requests, where no instance type is named.
    pub requests: BTreeMap<String, Quantity>,
    /// Bytes of disk for image and weights.
    pub disk: Option<u64>,
}

/// The name of a workspace's claim for its n-th node.
///
/// Twelve characters at most, beginning with a letter: clouds name node pools after claims, and some allow no more. The name
/// follows from the workspace's, so that a retry creates no second node.
pub fn claim_name(workspace: &Workspace, slot: usize) -> String {
    let digest = text::digest(&format!("{}/{}/{slot}", workspace.namespace(), workspace.name()));
    format!("ws{}", digest.get(..10).unwrap_or_default())
}

/// The names of all claims that a workspace may have at once.
pub fn claim_names(workspace: &Workspace) -> Vec<String> {
    (0..slots(workspace)).map(|slot| claim_name(workspace, slot)).collect()
}

/// Twice the nodes: while every old claim is still being deleted, every new one needs a name too.
fn slots(workspace: &Workspace) -> usize {
    2 * usize::try_from(workspace.resource.count.min(MOST_NODES)).unwrap_or(0)
}

/// One claim for each missing node. Pending claims count as nodes, and so do nodes in use that are expected back.
pub fn plan(
    workspace: &Workspace,
    observed: &Observed,
    choice: &Choice<'_>,
    class: &NodeClass,
    need: &Need,
    now: Timestamp,
) -> ClaimPlan {
    let Claims::Present(claims) = &observed.claims else { return ClaimPlan::default() };
    let wanted_nodes = usize::try_from(workspace.resource.count).unwrap_or(0);
    let is_chosen = |node: &str| choice.chosen.iter().any(|chosen| name(&chosen.metadata) == node);
    let is_expected = |node: &str| choice.expected_back.iter().any(|expected| name(&expected.metadata) == node);
    // The node is ready, but a taint keeps pods off it for an unknown time. Those that follow readiness go by themselves.
    let lasts = |why: &TurnedDown| match why {
        TurnedDown::Tainted(taints) => !taints.iter().all(taints::follows_readiness),
        _ => false,
    };
    let is_tainted = |node: &str| choice.turned_down.iter().any(|(name, why)| name == node && lasts(why));
    let hosts = hosts(observed);
    let mut plan = ClaimPlan::default();

    let mut ours: Vec<_> = claims.iter().filter(|claim| claim.belongs_to(workspace)).collect();
    // The ones nearest to a ready node are kept first.
    ours.sort_by_key(|claim| (!claim.is_ready(), observed.node_of(claim).is_none(), name(&claim.metadata).to_owned()));
    let mut missing = wanted_nodes.saturating_sub(choice.chosen.len());
    for claim in ours.iter().filter(|claim| !is_going(&claim.metadata)) {
        let node = observed.node_of(claim).unwrap_or_default();
        if is_chosen(node) || is_expected(node) || hosts.contains_key(node) {
            plan.kept.push(name(&claim.metadata).to_owned());
        } else if missing > 0 {
            missing -= usize::from(!(claim.is_ready() && is_tainted(node)));
            plan.kept.push(name(&claim.metadata).to_owned());
        } else {
            plan.surplus.push(name(&claim.metadata).to_owned());
        }
    }
    missing = missing.saturating_sub(choice.expected_back.len());
    for claim in claim_names(workspace) {
        if missing == 0 {
            break;
        }
        match claims.iter().find(|existing| name(&existing.metadata) == claim) {
            None if tried_again_at(observed, &claim).is_some_and(|at| at > now) => {
                let at = tried_again_at(observed, &claim);
                missing -= 1;
                plan.try_again_at = plan.try_again_at.max(at);
            }
            None => {
                missing -= 1;
                plan.new.push(desired(workspace, &claim, class, need));
            }
            Some(existing) if !existing.belongs_to(workspace) => plan.name_taken.push(claim),
            Some(_) => {}
        }
    }
    plan
}

/// How long after a failure a claim is created again. A cloud that is out of machines stays so for minutes.
const RETRY_AFTER: Duration = Duration::from_secs(60);

fn tried_again_at(observed: &Observed, claim: &str) -> Option<Timestamp> {
    observed.claim_failures.get(claim)?.at.checked_add(RETRY_AFTER).ok()
}

fn desired(workspace: &Workspace, claim: &str, class: &NodeClass, need: &Need) -> NodeClaim {
    let mut labels = workspace.owned_labels();
    labels.insert(LABEL_WORKSPACE_NAMESPACE.to_owned(), workspace.namespace().to_owned());
    let selector = &workspace.resource.label_selector;
    labels.extend(selector.match_labels.clone().unwrap_or_default());
    // A node has one value per label, so the first of those allowed.
    for term in selector.match_expressions.iter().flatten().filter(|term| term.operator == "In") {
        if let Some(value) = term.values.iter().flatten().next() {
            labels.entry(term.key.clone()).or_insert_with(|| value.clone());
        }
    }
    let one_of = |key: &str, value: &str| Requirement {
        key: key.to_owned(),
        operator: "In".to_owned(),
        values: vec![value.to_owned()],
    };
    let mut requirements: Vec<_> = workspace
        .resource
        .instance_type
        .iter()
        .map(|instance_type| one_of(LABEL_INSTANCE_TYPE, instance_type))
        .collect();
    requirements.extend([one_of("kubernetes.io/os", "linux"), one_of("kubernetes.io/arch", "amd64")]);
    let mut requests = BTreeMap::new();
    if let Some(disk) = need.disk {
        let disk = Quantity(format!("{}Gi", disk.div_ceil(GIB)));
        // The provisioner for Azure's node pools calls the resource storage, where Karpenter says ephemeral-storage.
        let key = if class.group == "karpenter.azure.com" { "storage" } else { "ephemeral-storage" };
        requests.insert(key.to_owned(), disk);
    }
    if workspace.resource.instance_type.is_none() {
        requests.extend(need.requests.clone());
    }
    NodeClaim {
        metadata: ObjectMeta {
            name: Some(claim.to_owned()),
            labels: Some(labels),
            // Loading a model takes minutes, so the node is not to be replaced by a cheaper one.
            annotations: Some(BTreeMap::from([("karpenter.sh/do-not-disrupt".to_owned(), "true".to_owned())])),
            ..ObjectMeta::default()
        },
        spec: NodeClaimSpec {
            requirements,
            resources: Resources { requests },
            taints: vec![taints::gpu_taint()],
            node_class_ref: NodeClassRef {
                group: class.group.clone(),
                kind: class.kind.clone(),
                name: class.name.clone(),
            },
        },
        status: None,
    }
}

/// How far Karpenter is with a workspace's node claims.
#[derive(Debug, PartialEq, Eq)]
pub struct Progress {
    /// Where it stands.
    pub state: ProgressState,
    /// The cause, for programs.
    pub reason: Reason,
    /// The cause, for people.
    pub message: String,
}

/// Where Karpenter stands with a workspace's node claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgressState {
    /// Every one became a ready node.
    Ready,
    /// Nothing has failed so far.
    Waiting,
    /// One cannot be fulfilled.
    Failing,
}

/// How far Karpenter is with a workspace's node claims; `None` where the workspace has none and needs none.
pub fn progress(workspace: &Workspace, observed: &Observed, plan: &ClaimPlan) -> Option<Progress> {
    let mut claims: Vec<_> = observed
        .claims
        .all()
        .iter()
        .filter(|claim| claim.belongs_to(workspace) && !is_going(&claim.metadata))
        .filter(|claim| !plan.surplus.iter().any(|surplus| surplus == name(&claim.metadata)))
        .collect();
    claims.sort_by(|a, b| name(&a.metadata).cmp(name(&b.metadata)));
    let mut names: Vec<&str> = plan.kept.iter().map(String::as_str).collect();
    names.extend(plan.new.iter().map(|claim| name(&claim.metadata)));
    names.sort_unstable();
    let total = names.len();
    if total == 0 && plan.name_taken.is_empty() && plan.try_again_at.is_none() {
        return None;
    }
    let of_conditions = claims
        .iter()
        .find_map(|claim| Some((name(&claim.metadata), claim.failure()?)))
        .map(|(claim, failure)| (claim, failure.reason.as_str(), failure.message.as_str()));
    // Whether the claim exists at the moment makes no difference: it failed, and has not become a node since.
    let of_events = || {
        let mut failures = observed.claim_failures.iter();
        let (claim, failure) = failures.find(|(failed, _)| {
            let known = claims.iter().find(|claim| name(&claim.metadata) == failed.as_str());
            known.map_or(plan.try_again_at.is_some() || names.contains(&failed.as_str()), |claim| {
                observed.node_of(claim).is_none()
            })
        })?;
        Some((claim.as_str(), failure.reason.as_str(), failure.message.as_str()))
    };
    if let Some((claim, failure, said)) = of_conditions.or_else(of_events) {
        let (reason, next) = cause(failure, said);
        let said = said.trim_end_matches('.');
        let message = format!("NodeClaim {claim} cannot be fulfilled: {failure}: {said}. {next}");
        return Some(Progress { state: ProgressState::Failing, reason, message });
    }
    if !plan.name_taken.is_empty() {
        let message = format!(
            "NodeClaim {} exists and is not this workspace's: it lacks the label {LABEL_WORKSPACE}={}. Delete it, or \
             give the workspace another name",
            text::list(&plan.name_taken),
            workspace.name()
        );
        return Some(Progress { state: ProgressState::Failing, reason: Reason::NodeClaimNameTaken, message });
    }
    let waiting: Vec<_> = names
        .into_iter()
        .filter(|wanted| !claims.iter().any(|claim| name(&claim.metadata) == *wanted && claim.is_ready()))
        .map(|wanted| match claims.iter().find(|claim| name(&claim.metadata) == wanted) {
            Some(claim) => format!("{wanted} ({})", claim.stage()),
            None => format!("{wanted} (new)"),
        })
        .collect();
    Some(if waiting.is_empty() {
        let message = format!("{} became {}", text::count(total, "claim"), text::count(total, "ready node"));
        Progress { state: ProgressState::Ready, reason: Reason::NodeClaimsReady, message }
    } else {
        let ready = total - waiting.len();
        let message = format!("{ready} of {total} claims became ready nodes; waiting for {}", text::list(&waiting));
        Progress { state: ProgressState::Waiting, reason: Reason::NodeClaimsPending, message }
    })
}

/// The cause of a failed launch, and what to do. Each cloud words it differently.
fn cause(reason: &str, message: &str) -> (Reason, &'static str) {
    let said = format!("{reason} {message}").to_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| said.contains(word));
    if says(&["quota", "limitexceeded", "limit exceeded"]) {
        (Reason::QuotaExceeded, "Ask the cloud for more quota of this instance type, or choose another")
    } else if says(&["insufficient capacity", "insufficientcapacity", "out of capacity", "skunotavailable"]) {
        (
            Reason::InsufficientCapacity,
            "The cloud has none of these instances now; it is tried again. Another instance type may be available",
        )
    } else if says(&["nodeclass"]) {
        (Reason::NodeClassNotReady, "See the node class that the controller's --node-class names")
    } else {
        (Reason::NodeClaimFailed, "It is tried again; see kubectl describe nodeclaim")
    }
}

//! Claims of nodes, which Karpenter fulfils.

use std::{borrow::Cow, collections::BTreeMap, time::Duration};

use k8s_openapi::{
    ClusterResourceScope,
    api::core::v1::Taint,
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{Condition, ObjectMeta},
    },
    jiff::Timestamp,
};
use kaito_presets::GIB;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{
    nodes::{Choice, INSTANCE_TYPE, TurnedDown, hosts},
    observed::{Claims, Observed, is_going, label, name},
    options::NodeClass,
    text,
};
use crate::workspace::{LABEL_WORKSPACE, LABEL_WORKSPACE_NAMESPACE, MOST_NODES, Workspace};

/// `karpenter.sh/v1`'s claim of a node, as far as it is used here.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeClaim {
    /// Name and labels. It has no namespace.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// The node that is wanted. Karpenter forbids changes to it.
    #[serde(default)]
    pub spec: NodeClaimSpec,
    /// How far Karpenter has come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<NodeClaimStatus>,
}

/// The node that is wanted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeClaimSpec {
    /// What it must be.
    #[serde(default)]
    pub requirements: Vec<Requirement>,
    /// What it must have.
    #[serde(default)]
    pub resources: Resources,
    /// What keeps other pods off it.
    #[serde(default)]
    pub taints: Vec<Taint>,
    /// The cloud's description of it.
    #[serde(default)]
    pub node_class_ref: NodeClassRef,
}

/// A term over a label of the node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requirement {
    /// The label.
    pub key: String,
    /// `In` wherever it is written here.
    pub operator: String,
    /// Its values.
    #[serde(default)]
    pub values: Vec<String>,
}

/// What a node must have.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Resources {
    /// At least so much of each.
    #[serde(default)]
    pub requests: BTreeMap<String, Quantity>,
}

/// Names a node class.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeClassRef {
    /// Its API group.
    #[serde(default)]
    pub group: String,
    /// Its kind.
    #[serde(default)]
    pub kind: String,
    /// Its name.
    #[serde(default)]
    pub name: String,
}

/// How far Karpenter has come with a claim.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeClaimStatus {
    /// The node, once there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// `Launched`, `Registered`, `Initialized`, `Ready`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conditions: Option<Vec<Condition>>,
}

impl kube::Resource for NodeClaim {
    type DynamicType = ();
    type Scope = ClusterResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "NodeClaim".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "karpenter.sh".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "nodeclaims".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl NodeClaim {
    /// The node that it became, as far as its status says so; see [`Observed::node_of`].
    pub fn node_name(&self) -> Option<&str> {
        self.status.as_ref()?.node_name.as_deref()
    }

    fn condition(&self, type_: &str) -> Option<&Condition> {
        self.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == type_)
    }

    fn is_ready(&self) -> bool {
        self.condition("Ready").is_some_and(|ready| ready.status == "True")
    }

    /// Whether it is one of the workspace's own.
    pub fn belongs_to(&self, workspace: &Workspace) -> bool {
        label(&self.metadata, LABEL_WORKSPACE) == Some(workspace.name())
            && label(&self.metadata, LABEL_WORKSPACE_NAMESPACE) == Some(workspace.namespace())
    }

    /// Why Karpenter cannot fulfil it, as far as it says so.
    fn failure(&self) -> Option<&Condition> {
        self.condition("Launched")
            .filter(|launched| launched.status != "True")
            // What it says before the first attempt.
            .filter(|launched| !matches!(launched.reason.as_str(), "" | "AwaitingReconciliation" | "Unknown"))
    }
}

/// The claims that a workspace is to have, and those it is to have no longer.
#[derive(Debug, Default)]
pub struct ClaimPlan {
    /// To be made.
    pub new: Vec<NodeClaim>,
    /// Names of those to be kept. They are never written again, since Karpenter forbids changes.
    pub kept: Vec<String>,
    /// Names of those to be deleted.
    pub surplus: Vec<String>,
    /// Names that this workspace's claims would get and that claims of others have.
    pub name_taken: Vec<String>,
    /// When claims that failed are made again.
    pub try_again_at: Option<Timestamp>,
}

/// What each claimed node must have.
#[derive(Debug, Clone, Default)]
pub struct Need {
    /// What a pod asks of it, where the instance type does not say it.
    pub requests: BTreeMap<String, Quantity>,
    /// Bytes of disk for image and weights.
    pub disk: Option<u64>,
}

/// The name of a workspace's claim for its n-th node.
///
/// Twelve characters at most, beginning with a letter: node pools of clouds are named after claims, and some allow no
/// more. The same workspace always gets the same names, so that a retry makes no second node.
pub fn claim_name(workspace: &Workspace, slot: usize) -> String {
    let digest = Sha256::digest(format!("{}/{}/{slot}", workspace.namespace(), workspace.name()));
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("ws{}", hex.get(..10).unwrap_or_default())
}

/// The names of all claims that a workspace could have at once.
pub fn claim_names(workspace: &Workspace) -> Vec<String> {
    (0..slots(workspace)).map(|slot| claim_name(workspace, slot)).collect()
}

/// Twice the nodes: while every old claim still is being deleted, every new one has a name.
fn slots(workspace: &Workspace) -> usize {
    2 * usize::try_from(workspace.resource.count.min(MOST_NODES)).unwrap_or(0)
}

/// One claim for each node that is missing. Claims on their way count; so do nodes in use that are expected back.
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
    // Somebody keeps pods off a node that is ready, and it is not known for how long.
    let is_closed =
        |node: &str| choice.turned_down.iter().any(|(name, why)| name == node && matches!(why, TurnedDown::Tainted(_)));
    let hosts = hosts(observed);
    let mut plan = ClaimPlan::default();

    let mut ours: Vec<_> = claims.iter().filter(|claim| claim.belongs_to(workspace)).collect();
    // Those that have come furthest are kept first.
    ours.sort_by_key(|claim| (!claim.is_ready(), observed.node_of(claim).is_none(), name(&claim.metadata).to_owned()));
    let mut missing = wanted_nodes.saturating_sub(choice.chosen.len());
    for claim in ours.iter().filter(|claim| !is_going(&claim.metadata)) {
        let node = observed.node_of(claim).unwrap_or_default();
        if is_chosen(node) || is_expected(node) || hosts.contains_key(node) {
            plan.kept.push(name(&claim.metadata).to_owned());
        } else if missing > 0 {
            missing -= usize::from(!(claim.is_ready() && is_closed(node)));
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

/// How long after a failure a claim is made again. A cloud that is out of machines is so for minutes.
const RETRY_AFTER: Duration = Duration::from_secs(60);

fn tried_again_at(observed: &Observed, claim: &str) -> Option<Timestamp> {
    observed.claim_failures.get(claim)?.at.checked_add(RETRY_AFTER).ok()
}

fn desired(workspace: &Workspace, claim: &str, class: &NodeClass, need: &Need) -> NodeClaim {
    let mut labels = workspace.owned_labels();
    labels.insert(LABEL_WORKSPACE_NAMESPACE.to_owned(), workspace.namespace().to_owned());
    let selector = &workspace.resource.label_selector;
    labels.extend(selector.match_labels.clone().unwrap_or_default());
    // A node has one value of a label; the first will do.
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
    let mut requirements: Vec<_> =
        workspace.resource.instance_type.iter().map(|instance_type| one_of(INSTANCE_TYPE, instance_type)).collect();
    requirements.extend([one_of("kubernetes.io/os", "linux"), one_of("kubernetes.io/arch", "amd64")]);
    let mut requests = BTreeMap::new();
    if let Some(disk) = need.disk {
        let disk = Quantity(format!("{}Gi", disk.div_ceil(GIB)));
        // Karpenter's own name for it, and that of the provisioner which makes node pools on Azure.
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
            // A node that a model was loaded on for minutes is not to go for a cheaper one.
            annotations: Some(BTreeMap::from([("karpenter.sh/do-not-disrupt".to_owned(), "true".to_owned())])),
            ..ObjectMeta::default()
        },
        spec: NodeClaimSpec {
            requirements,
            resources: Resources { requests },
            taints: vec![Taint {
                key: "sku".to_owned(),
                value: Some("gpu".to_owned()),
                effect: "NoSchedule".to_owned(),
                time_added: None,
            }],
            node_class_ref: NodeClassRef {
                group: class.group.clone(),
                kind: class.kind.clone(),
                name: class.name.clone(),
            },
        },
        status: None,
    }
}

/// What a workspace's claims have come to.
#[derive(Debug, PartialEq, Eq)]
pub struct Progress {
    /// Whether every one became a ready node.
    pub is_ready: bool,
    /// Whether one cannot be fulfilled.
    pub is_failing: bool,
    /// Names the cause.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// What a workspace's claims have come to; `None` where it has none and needs none.
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
    // Whether a claim exists at the moment makes no difference: it failed, and has not become a node since.
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
        return Some(Progress {
            is_ready: false,
            is_failing: true,
            reason,
            message: format!(
                "NodeClaim {claim} cannot be fulfilled: {failure}: {}. {next}",
                said.trim_end_matches('.')
            ),
        });
    }
    if !plan.name_taken.is_empty() {
        return Some(Progress {
            is_ready: false,
            is_failing: true,
            reason: "NodeClaimNameTaken",
            message: format!(
                "NodeClaim {} exists and is not this workspace's: it lacks the label {LABEL_WORKSPACE}={}. Delete it, or \
                 give the workspace another name",
                text::list(&plan.name_taken),
                workspace.name()
            ),
        });
    }
    let waiting: Vec<_> = names
        .into_iter()
        .filter(|wanted| !claims.iter().any(|claim| name(&claim.metadata) == *wanted && claim.is_ready()))
        .map(|wanted| match claims.iter().find(|claim| name(&claim.metadata) == wanted) {
            Some(claim) => format!("{wanted} ({})", stage(claim)),
            None => format!("{wanted} (new)"),
        })
        .collect();
    Some(if waiting.is_empty() {
        Progress {
            is_ready: true,
            is_failing: false,
            reason: "NodeClaimsReady",
            message: format!("{} became {}", text::count(total, "claim"), text::count(total, "ready node")),
        }
    } else {
        Progress {
            is_ready: false,
            is_failing: false,
            reason: "NodeClaimsPending",
            message: format!(
                "{} of {total} claims became ready nodes; waiting for {}",
                total - waiting.len(),
                text::list(&waiting)
            ),
        }
    })
}

/// How far Karpenter has come, in a word.
fn stage(claim: &NodeClaim) -> &'static str {
    let is_true = |type_| claim.condition(type_).is_some_and(|condition| condition.status == "True");
    match (is_true("Launched"), is_true("Registered"), is_true("Initialized")) {
        (false, _, _) => "being launched",
        (true, false, _) => "launched, not yet registered as a node",
        (true, true, false) => "registered, not yet initialized",
        (true, true, true) => "initialized, not yet ready",
    }
}

/// The cause of a failed launch, and what to do. Clouds word it each in their own way.
fn cause(reason: &str, message: &str) -> (&'static str, &'static str) {
    let said = format!("{reason} {message}").to_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| said.contains(word));
    if says(&["quota", "limitexceeded", "limit exceeded"]) {
        ("QuotaExceeded", "Ask the cloud for more quota of this instance type, or choose another")
    } else if says(&["insufficient capacity", "insufficientcapacity", "out of capacity", "skunotavailable"]) {
        (
            "InsufficientCapacity",
            "The cloud has none of these instances now; it is tried again. Another instance type may be had",
        )
    } else if says(&["nodeclass"]) {
        ("NodeClassNotReady", "See the node class that the controller's --node-class names")
    } else {
        ("NodeClaimFailed", "It is tried again; see kubectl describe nodeclaim")
    }
}

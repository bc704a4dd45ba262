//! Which nodes a workspace runs on, and why not on the others.

use std::{collections::BTreeMap, fmt, time::Duration};

use k8s_openapi::{
    api::core::v1::{Node, NodeCondition, PodTemplateSpec, Taint},
    jiff::Timestamp,
};

use kaito_presets::GpuVendor;

use super::{
    observed::{Observed, Taken, has_ended, is_going, label, name},
    taints::{self, Tolerations},
};
use crate::{
    layout::{gpus_of, vendor_of},
    text,
    workspace::{LABEL_INSTANCE_TYPE, LABEL_WORKSPACE, LABEL_WORKSPACE_NAMESPACE, Workspace},
};

/// How long a node in use may be unready before another takes its place. Kubernetes leaves pods there for as long, and a
/// model takes minutes to load elsewhere.
pub const GRACE: Duration = Duration::from_secs(300);

/// What a pod of a workspace needs of its node.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PodNeeds {
    /// GPUs.
    pub gpus: u32,
    /// Who makes them.
    pub vendor: GpuVendor,
    /// Taints that the node may have.
    pub tolerations: Tolerations,
}

impl PodNeeds {
    /// What pods of this template need. Taints count as tolerated where the template or a pod that exists tolerates them.
    pub fn of(template: Option<&PodTemplateSpec>, observed: &Observed) -> Self {
        let spec = template.and_then(|template| template.spec.as_ref());
        let tolerations = spec.and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
        Self {
            gpus: spec.map_or(0, gpus_of),
            vendor: spec.map_or(GpuVendor::default(), vendor_of),
            tolerations: Tolerations::of(tolerations, observed),
        }
    }
}

/// The nodes for a workspace.
#[derive(Debug, Default)]
pub struct Choice<'a> {
    /// The nodes to use, best first, never more than asked for.
    pub chosen: Vec<&'a Node>,
    /// Nodes in use that became unready less than [`GRACE`] ago.
    pub expected_back: Vec<&'a Node>,
    /// When [`GRACE`] ends for the first of them.
    pub give_up_at: Option<Timestamp>,
    /// Nodes that match the selector or that the workspace prefers, and why they are not used.
    pub turned_down: Vec<(String, TurnedDown)>,
    /// How many nodes the selector does not match.
    pub unmatched: usize,
}

/// Why a node is not used.
#[derive(Debug, Clone, PartialEq)]
pub enum TurnedDown {
    /// The workspace prefers a node that does not exist.
    Absent,
    /// The selector does not match its labels.
    Labels,
    /// It is being deleted.
    Going,
    /// It is not ready, for this reason.
    NotReady(String),
    /// It is cordoned: no new pods are to go there.
    Cordoned,
    /// It has taints that no pod tolerates.
    Tainted(Vec<Taint>),
    /// It is of another instance type.
    InstanceType(String),
    /// It was made for another workspace.
    MadeFor(String),
    /// It has fewer GPUs than a pod needs.
    Gpus {
        /// What it offers.
        offered: u32,
        /// What a pod needs.
        needed: u32,
        /// Who makes those.
        vendor: GpuVendor,
    },
    /// Too many of its GPUs are in use.
    GpusTaken {
        /// What it offers.
        offered: u32,
        /// What a pod needs.
        needed: u32,
        /// Who uses them.
        by: Vec<Taken>,
    },
    /// It could be used, but there are enough.
    NotNeeded,
}

impl fmt::Display for TurnedDown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("does not exist"),
            Self::Labels => f.write_str("lacks the labels of resource.labelSelector"),
            Self::Going => f.write_str("is being deleted"),
            Self::NotReady(why) => write!(f, "is not ready ({why})"),
            Self::Cordoned => f.write_str("is cordoned"),
            Self::Tainted(taints) => {
                let written: Vec<_> = taints.iter().map(taints::text).collect();
                let taint = if taints.len() == 1 { "taint" } else { "taints" };
                write!(f, "has the {taint} {}, which no pod of the workspace tolerates", text::list(&written))
            }
            Self::InstanceType(other) => write!(f, "is a {other}"),
            Self::MadeFor(other) => write!(f, "was made for workspace {other}"),
            Self::Gpus { offered: 0, needed, vendor } => {
                write!(f, "offers no {} and a pod needs {needed}; does its device plugin run?", vendor.resource())
            }
            Self::Gpus { offered, needed, vendor } => {
                write!(f, "offers {offered} {} and a pod needs {needed}", vendor.resource())
            }
            Self::GpusTaken { offered, needed, by } => {
                let by: Vec<_> = by.iter().map(|taken| format!("{} by {}", taken.gpus, taken.workspace)).collect();
                write!(f, "has too few free GPUs: of {offered}, {} are used, and a pod needs {needed}", text::list(&by))
            }
            Self::NotNeeded => f.write_str("is not needed"),
        }
    }
}

/// GPUs of a vendor that a node offers to pods.
pub fn gpus(node: &Node, vendor: GpuVendor) -> u32 {
    let allocatable = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
    let offered = allocatable.and_then(|resources| resources.get(vendor.resource()));
    offered.and_then(|quantity| quantity.0.parse().ok()).unwrap_or(0)
}

/// Whether a node's labels match the workspace's selector and instance type.
pub fn is_candidate(workspace: &Workspace, node: &Node) -> bool {
    let empty = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&empty);
    workspace.resource.selects(labels) && other_type(workspace, labels).is_none()
}

/// The type of a node, if it is not the one that the workspace asks for.
fn other_type<'a>(workspace: &Workspace, labels: &'a BTreeMap<String, String>) -> Option<&'a str> {
    let wanted = workspace.resource.instance_type.as_ref()?;
    labels.get(LABEL_INSTANCE_TYPE).filter(|actual| *actual != wanted).map(String::as_str)
}

/// Chooses nodes: of those whose labels match and that can take a pod, in the order preferred, used before, made for this
/// workspace, name.
///
/// A node on which a pod of the workspace runs comes before all others: choosing another would not move the pod, and the
/// status would not say where the model is.
pub fn choose<'a>(workspace: &Workspace, observed: &'a Observed, needs: &PodNeeds, now: Timestamp) -> Choice<'a> {
    let wanted = usize::try_from(workspace.resource.count).unwrap_or(0);
    let hosts = hosts(observed);
    let used: Vec<&str> = workspace.status.iter().flat_map(|status| &status.worker_nodes).map(String::as_str).collect();
    let mut choice = Choice::default();
    let mut fit = Vec::new();
    let mut nodes: Vec<&Node> = observed.nodes.iter().map(AsRef::as_ref).collect();
    nodes.sort_by(|a, b| name(&a.metadata).cmp(name(&b.metadata)));

    for node in &nodes {
        let node_name = name(&node.metadata);
        let preference = workspace.resource.preferred_nodes.iter().position(|preferred| preferred == node_name);
        let hosts_pod = hosts.contains_key(node_name);
        match objection(workspace, observed, node, hosts_pod, needs) {
            None => {
                let made_for_us = workspace.is_on_labels_of(&node.metadata) || backs_claim(observed, node_name);
                let order = (!hosts_pod, preference.unwrap_or(usize::MAX), !used.contains(&node_name), !made_for_us);
                fit.push((order, *node));
            }
            Some(TurnedDown::Labels) if preference.is_none() => choice.unmatched += 1,
            Some(why) => {
                if is_about_readiness(&why) && (hosts_pod || used.contains(&node_name)) {
                    let until = readiness_changed(node).and_then(|since| since.checked_add(GRACE).ok());
                    if let Some(until) = until.filter(|until| *until > now) {
                        choice.expected_back.push(node);
                        choice.give_up_at = Some(choice.give_up_at.map_or(until, |earlier| earlier.min(until)));
                    }
                }
                choice.turned_down.push((node_name.to_owned(), why));
            }
        }
    }
    // A stable sort, so that equals stay in the order of names.
    fit.sort_by_key(|(order, _)| *order);
    choice.chosen = fit.iter().take(wanted).map(|(_, node)| *node).collect();
    for preferred in &workspace.resource.preferred_nodes {
        if !nodes.iter().any(|node| name(&node.metadata) == preferred) {
            choice.turned_down.push((preferred.clone(), TurnedDown::Absent));
        }
    }
    choice
        .turned_down
        .extend(fit.iter().skip(wanted).map(|(_, node)| (name(&node.metadata).to_owned(), TurnedDown::NotNeeded)));
    choice
}

/// How many pods of the workspace are bound to each node and have not ended.
pub fn hosts(observed: &Observed) -> BTreeMap<&str, usize> {
    let mut hosts = BTreeMap::new();
    for pod in &observed.pods {
        if let (false, Some(node)) = (has_ended(pod), pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref())) {
            *hosts.entry(node).or_default() += 1;
        }
    }
    hosts
}

fn objection(
    workspace: &Workspace,
    observed: &Observed,
    node: &Node,
    hosts_pod: bool,
    needs: &PodNeeds,
) -> Option<TurnedDown> {
    let gpus_needed = needs.gpus;
    let labels = node.metadata.labels.clone().unwrap_or_default();
    if !workspace.resource.selects(&labels) {
        return Some(TurnedDown::Labels);
    }
    if is_going(&node.metadata) {
        return Some(TurnedDown::Going);
    }
    if let Some(other) = other_type(workspace, &labels) {
        return Some(TurnedDown::InstanceType(other.to_owned()));
    }
    if let Some(why) = unready(node) {
        return Some(TurnedDown::NotReady(why));
    }
    let taints = needs.tolerations.objections(node, hosts_pod);
    if hosts_pod {
        // The other rules are about new pods.
        return (!taints.is_empty()).then_some(TurnedDown::Tainted(taints));
    }
    if let Some(other) = label(&node.metadata, LABEL_WORKSPACE).filter(|_| !workspace.is_on_labels_of(&node.metadata)) {
        let namespace = label(&node.metadata, LABEL_WORKSPACE_NAMESPACE).unwrap_or_default();
        return Some(TurnedDown::MadeFor(format!("{namespace}/{other}")));
    }
    if node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false) {
        return Some(TurnedDown::Cordoned);
    }
    if !taints.is_empty() {
        return Some(TurnedDown::Tainted(taints));
    }
    let offered = gpus(node, needs.vendor);
    if offered < gpus_needed {
        return Some(TurnedDown::Gpus { offered, needed: gpus_needed, vendor: needs.vendor });
    }
    let taken = observed.taken.get(name(&node.metadata)).map(Vec::as_slice).unwrap_or_default();
    let in_use = taken.iter().fold(0, |sum: u32, taken| sum.saturating_add(taken.gpus));
    if offered.saturating_sub(in_use) < gpus_needed {
        return Some(TurnedDown::GpusTaken { offered, needed: gpus_needed, by: taken.to_vec() });
    }
    None
}

fn backs_claim(observed: &Observed, node: &str) -> bool {
    observed.claims.all().iter().any(|claim| observed.node_of(claim) == Some(node))
}

fn ready_condition(node: &Node) -> Option<&NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == "Ready")
}

/// Why a node is not ready, if it is not.
pub fn unready(node: &Node) -> Option<String> {
    match ready_condition(node) {
        Some(condition) if condition.status == "True" => None,
        Some(condition) => Some(match &condition.last_transition_time {
            Some(since) => {
                format!("{} since {}", condition.reason.as_deref().unwrap_or("Unknown"), text::time(since.0))
            }
            None => condition.reason.clone().unwrap_or_else(|| "Unknown".to_owned()),
        }),
        None => Some("it has no condition Ready yet".to_owned()),
    }
}

/// Whether a node is turned down only because it is not ready at the moment.
fn is_about_readiness(why: &TurnedDown) -> bool {
    match why {
        TurnedDown::NotReady(_) => true,
        TurnedDown::Tainted(taints) => taints.iter().all(taints::follows_readiness),
        _ => false,
    }
}

fn readiness_changed(node: &Node) -> Option<Timestamp> {
    ready_condition(node)?.last_transition_time.as_ref().map(|time| time.0)
}

//! Which workspaces an event of a watch concerns: those are queued for a reconcile.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{Event as KubeEvent, Node, Pod};
use kaito_presets::GpuVendor;
use kube::{
    Resource, ResourceExt,
    runtime::{reflector::ObjectRef, watcher::Event},
};
use tokio::sync::mpsc;

use super::super::{cache::Cache, metrics::Metrics};
use crate::{
    decide::has_ended,
    karpenter::NodeClaim,
    workspace::{ConditionType, LABEL_WORKSPACE, LABEL_WORKSPACE_NAMESPACE, Workspace},
};

/// Queues workspaces for a reconcile.
#[derive(Debug, Clone)]
pub struct Queue {
    sender: mpsc::UnboundedSender<ObjectRef<Workspace>>,
    metrics: Metrics,
    workspaces: Cache<Workspace>,
}

impl Queue {
    /// Queues into `sender`; `workspaces` are all that there are.
    pub fn new(
        sender: mpsc::UnboundedSender<ObjectRef<Workspace>>,
        metrics: Metrics,
        workspaces: Cache<Workspace>,
    ) -> Self {
        Self { sender, metrics, workspaces }
    }

    pub fn push(&self, workspace: ObjectRef<Workspace>) {
        self.metrics.queued(&workspace);
        // The receiver is dropped only when the controller stops leading.
        let _ = self.sender.send(workspace);
    }

    /// Queues all that `concerns` is true for.
    pub fn push_where(&self, concerns: impl Fn(&Workspace) -> bool) {
        for workspace in self.workspaces.store().state_filter(concerns) {
            self.push(ObjectRef::from_obj(&workspace));
        }
    }

    /// Queues the workspace that an object's labels name.
    pub fn push_owner<K: Resource>(&self, object: &K) {
        let metadata = object.meta();
        let label = |key: &str| metadata.labels.as_ref().and_then(|labels| labels.get(key));
        let namespace = metadata.namespace.as_ref().or_else(|| label(LABEL_WORKSPACE_NAMESPACE));
        if let (Some(name), Some(namespace)) = (label(LABEL_WORKSPACE), namespace) {
            self.push(ObjectRef::new(name).within(namespace));
        }
    }
}

/// The object of an event, if it has one.
pub fn objects<K>(event: &Event<K>) -> impl Iterator<Item = &K> {
    match event {
        Event::Apply(object) | Event::Delete(object) | Event::InitApply(object) => Some(object),
        Event::Init | Event::InitDone => None,
    }
    .into_iter()
}

/// An object that a workspace owns concerns that workspace.
pub fn owned_event<K: Resource>(queue: &Queue, event: &Event<K>) {
    objects(event).for_each(|object| queue.push_owner(object));
}

/// A pod concerns its workspace; when it ends, also those that wait for GPUs.
pub fn pod_event(queue: &Queue, event: &Event<Pod>) {
    objects(event).for_each(|pod| queue.push_owner(pod));
    let frees = match event {
        Event::Delete(_) => true,
        Event::Apply(pod) => has_ended(pod),
        _ => false,
    };
    if frees {
        queue.push_where(is_waiting_for_nodes);
    }
}

/// A StatefulSet that cannot create pods concerns the workspace of its name.
pub fn pod_failure_event(queue: &Queue, event: &Event<KubeEvent>) {
    for object in objects(event) {
        let set = &object.involved_object;
        if let (Some(name), Some(namespace)) = (&set.name, &set.namespace) {
            queue.push(ObjectRef::new(name).within(namespace));
        }
    }
}

/// A warning about a node claim concerns its workspace. Karpenter may have deleted the claim already, and with it the labels
/// that name the workspace: then all that wait for nodes.
pub fn claim_failure_event(queue: &Queue, claims: &Cache<NodeClaim>, event: &Event<KubeEvent>) {
    for object in objects(event) {
        let name = object.involved_object.name.clone().unwrap_or_default();
        if let Some(claim) = claims.get(&ObjectRef::new(&name)) {
            queue.push_owner(claim.as_ref());
        } else {
            queue.push_where(is_waiting_for_nodes);
        }
    }
}

fn is_waiting_for_nodes(workspace: &Workspace) -> bool {
    let resource = workspace.status.as_ref().and_then(|status| status.condition(ConditionType::ResourceReady));
    resource.is_some_and(|condition| condition.status != "True")
}

/// What decisions depend on of a node. Kubelets write much else into their nodes, all the time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFacts {
    labels: BTreeMap<String, String>,
    is_cordoned: bool,
    taints: String,
    is_going: bool,
    ready: String,
    /// Of each vendor.
    gpus: [Option<String>; GpuVendor::ALL.len()],
}

impl NodeFacts {
    fn of(node: &Node) -> Self {
        let status = node.status.as_ref();
        let conditions = status.and_then(|status| status.conditions.as_ref());
        let ready = conditions.and_then(|all| all.iter().find(|condition| condition.type_ == "Ready"));
        let allocatable = status.and_then(|status| status.allocatable.as_ref());
        let gpus = |vendor: GpuVendor| allocatable?.get(vendor.resource()).map(|quantity| quantity.0.clone());
        Self {
            labels: node.metadata.labels.clone().unwrap_or_default(),
            is_cordoned: node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false),
            taints: format!("{:?}", node.spec.as_ref().and_then(|spec| spec.taints.as_ref())),
            is_going: node.metadata.deletion_timestamp.is_some(),
            ready: ready.map(|ready| format!("{} {:?}", ready.status, ready.reason)).unwrap_or_default(),
            gpus: GpuVendor::ALL.map(gpus),
        }
    }
}

/// A node concerns the workspaces that use it or could use it. `known` has each node's facts.
pub fn node_event(queue: &Queue, known: &mut HashMap<String, NodeFacts>, event: &Event<Node>) {
    let (node, facts) = match event {
        Event::Apply(node) | Event::InitApply(node) => (node, Some(NodeFacts::of(node))),
        Event::Delete(node) => (node, None),
        Event::Init | Event::InitDone => return,
    };
    let name = node.name_any();
    let before = match &facts {
        Some(facts) => known.insert(name.clone(), facts.clone()),
        None => known.remove(&name),
    };
    if before == facts {
        return;
    }
    queue.push_where(|workspace| {
        let selects =
            |facts: &Option<NodeFacts>| facts.as_ref().is_some_and(|facts| workspace.resource.selects(&facts.labels));
        let uses = workspace.status.as_ref().is_some_and(|status| status.worker_nodes.contains(&name));
        uses || selects(&before) || selects(&facts) || workspace.resource.preferred_nodes.contains(&name)
    });
}

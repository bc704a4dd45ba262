//! One watch for each kind, and which workspaces an event of it concerns.

use std::{
    collections::HashMap,
    fmt::Debug,
    pin::pin,
    sync::{Arc, Mutex},
};

use futures_util::{Stream, StreamExt, stream};
use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    core::v1::{Event as KubeEvent, Node, Pod, Service},
};
use kaito_presets::InstanceTypes;
use kube::{
    Api, Client, Resource, ResourceExt,
    runtime::{
        WatchStreamExt,
        controller::{ReconcileReason, ReconcileRequest},
        reflector::ObjectRef,
        watcher::{self, Event, watcher},
    },
};
use serde::de::DeserializeOwned;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

use super::{
    Options,
    backoff::lock,
    cache::{Cache, Filler},
    manifest::{Manifest, Unreadable},
    metrics::Metrics,
};
use crate::{
    decide::{GPU, NodeClaim, Provisioner},
    workspace::{LABEL_WORKSPACE, LABEL_WORKSPACE_NAMESPACE, RESOURCE_READY, Workspace},
};

/// All that is watched. Dropping it ends the watches.
#[derive(Debug)]
pub struct Watches {
    /// The workspaces.
    pub workspaces: Cache<Workspace>,
    /// All nodes.
    pub nodes: Cache<Node>,
    /// What workspaces own, by their label.
    pub services: Cache<Service>,
    /// Likewise.
    pub deployments: Cache<Deployment>,
    /// Likewise.
    pub stateful_sets: Cache<StatefulSet>,
    /// Likewise.
    pub pods: Cache<Pod>,
    /// Claims of nodes, whoever made them.
    pub claims: Cache<NodeClaim>,
    /// Whether the cluster has that kind.
    pub claims_exist: watch::Receiver<Option<bool>>,
    /// Why StatefulSets could not make pods.
    pub pod_failures: Cache<KubeEvent>,
    /// What Karpenter warns of claims.
    pub claim_failures: Cache<KubeEvent>,
    synced: watch::Receiver<bool>,
    _tasks: JoinSet<()>,
}

/// Tells workspaces' reconciler what to look at.
#[derive(Debug, Clone)]
struct Queue {
    sender: mpsc::UnboundedSender<ObjectRef<Workspace>>,
    metrics: Metrics,
    workspaces: Cache<Workspace>,
}

impl Queue {
    fn push(&self, workspace: ObjectRef<Workspace>) {
        self.metrics.queued(&workspace);
        // The receiver goes only when everything ends.
        let _ = self.sender.send(workspace);
    }

    fn push_where(&self, concerns: impl Fn(&Workspace) -> bool) {
        for workspace in self.workspaces.store().state_filter(concerns) {
            self.push(ObjectRef::from_obj(&workspace));
        }
    }

    fn push_owner<K: Resource>(&self, object: &K) {
        let metadata = object.meta();
        let label = |key: &str| metadata.labels.as_ref().and_then(|labels| labels.get(key));
        let namespace = metadata.namespace.as_ref().or_else(|| label(LABEL_WORKSPACE_NAMESPACE));
        if let (Some(name), Some(namespace)) = (label(LABEL_WORKSPACE), namespace) {
            self.push(ObjectRef::new(name).within(namespace));
        }
    }
}

/// Counts the kinds whose first list is not there yet.
#[derive(Debug, Clone)]
struct Pending {
    left: Arc<Mutex<usize>>,
    synced: watch::Sender<bool>,
}

impl Pending {
    fn more(&self) {
        *lock(&self.left) += 1;
    }

    fn done(&self) {
        let mut left = lock(&self.left);
        *left = left.saturating_sub(1);
        if *left == 0 {
            self.synced.send_replace(true);
        }
    }
}

impl Watches {
    /// Starts all watches. The stream names the workspaces that something happened to.
    pub fn start(
        client: &Client,
        options: &Options,
        mut instance_types: watch::Receiver<Arc<InstanceTypes>>,
        metrics: &Metrics,
    ) -> (Self, impl Stream<Item = Result<ReconcileRequest<Workspace>, watcher::Error>> + Send + use<>) {
        let namespace = options.namespace.as_deref();
        let (synced, synced_receiver) = watch::channel(false);
        let pending = Pending { left: Arc::default(), synced };
        let (workspaces, workspaces_filler) = Cache::new();
        let (nodes, nodes_filler) = Cache::new();
        let (services, services_filler) = Cache::new();
        let (deployments, deployments_filler) = Cache::new();
        let (stateful_sets, stateful_sets_filler) = Cache::new();
        let (pods, pods_filler) = Cache::new();
        let (claims, claims_filler) = Cache::new();
        let (pod_failures, pod_failures_filler) = Cache::new();
        let (claim_failures, claim_failures_filler) = Cache::new();
        let (exist, claims_exist) = watch::channel(None);
        let (sender, receiver) = mpsc::unbounded_channel();
        let queue = Queue { sender, metrics: metrics.clone(), workspaces: workspaces.clone() };
        let owned = watcher::Config::default().labels(LABEL_WORKSPACE);
        let mut tasks = JoinSet::new();
        // Before the first of them can be done.
        (0..6).for_each(|_| pending.more());

        let unreadable = Unreadable::new(client.clone(), &options.identity, metrics.clone());
        let manifests = scoped(client, namespace);
        tasks.spawn(watch_workspaces(manifests, workspaces_filler, unreadable, queue.clone(), pending.clone()));
        let mut known = HashMap::new();
        tasks.spawn(follow(
            Api::<Node>::all(client.clone()),
            watcher::Config::default(),
            nodes_filler,
            pending.clone(),
            queue.clone(),
            move |queue, event| node_event(queue, &mut known, event),
        ));
        let spawn_pods =
            follow(scoped(client, namespace), owned.clone(), pods_filler, pending.clone(), queue.clone(), pod_event);
        tasks.spawn(spawn_pods);
        tasks.spawn(follow(
            scoped(client, namespace),
            owned.clone(),
            services_filler,
            pending.clone(),
            queue.clone(),
            owned_event,
        ));
        tasks.spawn(follow(
            scoped(client, namespace),
            owned.clone(),
            deployments_filler,
            pending.clone(),
            queue.clone(),
            owned_event,
        ));
        tasks.spawn(follow(
            scoped(client, namespace),
            owned,
            stateful_sets_filler,
            pending.clone(),
            queue.clone(),
            owned_event,
        ));

        // Without these a cause is not told, but all works: nothing waits for them.
        let sets = watcher::Config::default().fields("involvedObject.kind=StatefulSet,reason=FailedCreate");
        let unneeded = Pending { left: Arc::default(), synced: watch::Sender::new(false) };
        tasks.spawn(follow(
            scoped(client, namespace),
            sets,
            pod_failures_filler,
            unneeded.clone(),
            queue.clone(),
            |queue: &Queue, event: &Event<KubeEvent>| {
                for object in objects(event) {
                    let set = &object.involved_object;
                    if let (Some(name), Some(namespace)) = (&set.name, &set.namespace) {
                        queue.push(ObjectRef::new(name).within(namespace));
                    }
                }
            },
        ));
        if matches!(options.decide.provisioner, Provisioner::Karpenter(_)) {
            pending.more();
            tasks.spawn(watch_claims(client.clone(), claims_filler, queue.clone(), pending.clone(), exist));
            let warnings = watcher::Config::default().fields("involvedObject.kind=NodeClaim,type=Warning");
            let claims = claims.clone();
            tasks.spawn(follow(
                Api::<KubeEvent>::all(client.clone()),
                warnings,
                claim_failures_filler,
                unneeded,
                queue.clone(),
                move |queue: &Queue, event: &Event<KubeEvent>| {
                    for object in objects(event) {
                        let name = object.involved_object.name.clone().unwrap_or_default();
                        if let Some(claim) = claims.get(&ObjectRef::new(&name)) {
                            queue.push_owner(claim.as_ref());
                        } else {
                            queue.push_where(is_waiting_for_nodes);
                        }
                    }
                },
            ));
        }
        let on_types = queue.clone();
        tasks.spawn(async move {
            while instance_types.changed().await.is_ok() {
                on_types.push_where(|_| true);
            }
        });

        let watches = Self {
            workspaces,
            nodes,
            services,
            deployments,
            stateful_sets,
            pods,
            claims,
            claims_exist,
            pod_failures,
            claim_failures,
            synced: synced_receiver,
            _tasks: tasks,
        };
        let requests = stream::unfold(receiver, |mut receiver| async move {
            let object = receiver.recv().await?;
            Some((Ok(ReconcileRequest { obj_ref: object, reason: ReconcileReason::Unknown }), receiver))
        });
        (watches, requests)
    }

    /// Becomes true once every kind's first list is there.
    pub fn synced(&self) -> watch::Receiver<bool> {
        self.synced.clone()
    }
}

fn scoped<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// Fills a cache from a watch for ever, and tells the queue of each event after the cache knows it.
async fn follow<K>(
    api: Api<K>,
    config: watcher::Config,
    mut filler: Filler<K>,
    pending: Pending,
    queue: Queue,
    mut tell: impl FnMut(&Queue, &Event<K>) + Send,
) where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let mut events = pin!(watcher(api, config).default_backoff());
    let mut is_first = true;
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                let event = event.modify(|object| object.meta_mut().managed_fields = None);
                filler.take(&event);
                tell(&queue, &event);
                if matches!(event, Event::InitDone) {
                    // What vanished while nobody watched has no event of its own.
                    queue.push_where(|_| true);
                    if std::mem::take(&mut is_first) {
                        pending.done();
                    }
                }
            }
            Err(error) => tracing::warn!(kind = %K::kind(&()), %error, "the watch broke, trying again"),
        }
    }
}

/// Workspaces, some of which may be such that they cannot be read.
async fn watch_workspaces(
    api: Api<Manifest>,
    mut filler: Filler<Workspace>,
    mut unreadable: Unreadable,
    queue: Queue,
    pending: Pending,
) {
    let mut events = pin!(watcher(api, watcher::Config::default()).default_backoff());
    let mut is_first = true;
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                tracing::warn!(kind = "Workspace", %error, "the watch broke, trying again");
                continue;
            }
        };
        let Some(event) = unreadable.sort_out(event).await else { continue };
        let event = event.modify(|workspace| workspace.metadata.managed_fields = None);
        filler.take(&event);
        objects(&event).for_each(|workspace| queue.push(ObjectRef::from_obj(workspace)));
        if matches!(event, Event::InitDone) {
            queue.push_where(|_| true);
            if std::mem::take(&mut is_first) {
                pending.done();
            }
        }
    }
}

/// Claims, of a kind that the cluster may not have, or not yet.
async fn watch_claims(
    client: Client,
    mut filler: Filler<NodeClaim>,
    queue: Queue,
    pending: Pending,
    exist: watch::Sender<Option<bool>>,
) {
    let mut events = pin!(watcher(Api::<NodeClaim>::all(client), watcher::Config::default()).default_backoff());
    let mut is_first = true;
    while let Some(event) = events.next().await {
        let now = match &event {
            Ok(Event::InitDone) => Some(true),
            Err(watcher::Error::InitialListFailed(kube::Error::Api(status))) if status.code == 404 => Some(false),
            _ => None,
        };
        match event {
            Ok(event) => {
                let event = event.modify(|claim| claim.metadata.managed_fields = None);
                filler.take(&event);
                objects(&event).for_each(|claim| queue.push_owner(claim));
            }
            Err(error) if now.is_none() => tracing::warn!(kind = "NodeClaim", %error, "the watch broke, trying again"),
            Err(_) => {}
        }
        if let Some(now) = now {
            let before = exist.send_replace(Some(now));
            if before != Some(now) {
                tracing::info!(exist = now, "karpenter.sh/v1 NodeClaims");
                queue.push_where(|_| true);
            }
            if std::mem::take(&mut is_first) {
                pending.done();
            }
        }
    }
}

fn objects<K>(event: &Event<K>) -> impl Iterator<Item = &K> {
    match event {
        Event::Apply(object) | Event::Delete(object) | Event::InitApply(object) => Some(object),
        Event::Init | Event::InitDone => None,
    }
    .into_iter()
}

fn owned_event<K: Resource>(queue: &Queue, event: &Event<K>) {
    objects(event).for_each(|object| queue.push_owner(object));
}

/// A pod concerns its workspace; when it goes, also those that wait for its GPUs.
fn pod_event(queue: &Queue, event: &Event<Pod>) {
    objects(event).for_each(|pod| queue.push_owner(pod));
    let frees = match event {
        Event::Delete(_) => true,
        Event::Apply(pod) => {
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            matches!(phase, Some("Succeeded" | "Failed"))
        }
        _ => false,
    };
    if frees {
        queue.push_where(is_waiting_for_nodes);
    }
}

fn is_waiting_for_nodes(workspace: &Workspace) -> bool {
    let resource = workspace.status.as_ref().and_then(|status| status.condition(RESOURCE_READY));
    resource.is_some_and(|condition| condition.status != "True")
}

/// What of a node decides about workspaces. Kubelets write much else into their nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct NodeFacts {
    labels: std::collections::BTreeMap<String, String>,
    is_cordoned: bool,
    taints: String,
    is_going: bool,
    ready: String,
    gpus: String,
}

impl NodeFacts {
    fn of(node: &Node) -> Self {
        let status = node.status.as_ref();
        let conditions = status.and_then(|status| status.conditions.as_ref());
        let ready = conditions.and_then(|all| all.iter().find(|condition| condition.type_ == "Ready"));
        let gpus = status.and_then(|status| status.allocatable.as_ref()).and_then(|all| all.get(GPU));
        Self {
            labels: node.metadata.labels.clone().unwrap_or_default(),
            is_cordoned: node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false),
            taints: format!("{:?}", node.spec.as_ref().and_then(|spec| spec.taints.as_ref())),
            is_going: node.metadata.deletion_timestamp.is_some(),
            ready: ready.map(|ready| format!("{} {:?}", ready.status, ready.reason)).unwrap_or_default(),
            gpus: gpus.map(|quantity| quantity.0.clone()).unwrap_or_default(),
        }
    }
}

/// A node concerns the workspaces that it could serve, or serves.
fn node_event(queue: &Queue, known: &mut HashMap<String, NodeFacts>, event: &Event<Node>) {
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

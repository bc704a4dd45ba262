//! Watches: one for each kind, which fills a cache and queues the workspaces that each event concerns.

mod follow;
mod queue;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use follow::{Follower, follow, watch_claims, watch_workspaces};
use futures_util::{Stream, stream};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::{Deployment, StatefulSet},
        core::v1::{Event as KubeEvent, Node, Pod, Service},
        networking::v1::NetworkPolicy,
    },
};
use kaito_presets::InstanceTypes;
use kube::{
    Api, Client, Resource,
    runtime::{
        controller::{ReconcileReason, ReconcileRequest},
        watcher::{self, Event},
    },
};
use queue::{Queue, claim_failure_event, node_event, owned_event, pod_event, pod_failure_event};
use serde::de::DeserializeOwned;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

use super::{Options, backoff::lock, cache::Cache, manifest::Unreadable, metrics::Metrics};
use crate::{
    decide::{ObjectKind, Provisioner},
    karpenter::NodeClaim,
    workspace::{LABEL_WORKSPACE, Workspace},
};

/// Caches of all that is watched. Dropping it ends the watches.
#[derive(Debug)]
pub struct Watches {
    /// The workspaces.
    pub workspaces: Cache<Workspace>,
    /// All nodes.
    pub nodes: Cache<Node>,
    /// Services with the label of a workspace.
    pub services: Cache<Service>,
    /// Network policies with the label of a workspace.
    pub network_policies: Cache<NetworkPolicy>,
    /// Deployments with the label of a workspace.
    pub deployments: Cache<Deployment>,
    /// StatefulSets with the label of a workspace.
    pub stateful_sets: Cache<StatefulSet>,
    /// Pods with the label of a workspace.
    pub pods: Cache<Pod>,
    /// All node claims.
    pub claims: Cache<NodeClaim>,
    /// Whether the cluster has the kind NodeClaim; `None` before the first list.
    pub claims_exist: watch::Receiver<Option<bool>>,
    /// Events about pods that StatefulSets could not create.
    pub pod_failures: Cache<KubeEvent>,
    /// Warnings of Karpenter about node claims.
    pub claim_failures: Cache<KubeEvent>,
    synced: watch::Receiver<bool>,
    _tasks: JoinSet<()>,
}

/// Counts the kinds whose first list is not complete yet.
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

/// Starts watches.
struct Starter<'a> {
    client: &'a Client,
    /// The only namespace to watch, if there is one.
    namespace: Option<&'a str>,
    queue: Queue,
    pending: Pending,
    tasks: JoinSet<()>,
}

impl Starter<'_> {
    fn scoped<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        match self.namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        }
    }

    /// A watch whose first list reconciles wait for.
    fn watch<K>(
        &mut self,
        api: Api<K>,
        config: watcher::Config,
        tell: impl FnMut(&Queue, &Event<K>) + Send + 'static,
    ) -> Cache<K>
    where
        K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Send + Sync + 'static,
    {
        let (cache, follower) = self.follower();
        self.tasks.spawn(follow(api, config, follower, tell));
        cache
    }

    /// An empty cache and what fills it; reconciles wait for its first list.
    fn follower<K>(&self) -> (Cache<K>, Follower<K>)
    where
        K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + 'static,
    {
        self.pending.more();
        let (cache, filler) = Cache::new();
        (cache, Follower::new(filler, self.queue.clone(), Some(self.pending.clone())))
    }

    /// A watch of what owned objects have in common: their label.
    fn watch_owned<K>(&mut self, tell: impl FnMut(&Queue, &Event<K>) + Send + 'static) -> Cache<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned
            + Send
            + Sync
            + 'static,
    {
        self.watch(self.scoped(), watcher::Config::default().labels(LABEL_WORKSPACE), tell)
    }

    /// A watch of events. Without them a condition's message lacks a cause, and all else works: no reconcile waits for them.
    fn watch_events(
        &mut self,
        api: Api<KubeEvent>,
        fields: &str,
        tell: impl FnMut(&Queue, &Event<KubeEvent>) + Send + 'static,
    ) -> Cache<KubeEvent> {
        let (cache, filler) = Cache::new();
        let follower = Follower::new(filler, self.queue.clone(), None);
        self.tasks.spawn(follow(api, watcher::Config::default().fields(fields), follower, tell));
        cache
    }
}

impl Watches {
    /// Starts all watches. The stream names the workspaces to reconcile.
    pub fn start(
        client: &Client,
        options: &Options,
        mut instance_types: watch::Receiver<Arc<InstanceTypes>>,
        metrics: &Metrics,
    ) -> (Self, impl Stream<Item = Result<ReconcileRequest<Workspace>, watcher::Error>> + Send + use<>) {
        let (synced, synced_receiver) = watch::channel(false);
        let (sender, receiver) = mpsc::unbounded_channel();
        let (workspaces, workspaces_filler) = Cache::new();
        let queue = Queue::new(sender, metrics.clone(), workspaces.clone());
        let pending = Pending { left: Arc::default(), synced };
        // Until all watches are started, so that the first ones cannot be taken for all.
        pending.more();
        let namespace = options.namespace.as_deref();
        let mut start = Starter { client, namespace, queue, pending, tasks: JoinSet::new() };

        start.pending.more();
        let follower = Follower::new(workspaces_filler, start.queue.clone(), Some(start.pending.clone()));
        let unreadable = Unreadable::new(client.clone(), &options.identity, metrics.clone());
        let manifests = start.scoped();
        start.tasks.spawn(watch_workspaces(manifests, follower, unreadable));
        let mut known = HashMap::new();
        let tell = move |queue: &Queue, event: &Event<Node>| node_event(queue, &mut known, event);
        let nodes = start.watch(Api::all(client.clone()), watcher::Config::default(), tell);
        let pods = start.watch_owned(pod_event);
        let services = start.watch_owned(owned_event);
        let network_policies = start.watch_owned(owned_event);
        let deployments = start.watch_owned(owned_event);
        let stateful_sets = start.watch_owned(owned_event);
        let fields = format!("involvedObject.kind={},reason=FailedCreate", ObjectKind::StatefulSet);
        let pod_failures = start.watch_events(start.scoped(), &fields, pod_failure_event);
        let (exist, claims_exist) = watch::channel(None);
        let (claims, claim_failures) = match options.decide.provisioner {
            Provisioner::Karpenter(_) => {
                let (claims, follower) = start.follower();
                start.tasks.spawn(watch_claims(client.clone(), follower, exist));
                let known = claims.clone();
                let tell = move |queue: &Queue, event: &Event<KubeEvent>| claim_failure_event(queue, &known, event);
                let fields = format!("involvedObject.kind={},type=Warning", ObjectKind::NodeClaim);
                (claims, start.watch_events(Api::all(client.clone()), &fields, tell))
            }
            Provisioner::None => (Cache::new().0, Cache::new().0),
        };
        start.pending.done();
        let Starter { queue, mut tasks, .. } = start;
        tasks.spawn(async move {
            while instance_types.changed().await.is_ok() {
                queue.push_where(|_| true);
            }
        });

        let watches = Self {
            workspaces,
            nodes,
            services,
            network_policies,
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

    /// Becomes true once the first list of every kind is complete.
    pub fn synced(&self) -> watch::Receiver<bool> {
        self.synced.clone()
    }
}

//! Simulates the kubelets of all nodes: nodes with heartbeats, and pods that reach the states that a test asks for, with the
//! statuses that a kubelet writes.

mod behaviour;
mod containers;
mod node;
mod process;
mod status;
mod variables;

use std::{
    collections::{HashMap, HashSet},
    future::pending,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt;
use k8s_openapi::api::{coordination::v1::Lease, core::v1};
use kube::{
    Api, Error, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use serde_json::{Value, json};
use tokio::{
    sync::{OnceCell, watch},
    task::JoinHandle,
    time::sleep,
};

pub use behaviour::Behaviour;
use behaviour::Rule;
pub use containers::{Image, Listener, containers_need};
use containers::{Images, Inside, PodNetwork};
pub use node::Node;
pub use process::Process;
pub(crate) use status::now;
use status::{Placed, State};

use crate::control_plane::ControlPlane;

/// The kubelets of all simulated nodes.
#[derive(Clone)]
pub struct Kubelet(Arc<Inner>);

struct Inner {
    plane: ControlPlane,
    nodes: Mutex<HashMap<String, Node>>,
    rules: watch::Sender<Vec<Rule>>,
    pods: Mutex<HashMap<String, Begun>>,
    processes: Mutex<HashMap<(String, String), Process>>,
    addresses: AtomicU32,
    images: Images,
    network: OnceCell<PodNetwork>,
    /// Of containers that run, by namespace, pod and name.
    insides: Mutex<HashMap<[String; 3], Inside>>,
}

/// A pod that was begun.
struct Begun {
    node: String,
    order: watch::Sender<Order>,
}

/// What a pod is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Run,
    End,
    /// Its node is lost: it is gone at once, and nobody tells of it.
    Vanish,
}

impl Begun {
    fn end(&self) {
        self.order.send_if_modified(|order| {
            let changes = *order == Order::Run;
            if changes {
                *order = Order::End;
            }
            changes
        });
    }
}

/// Returns once the pod is not to run any more.
async fn ends(order: &mut watch::Receiver<Order>) {
    // Without a sender, nobody wants the pod.
    let _ = order.wait_for(|order| *order != Order::Run).await;
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap()
}

impl Kubelet {
    /// Begins to run pods. There are no nodes yet.
    pub fn start(plane: &ControlPlane) -> Self {
        let kubelet = Self(Arc::new(Inner {
            plane: plane.clone(),
            nodes: Mutex::default(),
            rules: watch::Sender::new(Vec::new()),
            pods: Mutex::default(),
            processes: Mutex::default(),
            addresses: AtomicU32::new(0),
            images: Images::default(),
            network: OnceCell::new(),
            insides: Mutex::default(),
        }));
        tokio::spawn(kubelet.clone().watch_pods());
        tokio::spawn(kubelet.clone().renew_leases());
        kubelet
    }

    /// Registers a node.
    pub async fn add(&self, node: Node) {
        let ip = self.address([10, 0]);
        let api = Api::<v1::Node>::all(self.0.plane.client.clone());
        insist(|| async { api.patch(&node.name, &by_kubelet(), &Patch::Apply(node.object())).await }).await.unwrap();
        self.renew(&node).await;
        let status = json!({"status": node.status(node.starts_ready(), &ip)});
        match insist(|| async {
            api.patch_status(&node.name, &PatchParams::default(), &Patch::Strategic(&status)).await
        })
        .await
        {
            // Its owner was deleted meanwhile, and the node with it.
            Err(Error::Api(status)) if status.code == 404 => {}
            written => {
                written.unwrap();
                lock(&self.0.nodes).insert(node.name.clone(), node);
            }
        }
    }

    /// Sets whether the node is ready.
    pub async fn set_ready(&self, name: &str, ready: bool) {
        let node = lock(&self.0.nodes)[name].clone();
        let conditions = node.status(ready, "")["conditions"].take();
        let status = json!({"status": {"conditions": conditions}});
        let api = Api::<v1::Node>::all(self.0.plane.client.clone());
        insist(|| async { api.patch_status(name, &PatchParams::default(), &Patch::Strategic(&status)).await })
            .await
            .unwrap();
    }

    /// The node loses its power: its pods end at once, nobody tells how, and its heartbeats stop. Its object stays, with what the
    /// controller manager writes after the node's lease has run out.
    pub async fn lose(&self, name: &str) {
        let node = lock(&self.0.nodes).remove(name).unwrap_or_else(|| panic!("no node {name}"));
        for begun in lock(&self.0.pods).values().filter(|begun| begun.node == name) {
            begun.order.send_replace(Order::Vanish);
        }
        let status = json!({"status": {"conditions": node.unknown()}});
        let api = Api::<v1::Node>::all(self.0.plane.client.clone());
        insist(|| async { api.patch_status(name, &PatchParams::default(), &Patch::Strategic(&status)).await })
            .await
            .unwrap();
    }

    /// Removes the node, as a cloud does with a machine that is gone.
    pub async fn remove(&self, name: &str) {
        lock(&self.0.nodes).remove(name);
        let api = Api::<v1::Node>::all(self.0.plane.client.clone());
        match insist(|| async { api.delete(name, &DeleteParams::default()).await.map(drop) }).await {
            // Its owner was deleted, and the garbage collector was faster.
            Err(Error::Api(status)) if status.code == 404 => {}
            removed => removed.unwrap(),
        }
    }

    /// Sets what the namespace's pods do from now on.
    pub fn pods_of(&self, namespace: &str, behaviour: Behaviour) {
        self.rule(Rule { namespace: namespace.to_owned(), pod: None, container: None, behaviour });
    }

    /// Sets what one pod does from now on, differently from the others in its namespace.
    pub fn pod(&self, namespace: &str, pod: &str, behaviour: Behaviour) {
        self.rule(Rule { namespace: namespace.to_owned(), pod: Some(pod.to_owned()), container: None, behaviour });
    }

    /// Sets what one container, which may be an init container, of the namespace's pods does from now on.
    pub fn container_of(&self, namespace: &str, container: &str, behaviour: Behaviour) {
        let container = Some(container.to_owned());
        self.rule(Rule { namespace: namespace.to_owned(), pod: None, container, behaviour });
    }

    fn rule(&self, rule: Rule) {
        self.0.rules.send_modify(|rules| {
            rules.retain(|old| old.namespace != rule.namespace || old.pod != rule.pod);
            rules.push(rule);
        });
    }

    /// The process of a pod that runs as a process.
    pub fn process(&self, namespace: &str, pod: &str) -> Option<Process> {
        lock(&self.0.processes).get(&(namespace.to_owned(), pod.to_owned())).cloned()
    }

    fn address(&self, [first, second]: [u8; 2]) -> String {
        let number = self.0.addresses.fetch_add(1, Ordering::Relaxed) + 1;
        format!("{first}.{second}.{}.{}", number / 250, number % 250 + 1)
    }

    async fn renew_leases(self) {
        loop {
            let nodes: Vec<Node> = lock(&self.0.nodes).values().cloned().collect();
            for node in &nodes {
                self.renew(node).await;
            }
            sleep(Duration::from_secs(10)).await;
        }
    }

    async fn renew(&self, node: &Node) {
        let leases = Api::<Lease>::namespaced(self.0.plane.client.clone(), "kube-node-lease");
        // A missed heartbeat does no harm: the next one follows.
        let _ = leases.patch(&node.name, &by_kubelet(), &Patch::Apply(node.lease())).await;
    }

    async fn watch_pods(self) {
        let pods = Api::<v1::Pod>::all(self.0.plane.client.clone());
        let mut events = pin!(watcher(pods, watcher::Config::default().fields("spec.nodeName!=")).default_backoff());
        let mut listed = HashSet::new();
        while let Some(event) = events.next().await {
            match event {
                // The watcher restarts by itself.
                Err(_) => {}
                Ok(Event::Init) => listed.clear(),
                Ok(Event::InitApply(pod)) => {
                    listed.insert(pod.uid().unwrap());
                    self.see(pod);
                }
                Ok(Event::InitDone) => lock(&self.0.pods).retain(|uid, begun| {
                    let exists = listed.contains(uid);
                    if !exists {
                        begun.end();
                    }
                    exists
                }),
                Ok(Event::Apply(pod)) => self.see(pod),
                Ok(Event::Delete(pod)) => {
                    if let Some(begun) = lock(&self.0.pods).remove(&pod.uid().unwrap()) {
                        begun.end();
                    }
                }
            }
        }
    }

    fn see(&self, pod: v1::Pod) {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default();
        if !lock(&self.0.nodes).contains_key(node) {
            return;
        }
        let ends = pod.metadata.deletion_timestamp.is_some();
        let node = node.to_owned();
        let mut pods = lock(&self.0.pods);
        let begun = pods.entry(pod.uid().unwrap()).or_insert_with(|| {
            let order = watch::Sender::new(Order::Run);
            let task: JoinHandle<()> = tokio::spawn(self.clone().run(pod, order.subscribe()));
            drop(task);
            Begun { node, order }
        });
        if ends {
            begun.end();
        }
    }

    /// Runs a pod from its start to its end on the node.
    async fn run(self, pod: v1::Pod, mut order: watch::Receiver<Order>) {
        let host_ip = self.address([10, 0]);
        let behaviour = self.behaviour(&pod).1;
        if behaviour == Behaviour::Containers {
            self.run_containers(&pod, &host_ip, &mut order).await;
        } else {
            let pod_ip = self.address([10, 244]);
            let mut placed = Placed::new(&pod, &host_ip, &pod_ip);
            if behaviour == Behaviour::Process {
                self.run_process(&mut placed, &mut order).await;
            } else {
                tokio::select! {
                    () = self.simulate(&mut placed) => {}
                    () = ends(&mut order) => {}
                }
            }
        }
        if *order.borrow() == Order::Vanish {
            return;
        }
        let pods = self.pods(&pod);
        let uid = Preconditions { uid: pod.uid(), resource_version: None };
        let at_once = DeleteParams { preconditions: Some(uid), ..DeleteParams::default().grace_period(0) };
        let _ = insist(|| async { pods.delete(&pod.name_any(), &at_once).await.map(drop) }).await;
    }

    /// Never ends.
    async fn simulate(&self, placed: &mut Placed<'_>) {
        let pod = placed.pod;
        let mut rules = self.0.rules.subscribe();
        loop {
            rules.mark_unchanged();
            let now = self.behaviour(pod);
            placed.container.clone_from(&now.0);
            tokio::select! {
                () = self.behave(placed, &now.1) => {}
                () = async {
                    while rules.changed().await.is_ok() {
                        if self.behaviour(pod) != now {
                            return;
                        }
                    }
                    pending().await
                } => {}
            }
        }
    }

    /// Never ends: a container that has ended stays so, or is restarted.
    async fn behave(&self, placed: &mut Placed<'_>, behaviour: &Behaviour) {
        match behaviour {
            Behaviour::Ready => self.write(placed, &State::Running { started: true, ready: true }).await,
            Behaviour::Pulling => self.write(placed, &State::Creating).await,
            Behaviour::Loading | Behaviour::Process | Behaviour::Containers => {
                self.write(placed, &State::Running { started: false, ready: false }).await;
            }
            Behaviour::ImageMissing => {
                for wait in [10, 20, 40, 80, 160, 300].into_iter().chain(std::iter::repeat(300)) {
                    self.write(placed, &State::ImageMissing { backing_off: false }).await;
                    sleep(Duration::from_millis(500)).await;
                    self.write(placed, &State::ImageMissing { backing_off: true }).await;
                    sleep(Duration::from_secs(wait)).await;
                }
            }
            &Behaviour::Exits { code, reason, log } => loop {
                let log = || log.to_owned();
                self.write(placed, &State::Running { started: false, ready: false }).await;
                sleep(Duration::from_millis(500)).await;
                self.write(placed, &State::Exited { code, reason, log: log() }).await;
                sleep(Duration::from_millis(200)).await;
                // The kubelet's own times are ten times as long.
                let wait = 1 << placed.restarts.min(5);
                let seconds = 10 * wait;
                self.write(placed, &State::BackingOff { code, reason, log: log(), seconds }).await;
                sleep(Duration::from_secs(wait)).await;
                placed.restarts += 1;
            },
        }
        pending().await
    }

    fn behaviour(&self, pod: &v1::Pod) -> (String, Behaviour) {
        let rules = self.0.rules.borrow();
        let namespace = pod.namespace().unwrap_or_default();
        let about = || rules.iter().filter(|rule| rule.is_about(&namespace, &pod.name_any()));
        let rule = about().find(|rule| rule.pod.is_some()).or_else(|| about().next_back());
        let container =
            rule.and_then(|rule| rule.container.clone()).unwrap_or_else(|| status::computing(pod).name.clone());
        (container, rule.map_or(Behaviour::Ready, |rule| rule.behaviour.clone()))
    }

    async fn write(&self, placed: &mut Placed<'_>, state: &State) {
        let status = placed.status(state);
        placed.ended(&status);
        self.write_status(placed.pod, status).await;
    }

    async fn write_status(&self, pod: &v1::Pod, status: Value) {
        let pods = self.pods(pod);
        let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": status});
        // A pod that is gone has no status.
        let _ = insist(|| async {
            pods.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(&patch)).await.map(drop)
        })
        .await;
    }

    fn pods(&self, pod: &v1::Pod) -> Api<v1::Pod> {
        Api::namespaced(self.0.plane.client.clone(), &pod.namespace().unwrap_or_default())
    }
}

fn by_kubelet() -> PatchParams {
    PatchParams::apply("kubelet").force()
}

/// Tries again while the API server does not answer, as a kubelet does; its refusals are final.
pub(crate) async fn insist<T, F: Future<Output = Result<T, Error>>>(request: impl Fn() -> F) -> Result<T, Error> {
    for _ in 0..120 {
        match request().await {
            Err(error) if !matches!(&error, Error::Api(status) if status.code < 500 && status.code != 429) => {
                sleep(Duration::from_millis(500)).await;
            }
            answer => return answer,
        }
    }
    request().await
}

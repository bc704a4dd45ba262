//! Pods whose containers all run: the programs of their images, with the manifest's commands, environments, volumes, users and
//! probes, at an address of the pod's own.

mod image;
mod instance;
mod network;
mod probe;
mod sandbox;
mod status;

use std::{fs::File, process::Command, sync::Mutex, time::Duration};

use futures_util::future::join_all;
use k8s_openapi::api::core::v1::{Container, Pod};
use kube::ResourceExt;
use tokio::{
    sync::{Notify, watch},
    time::sleep,
};

pub use image::Image;
pub(super) use image::Images;
pub(super) use instance::Inside;
pub use network::Listener;
pub(super) use network::PodNetwork;

use self::{
    instance::{Instance, Launch},
    probe::{Probed, Reached},
    sandbox::Sandbox,
    status::Record,
};
use super::{Kubelet, Order, Placed, ends, lock};
use crate::control_plane::{Printed, printed};

/// What this machine lacks to run all containers of pods, if anything.
pub fn containers_need() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("pods with addresses of their own need root".to_owned());
    }
    // All that is used is tried.
    let script = "ip link add pods type bridge && mkdir -p /tmp && mount -t tmpfs tmpfs /tmp && mkdir /tmp/{upper,work,root} && \
                  mount -t overlay -o lowerdir=/usr,upperdir=/tmp/upper,workdir=/tmp/work overlay /tmp/root && setpriv true && \
                  nsenter --version";
    let unshare = ["--mount", "--net", "--uts", "--ipc", "--pid", "--fork", "bash", "-c", script];
    match Command::new("unshare").args(unshare).output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!(
            "pods with addresses of their own need iproute2, util-linux, bridges and overlays: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        Err(error) => Some(format!("pods with addresses of their own need unshare: {error}")),
    }
}

impl Kubelet {
    /// From now on, images whose references contain `part` are this one, unless an earlier one is.
    pub fn image(&self, part: &str, image: Image) {
        self.0.images.push(part, image);
    }

    /// The address of a pod whose containers run.
    pub fn address_of(&self, namespace: &str, pod: &str) -> Option<String> {
        self.0.network.get()?.address(namespace, pod)
    }

    /// Where the programs of a pod whose containers run listen.
    pub fn listeners(&self, namespace: &str, pod: &str) -> Vec<Listener> {
        self.0.network.get().map(|network| network.listeners(namespace, pod)).unwrap_or_default()
    }

    /// Runs a command in a container of such a pod, as `kubectl exec` does.
    pub async fn exec(&self, namespace: &str, pod: &str, container: &str, words: &[&str]) -> Printed {
        let key = [namespace, pod, container].map(str::to_owned);
        let inside = lock(&self.0.insides).get(&key).cloned().unwrap_or_else(|| panic!("{key:?} does not run"));
        let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
        printed(&mut inside.exec(&words), "").await
    }

    /// Processes of pods that have ended.
    pub fn left_behind(&self) -> Vec<String> {
        self.0.network.get().map(PodNetwork::left_behind).unwrap_or_default()
    }

    /// Runs until told to end; then all containers have the pod's grace period.
    pub(super) async fn run_containers(&self, pod: &Pod, host_ip: &str, order: &mut watch::Receiver<Order>) {
        let network = self.0.network.get_or_init(PodNetwork::start).await;
        let folder = sandbox::folder(&self.0.plane.folder, pod);
        let sandbox = Sandbox::start(network, pod, folder).await;
        let spec = pod.spec.as_ref().unwrap();
        let uid = pod.uid().unwrap();
        let records = |containers: &[Container]| containers.iter().map(|it| Record::new(it, &uid)).collect::<Vec<_>>();
        let records = [records(spec.init_containers.as_deref().unwrap_or_default()), records(&spec.containers)];
        let client = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().unwrap();
        let ip = sandbox.ip.clone();
        let mut placed = Placed::new(pod, host_ip, &ip);
        {
            let running = RunningPod {
                kubelet: self,
                pod,
                host_ip,
                sandbox: &sandbox,
                client,
                records: Mutex::new(records),
                changed: Notify::new(),
            };
            let watched = order.clone();
            tokio::select! {
                () = running.run(order) => {}
                () = running.tell(&mut placed, &watched) => {}
            }
            if *order.borrow() != Order::Vanish {
                running.write(&mut placed).await;
            }
        }
        sandbox.end(network, pod).await;
    }
}

/// Which of a pod's containers.
#[derive(Debug, Clone, Copy)]
struct Which {
    /// Whether it is an init container.
    init: bool,
    index: usize,
}

struct RunningPod<'a> {
    kubelet: &'a Kubelet,
    pod: &'a Pod,
    host_ip: &'a str,
    sandbox: &'a Sandbox,
    client: reqwest::Client,
    /// Of the init containers, and of the others.
    records: Mutex<[Vec<Record>; 2]>,
    changed: Notify,
}

/// A tenth of a kubelet's times.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
const FORGIVEN_AFTER: Duration = Duration::from_secs(60);

impl RunningPod<'_> {
    async fn run(&self, order: &mut watch::Receiver<Order>) {
        let spec = self.pod.spec.as_ref().unwrap();
        for index in 0..spec.init_containers.as_ref().map_or(0, Vec::len) {
            self.keep(Which { init: true, index }, order).await;
        }
        let all = (0..spec.containers.len()).map(|index| {
            let mut order = order.clone();
            async move { self.keep(Which { init: false, index }, &mut order).await }
        });
        join_all(all).await;
    }

    /// Runs one container again and again, until an init container has succeeded, or the pod ends.
    async fn keep(&self, which: Which, order: &mut watch::Receiver<Order>) {
        let spec = self.pod.spec.as_ref().unwrap();
        let list = if which.init { spec.init_containers.as_ref().unwrap() } else { &spec.containers };
        let container = &list[which.index];
        let mut wait = Duration::ZERO;
        for start in 0.. {
            let mut instance = loop {
                if *order.borrow() != Order::Run {
                    return;
                }
                match self.launch(container, start) {
                    Ok(launch) => break launch.start().await,
                    Err(missing) => {
                        self.record(which, |record| record.waits("ErrImagePull", &format!("{missing}: not found")));
                        self.pause(Duration::from_secs(2), order).await;
                    }
                }
            };
            let key = [self.pod.namespace().unwrap_or_default(), self.pod.name_any(), container.name.clone()];
            lock(&self.kubelet.0.insides).insert(key.clone(), instance.inside.clone());
            self.record(which, Record::runs);
            let code = self.watched(which, container, &mut instance, order).await;
            lock(&self.kubelet.0.insides).remove(&key);
            let keeps_log = container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
            let message = if keeps_log && code != 0 { instance.last_words() } else { String::new() };
            self.record(which, |record| record.ended(code, &message));
            if which.init && code == 0 {
                self.record(which, Record::succeeded);
                return;
            }
            if instance.since.elapsed() > FORGIVEN_AFTER {
                wait = Duration::ZERO;
            }
            // The first start anew is soon.
            self.pause(Duration::from_millis(300), order).await;
            if !wait.is_zero() && *order.borrow() == Order::Run {
                let message = format!(
                    "back-off {}s restarting failed container={} pod={}_{}({})",
                    wait.as_secs() * 10,
                    container.name,
                    self.pod.name_any(),
                    self.pod.namespace().unwrap_or_default(),
                    self.pod.uid().unwrap_or_default(),
                );
                self.record(which, |record| record.waits("CrashLoopBackOff", &message));
                self.pause(wait, order).await;
            }
            wait = (wait * 2).clamp(FIRST_WAIT, LONGEST_WAIT);
        }
    }

    /// The exit status of a container that has ended by itself, by its probes or with its pod.
    async fn watched(
        &self,
        which: Which,
        container: &Container,
        instance: &mut Instance,
        order: &mut watch::Receiver<Order>,
    ) -> i32 {
        let ended = if which.init {
            tokio::select! {
                code = instance.ended() => Some(code),
                () = ends(order) => None,
            }
        } else {
            let probed = Probed {
                container,
                inside: instance.inside.clone(),
                ip: &self.sandbox.ip,
                client: &self.client,
                log: File::create(instance.log.with_extension("probes")).unwrap(),
            };
            let tell = |reached| {
                self.record(which, |record| match reached {
                    Reached::Started => record.started(),
                    Reached::Ready(ready) => record.ready = ready,
                });
            };
            tokio::select! {
                code = instance.ended() => Some(code),
                _ = probed.watch(tell) => None,
                () = ends(order) => None,
            }
        };
        if let Some(code) = ended {
            return code;
        }
        // As in a cluster, where the endpoint is removed first.
        self.record(which, |record| record.ready = false);
        let grace = self.pod.spec.as_ref().unwrap().termination_grace_period_seconds.unwrap_or(30);
        let limit = Duration::from_secs(grace.try_into().unwrap_or_default());
        let vanished = tokio::select! {
            code = instance.terminate(container, limit) => Some(code),
            // An error: nobody is left who could say so.
            Ok(_) = order.wait_for(|order| *order == Order::Vanish) => None,
        };
        match vanished {
            Some(code) => code,
            None => instance.kill().await,
        }
    }

    /// # Errors
    ///
    /// The image that there is not.
    fn launch<'b>(&'b self, container: &'b Container, start: u32) -> Result<Launch<'b>, String> {
        let images = &self.kubelet.0.images;
        let reference = container.image.as_deref().unwrap_or_default();
        let image = images.pull(reference).ok_or(reference)?;
        let mounts = self.sandbox.mounts(self.pod, container, &image, |reference| images.pull(reference))?;
        let (namespace, pod) = (self.pod.namespace().unwrap_or_default(), self.pod.name_any());
        let uid = self.pod.uid().unwrap_or_default();
        let name = format!("{namespace}.{pod}.{}.{}.{start}.log", uid.get(..4).unwrap_or_default(), container.name);
        let log = self.kubelet.0.plane.folder.join("logs").join(name);
        Ok(Launch { pod: self.pod, container, sandbox: self.sandbox, host_ip: self.host_ip, image, mounts, log })
    }

    fn record(&self, Which { init, index }: Which, change: impl FnOnce(&mut Record)) {
        let mut records = lock(&self.records);
        let [of_init, others] = &mut *records;
        change(if init { &mut of_init[index] } else { &mut others[index] });
        self.changed.notify_one();
    }

    /// Waits, unless the pod is to end.
    async fn pause(&self, time: Duration, order: &mut watch::Receiver<Order>) {
        tokio::select! {
            () = sleep(time) => {}
            () = ends(order) => {}
        }
    }

    /// Writes the pod's status whenever it changes; never ends.
    async fn tell(&self, placed: &mut Placed<'_>, order: &watch::Receiver<Order>) {
        loop {
            if *order.borrow() != Order::Vanish {
                self.write(placed).await;
            }
            self.changed.notified().await;
        }
    }

    async fn write(&self, placed: &mut Placed<'_>) {
        let [init, others] = lock(&self.records).clone();
        let statuses = |records: &[Record]| records.iter().map(Record::status).collect::<Vec<_>>();
        let incomplete: Vec<_> = init.iter().filter(|record| !record.ready).map(Record::name).collect();
        let ran = others.iter().any(Record::has_run);
        let status = placed.of_containers(&statuses(&init), &statuses(&others), &incomplete, ran);
        self.kubelet.write_status(self.pod, status).await;
    }
}

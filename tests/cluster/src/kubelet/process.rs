//! A pod that runs as a process of this machine: its container's arguments and environment, a token of its service
//! account, its probes.

use std::{
    collections::HashMap,
    fs::File,
    path::PathBuf,
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::{
        authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
        core::v1::{Container, Pod, Probe, ServiceAccount},
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::{Api, ResourceExt, api::PostParams};
use tokio::{process::Command, sync::watch, time::sleep};

use super::{
    Kubelet, Order, Placed, State, ends, lock,
    variables::{expanded, value},
};
use crate::control_plane::{free_port, kaito, spawn};

/// A running process.
#[derive(Debug, Clone)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// From ports of the container to ports of this machine.
    pub ports: HashMap<u16, u16>,
    /// When it was started.
    pub since: Instant,
}

impl Process {
    /// Ends it as `kill -KILL` does.
    pub fn kill(&self) {
        signal(self.pid, rustix::process::Signal::KILL);
    }

    /// What it printed at a path of one of its ports.
    pub async fn get(&self, port: u16, path: &str) -> reqwest::Result<String> {
        reqwest::get(format!("http://127.0.0.1:{}{path}", self.ports[&port])).await?.error_for_status()?.text().await
    }

    /// A value of /proc/PID/status in bytes: `VmRSS` is its memory now, `VmHWM` the most that it had.
    pub fn memory(&self, line: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap();
        let found = status.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':'));
        found.unwrap().trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }
}

pub(super) fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    // It may have ended already.
    let _ = rustix::process::kill_process(pid, signal);
}

impl Kubelet {
    /// Runs until told to end; then the process has its grace period to end by itself.
    pub(super) async fn run_process(&self, placed: &mut Placed<'_>, order: &mut watch::Receiver<Order>) {
        let pod = placed.pod;
        let container = &pod.spec.as_ref().unwrap().containers[0];
        placed.container.clone_from(&container.name);
        let kubeconfig = self.kubeconfig(pod).await;
        while *order.borrow() == Order::Run {
            let ports = local_ports(container);
            let mut command = self.command(placed, container, &ports);
            command.env("KUBECONFIG", &kubeconfig);
            let mut child = spawn(&mut command);
            let pid = child.id().unwrap();
            let note = pod.name_any();
            self.0.plane.note(&note, pid);
            let process = Process { pid, ports, since: Instant::now() };
            let name = (pod.namespace().unwrap(), pod.name_any());
            lock(&self.0.processes).insert(name.clone(), process.clone());

            let ended = tokio::select! {
                status = child.wait() => Some(status.unwrap()),
                () = self.probe(placed, container, &process) => None,
                () = ends(order) => None,
            };
            let code = match ended {
                Some(status) => status.code().unwrap_or(137),
                None => {
                    // As in a cluster, where the endpoint is removed first.
                    self.write(placed, &State::Running { started: true, ready: false }).await;
                    signal(pid, rustix::process::Signal::TERM);
                    let grace = pod.spec.as_ref().unwrap().termination_grace_period_seconds.unwrap_or(30);
                    let limit = Duration::from_secs(grace.try_into().unwrap());
                    match tokio::time::timeout(limit, child.wait()).await {
                        Ok(status) => status.unwrap().code().unwrap_or(137),
                        Err(_) => {
                            child.kill().await.unwrap();
                            137
                        }
                    }
                }
            };
            lock(&self.0.processes).remove(&name);
            self.0.plane.forget(&note);
            let exited =
                State::Exited { code, reason: if code == 0 { "Completed" } else { "Error" }, log: String::new() };
            self.write(placed, &exited).await;
            placed.restarts += 1;
            placed.running = None;
            let quickly = Duration::from_millis(500 << placed.restarts.min(4));
            tokio::select! {
                () = sleep(quickly) => {}
                () = ends(order) => {}
            }
        }
    }

    /// Ends when the liveness probe has failed as often as the pod allows.
    async fn probe(&self, placed: &mut Placed<'_>, container: &Container, process: &Process) {
        let mut written = None;
        let mut failures = 0;
        loop {
            let ready = passes(container.readiness_probe.as_ref(), container, process).await;
            if written != Some(ready) {
                self.write(placed, &State::Running { started: true, ready }).await;
                written = Some(ready);
            }
            let alive = passes(container.liveness_probe.as_ref(), container, process).await;
            let delay = container.liveness_probe.as_ref().and_then(|probe| probe.initial_delay_seconds).unwrap_or(0);
            let young = process.since.elapsed() < Duration::from_secs(delay.max(10).try_into().unwrap());
            failures = if alive || young { 0 } else { failures + 1 };
            let allowed = container.liveness_probe.as_ref().and_then(|probe| probe.failure_threshold).unwrap_or(3);
            if failures >= allowed {
                return;
            }
            sleep(Duration::from_millis(500)).await;
        }
    }

    fn command(&self, placed: &Placed<'_>, container: &Container, ports: &HashMap<u16, u16>) -> Command {
        let environment: HashMap<String, String> = container
            .env
            .iter()
            .flatten()
            .map(|variable| {
                let value = value(placed.pod, placed.host_ip, placed.pod_ip, variable);
                (variable.name.clone(), moved(&value, ports))
            })
            .collect();
        let expanded = |argument: &String| moved(&expanded(argument, &environment), ports);
        let log = self.0.plane.folder.join("logs").join(placed.pod.name_any());
        let log = File::options().create(true).append(true).open(log).unwrap();
        // The image's entrypoint is the program itself.
        let entrypoint = container.command.iter().flatten().skip(1);
        let mut command = Command::new(kaito());
        command
            .args(entrypoint.chain(container.args.iter().flatten()).map(expanded))
            .envs(&environment)
            .current_dir("/")
            .stdin(std::process::Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        command
    }

    /// Of the pod's service account, bound to the pod.
    async fn kubeconfig(&self, pod: &Pod) -> PathBuf {
        let namespace = pod.namespace().unwrap();
        let account = pod.spec.as_ref().unwrap().service_account_name.clone().unwrap();
        let request = TokenRequest {
            spec: TokenRequestSpec {
                audiences: Vec::new(),
                expiration_seconds: Some(3600),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: Some(pod.name_any()),
                    uid: pod.uid(),
                }),
            },
            ..TokenRequest::default()
        };
        let accounts = Api::<ServiceAccount>::namespaced(self.0.plane.client.clone(), &namespace);
        let token =
            super::insist(|| async { accounts.create_token_request(&account, &PostParams::default(), &request).await });
        let token = token.await.unwrap().status.unwrap().token;
        let folder = &self.0.plane.folder;
        let path = folder.join(format!("{}.kubeconfig", pod.name_any()));
        let authority = folder.join("certificates/ca.crt");
        let server = &self.0.plane.server;
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: pod\nclusters:\n  - name: tests\n    cluster: {{server: \
             \"{server}\", certificate-authority: {}}}\nusers:\n  - {{name: pod, user: {{token: {token}}}}}\ncontexts:\n  - \
             {{name: pod, context: {{cluster: tests, user: pod, namespace: {namespace}}}}}\n",
            authority.display()
        );
        std::fs::write(&path, text).unwrap();
        path
    }
}

/// Several pods share this machine's ports, so each gets other ports than it asks for.
fn local_ports(container: &Container) -> HashMap<u16, u16> {
    let ports = container.ports.iter().flatten();
    ports.map(|port| (port.container_port.try_into().unwrap(), free_port())).collect()
}

/// `:8443`, `=8443` or `8443`, in terms of this machine's ports.
fn moved(text: &str, ports: &HashMap<u16, u16>) -> String {
    let at = text.rfind([':', '=']).map_or(0, |at| at + 1);
    let (before, number) = text.split_at(at);
    match number.parse().ok().and_then(|port: u16| ports.get(&port)) {
        Some(port) => format!("{}{port}", before.replace("0.0.0.0", "127.0.0.1").replace("[::]", "127.0.0.1")),
        None => text.to_owned(),
    }
}

async fn passes(probe: Option<&Probe>, container: &Container, process: &Process) -> bool {
    let Some(probe) = probe else { return true };
    let Some(get) = &probe.http_get else { panic!("a pod that is one process knows httpGet alone: {probe:?}") };
    let port = port_of(container, &get.port);
    process.get(port, get.path.as_deref().unwrap_or("/")).await.is_ok()
}

/// The number of a container's port.
pub(super) fn port_of(container: &Container, port: &IntOrString) -> u16 {
    let number = match port {
        IntOrString::Int(port) => u16::try_from(*port).ok(),
        IntOrString::String(name) => container
            .ports
            .iter()
            .flatten()
            .find(|port| port.name.as_ref() == Some(name))
            .and_then(|port| u16::try_from(port.container_port).ok()),
    };
    number.unwrap_or_else(|| panic!("no such port: {port:?}"))
}

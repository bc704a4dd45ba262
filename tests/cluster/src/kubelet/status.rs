//! A pod's status, as a kubelet writes it.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, Pod},
    jiff::Timestamp,
};
use serde_json::{Value, json};

/// The state of the container that a [`Behaviour`](super::Behaviour) is about.
#[derive(Debug, Clone)]
pub(super) enum State {
    Creating,
    /// Its first failures, then the waiting between them.
    ImageMissing {
        backing_off: bool,
    },
    Running {
        started: bool,
        ready: bool,
    },
    Exited {
        code: i32,
        reason: &'static str,
        log: String,
    },
    BackingOff {
        code: i32,
        reason: &'static str,
        log: String,
        seconds: u64,
    },
}

/// The engine that stands behind a server.
const ENGINE: &str = "engine";

/// The container that computes the model: an engine where there is one, else the first.
pub(super) fn computing(pod: &Pod) -> &Container {
    let containers = &pod.spec.as_ref().unwrap().containers;
    containers.iter().find(|container| container.name == ENGINE).unwrap_or(&containers[0])
}

/// A pod on its node.
pub(super) struct Placed<'a> {
    pub pod: &'a Pod,
    pub host_ip: &'a str,
    pub pod_ip: &'a str,
    pub start: Timestamp,
    /// The container that a state is about.
    pub container: String,
    pub restarts: u32,
    /// Since when it runs.
    pub running: Option<Timestamp>,
    /// How it ended before.
    pub last: Option<Value>,
    /// Each condition's status, and since when it has it.
    pub conditions: BTreeMap<&'static str, (String, Timestamp)>,
}

impl<'a> Placed<'a> {
    pub fn new(pod: &'a Pod, host_ip: &'a str, pod_ip: &'a str) -> Self {
        Self {
            pod,
            host_ip,
            pod_ip,
            start: Timestamp::now(),
            container: String::new(),
            restarts: 0,
            running: None,
            last: None,
            conditions: BTreeMap::new(),
        }
    }

    /// The status, without fields that others than the kubelet write.
    pub fn status(&mut self, state: &State) -> Value {
        match state {
            State::Running { .. } => _ = self.running.get_or_insert_with(Timestamp::now),
            State::Exited { .. } | State::BackingOff { .. } => {}
            State::Creating | State::ImageMissing { .. } => (self.running, self.last) = (None, None),
        }
        let status = self.described(state);
        if let State::BackingOff { .. } = state {
            self.running = None;
        }
        status
    }

    fn described(&mut self, state: &State) -> Value {
        let spec = self.pod.spec.as_ref().unwrap();
        let init = spec.init_containers.as_deref().unwrap_or_default();
        let in_init = init.iter().position(|container| container.name == self.container);
        let initialized = in_init.is_none();
        let ready = initialized && matches!(state, State::Running { ready: true, .. });

        let init_statuses: Vec<Value> = init
            .iter()
            .enumerate()
            .map(|(index, container)| match in_init {
                Some(at) if index == at => self.container_status(container, state),
                Some(at) if index > at => waiting(container, "PodInitializing"),
                _ => self.completed(container),
            })
            .collect();
        let statuses: Vec<Value> = spec
            .containers
            .iter()
            .map(|container| {
                if !initialized {
                    waiting(container, "PodInitializing")
                } else if container.name == self.container {
                    self.container_status(container, state)
                } else {
                    self.beside(container, matches!(state, State::Running { ready: true, .. }))
                }
            })
            .collect();

        let incomplete: Vec<&str> =
            in_init.map_or(&[][..], |at| &init[at..]).iter().map(|container| container.name.as_str()).collect();
        let ran = ready
            || in_init.is_none()
                && matches!(state, State::Running { .. } | State::Exited { .. } | State::BackingOff { .. });
        self.of_containers(&init_statuses, &statuses, &incomplete, ran)
    }

    /// The pod's status, by those of its containers; `incomplete` are the init containers that have not succeeded yet.
    pub fn of_containers(&mut self, init: &[Value], statuses: &[Value], incomplete: &[&str], ran: bool) -> Value {
        let unready: Vec<&str> = statuses
            .iter()
            .filter(|status| status["ready"] == false)
            .filter_map(|status| status["name"].as_str())
            .collect();
        let containers_ready = if unready.is_empty() {
            json!({"status": "True", "reason": null, "message": null})
        } else {
            json!({
                "status": "False",
                "reason": "ContainersNotReady",
                "message": format!("containers with unready status: [{}]", unready.join(" ")),
            })
        };
        let initialized = if incomplete.is_empty() {
            json!({"status": "True", "reason": null, "message": null})
        } else {
            json!({
                "status": "False",
                "reason": "ContainersNotInitialized",
                "message": format!("containers with incomplete status: [{}]", incomplete.join(" ")),
            })
        };
        let sandbox = json!({"status": "True"});
        let conditions: Vec<Value> = [
            ("PodReadyToStartContainers", &sandbox),
            ("Initialized", &initialized),
            ("Ready", &containers_ready),
            ("ContainersReady", &containers_ready),
        ]
        .into_iter()
        .map(|(kind, condition)| {
            let mut condition = condition.clone();
            let status = condition["status"].as_str().unwrap_or_default().to_owned();
            let known = self.conditions.entry(kind).or_insert_with(|| (status.clone(), Timestamp::now()));
            if known.0 != status {
                *known = (status, Timestamp::now());
            }
            condition["type"] = json!(kind);
            condition["lastProbeTime"] = Value::Null;
            condition["lastTransitionTime"] = json!(text(known.1));
            condition
        })
        .collect();

        json!({
            "phase": if ran { "Running" } else { "Pending" },
            "conditions": conditions,
            "hostIP": self.host_ip,
            "hostIPs": [{"ip": self.host_ip}],
            "podIP": self.pod_ip,
            "podIPs": [{"ip": self.pod_ip}],
            "startTime": text(self.start),
            "initContainerStatuses": init,
            "containerStatuses": statuses,
        })
    }

    /// How the container that the state is about has ended, if it has.
    pub fn ended(&mut self, status: &Value) {
        let containers =
            ["initContainerStatuses", "containerStatuses"].into_iter().filter_map(|list| status[list].as_array());
        let ours = containers.flatten().find(|container| container["name"] == self.container.as_str());
        let ended = ours.map(|container| container["state"].clone()).filter(|state| state["terminated"].is_object());
        self.last = ended.or(self.last.take());
    }

    fn container_status(&self, container: &Container, state: &State) -> Value {
        let image = container.image.as_deref().unwrap_or_default();
        let mut status = json!({
            "name": container.name,
            "image": image,
            "imageID": "",
            "ready": false,
            "started": false,
            "restartCount": self.restarts,
        });
        let terminated = |code: i32, reason: &str, log: &str| {
            let keeps_log = container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
            let message = if keeps_log && !log.is_empty() { json!(log) } else { Value::Null };
            json!({"terminated": {
                "exitCode": code,
                "reason": reason,
                "message": message,
                "startedAt": text(self.running.unwrap_or(self.start)),
                "finishedAt": now(),
                "containerID": self.container_id(container),
            }})
        };
        let not_found = format!(
            "rpc error: code = NotFound desc = failed to pull and unpack image \"{image}\": failed to resolve reference \
             \"{image}\": {image}: not found"
        );
        if !matches!(state, State::Creating | State::ImageMissing { .. }) {
            status["imageID"] = json!(format!("{image}@sha256:{}", "0".repeat(64)));
            status["containerID"] = json!(self.container_id(container));
        }
        status["state"] = match state {
            State::Creating => json!({"waiting": {"reason": "ContainerCreating"}}),
            State::ImageMissing { backing_off: false } => {
                json!({"waiting": {"reason": "ErrImagePull", "message": not_found}})
            }
            State::ImageMissing { backing_off: true } => json!({"waiting": {
                "reason": "ImagePullBackOff",
                "message": format!("Back-off pulling image \"{image}\": ErrImagePull: {not_found}"),
            }}),
            State::Running { started, ready } => {
                status["started"] = json!(started);
                status["ready"] = json!(ready);
                if let Some(last) = self.last.as_ref().filter(|_| container.name == self.container) {
                    status["lastState"] = last.clone();
                }
                json!({"running": {"startedAt": text(self.running.unwrap_or(self.start))}})
            }
            State::Exited { code, reason, log } => terminated(*code, reason, log),
            State::BackingOff { code, reason, log, seconds } => {
                status["lastState"] = terminated(*code, reason, log);
                let metadata = &self.pod.metadata;
                json!({"waiting": {
                    "reason": "CrashLoopBackOff",
                    "message": format!(
                        "back-off {seconds}s restarting failed container={} pod={}_{}({})",
                        container.name,
                        metadata.name.as_deref().unwrap_or_default(),
                        metadata.namespace.as_deref().unwrap_or_default(),
                        metadata.uid.as_deref().unwrap_or_default(),
                    ),
                }})
            }
        };
        status
    }

    /// A container that runs beside the one that the state is about. A server before an engine is ready when the engine is.
    fn beside(&self, container: &Container, is_ready: bool) -> Value {
        let ready = is_ready || self.container != ENGINE;
        let mut status = self.container_status(container, &State::Running { started: true, ready });
        status["restartCount"] = json!(0);
        status["state"] = json!({"running": {"startedAt": text(self.start)}});
        status
    }

    fn completed(&self, container: &Container) -> Value {
        let mut status =
            self.container_status(container, &State::Exited { code: 0, reason: "Completed", log: String::new() });
        status["ready"] = json!(true);
        status["restartCount"] = json!(0);
        status
    }

    fn container_id(&self, container: &Container) -> String {
        let uid = self.pod.metadata.uid.as_deref().unwrap_or_default().replace('-', "");
        format!("containerd://{uid}{:0>32}", format!("{:x}{}", container.name.len(), self.restarts))
    }
}

fn waiting(container: &Container, reason: &str) -> Value {
    json!({
        "name": container.name,
        "image": container.image,
        "imageID": "",
        "ready": false,
        "started": false,
        "restartCount": 0,
        "state": {"waiting": {"reason": reason}},
    })
}

pub(crate) fn now() -> String {
    text(Timestamp::now())
}

/// Times of the API have whole seconds.
pub(super) fn text(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

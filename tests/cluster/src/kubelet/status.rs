//! A pod's status, as a kubelet writes it.

use k8s_openapi::{
    api::core::v1::{Container, Pod},
    jiff::Timestamp,
};
use serde_json::{Value, json};

/// Where the container that a [`Behaviour`](super::Behaviour) is about stands.
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

/// A pod on its node.
pub(super) struct Placed<'a> {
    pub pod: &'a Pod,
    pub host_ip: &'a str,
    pub pod_ip: &'a str,
    pub start: Timestamp,
    /// The container that `state` is about.
    pub container: String,
    pub restarts: u32,
}

impl Placed<'_> {
    /// The status, without what others than the kubelet write.
    pub fn status(&self, state: &State) -> Value {
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
                    self.container_status(container, &State::Running { started: true, ready: true })
                }
            })
            .collect();

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
        let initialized = if initialized {
            json!({"status": "True", "reason": null, "message": null})
        } else {
            let incomplete: Vec<&str> = init[in_init.unwrap_or_default()..].iter().map(|c| c.name.as_str()).collect();
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
            condition["type"] = json!(kind);
            condition["lastProbeTime"] = Value::Null;
            condition["lastTransitionTime"] = json!(now());
            condition
        })
        .collect();

        let ran = ready
            || in_init.is_none()
                && matches!(state, State::Running { .. } | State::Exited { .. } | State::BackingOff { .. });
        json!({
            "phase": if ran { "Running" } else { "Pending" },
            "conditions": conditions,
            "hostIP": self.host_ip,
            "hostIPs": [{"ip": self.host_ip}],
            "podIP": self.pod_ip,
            "podIPs": [{"ip": self.pod_ip}],
            "startTime": text(self.start),
            "initContainerStatuses": init_statuses,
            "containerStatuses": statuses,
        })
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
                "startedAt": text(self.start),
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
                json!({"running": {"startedAt": text(self.start)}})
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

//! A container's status, as a kubelet writes it.

use k8s_openapi::{api::core::v1::Container, jiff::Timestamp};
use serde_json::{Value, json};

use super::super::status::{now, text};

/// What is known of a container.
#[derive(Debug, Clone)]
pub struct Record {
    name: String,
    image: String,
    state: Value,
    last: Value,
    started: bool,
    pub ready: bool,
    /// How often it was started.
    starts: u32,
    /// When it was started last.
    since: Timestamp,
    pod: String,
}

impl Record {
    pub fn new(container: &Container, pod: &str) -> Self {
        Self {
            name: container.name.clone(),
            image: container.image.clone().unwrap_or_default(),
            state: json!({"waiting": {"reason": "PodInitializing"}}),
            last: json!({}),
            started: false,
            ready: false,
            starts: 0,
            since: Timestamp::now(),
            pod: pod.to_owned(),
        }
    }

    pub fn waits(&mut self, reason: &str, message: &str) {
        self.leave();
        self.state = json!({"waiting": {"reason": reason, "message": message}});
    }

    pub fn runs(&mut self) {
        self.leave();
        self.starts += 1;
        self.since = Timestamp::now();
        self.state = json!({"running": {"startedAt": text(self.since)}});
    }

    pub fn started(&mut self) {
        self.started = true;
    }

    /// It has ended; `message` is what it said last.
    pub fn ended(&mut self, code: i32, message: &str) {
        (self.started, self.ready) = (false, false);
        self.state = json!({"terminated": {
            "exitCode": code,
            "reason": if code == 0 { "Completed" } else { "Error" },
            "message": if message.is_empty() { Value::Null } else { json!(message) },
            "startedAt": text(self.since),
            "finishedAt": now(),
            "containerID": self.id(),
        }});
    }

    /// An init container is ready when it has succeeded.
    pub fn succeeded(&mut self) {
        self.ready = true;
    }

    /// Out of the present state.
    fn leave(&mut self) {
        if self.state["terminated"].is_object() {
            self.last = self.state.take();
        }
    }

    fn id(&self) -> String {
        format!("containerd://{}{:0>32}", self.pod.replace('-', ""), format!("{:x}{}", self.name.len(), self.starts))
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn has_run(&self) -> bool {
        self.starts > 0
    }

    pub fn status(&self) -> Value {
        let has_run = self.has_run();
        json!({
            "name": self.name,
            "image": self.image,
            "imageID": if has_run { format!("{}@sha256:{}", self.image, "0".repeat(64)) } else { String::new() },
            "containerID": if has_run { json!(self.id()) } else { Value::Null },
            "ready": self.ready,
            "started": self.started,
            "restartCount": self.starts.saturating_sub(1),
            "state": self.state,
            "lastState": self.last,
        })
    }
}

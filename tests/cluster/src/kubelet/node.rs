//! Nodes as objects: what a kubelet registers, and its heartbeats.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::status::now;

/// A node to simulate.
#[derive(Debug, Clone)]
pub struct Node {
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    gpus: u32,
    gpu_taint: bool,
    memory: &'static str,
    ready: bool,
    provider_id: Option<String>,
    owners: Value,
}

impl Node {
    /// A node without GPUs.
    pub fn new(name: impl Into<String>) -> Self {
        let name = name.into();
        let labels = [
            ("kubernetes.io/hostname", name.as_str()),
            ("kubernetes.io/os", "linux"),
            ("kubernetes.io/arch", "amd64"),
            ("beta.kubernetes.io/os", "linux"),
            ("beta.kubernetes.io/arch", "amd64"),
        ];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        Self {
            name,
            labels,
            gpus: 0,
            gpu_taint: false,
            memory: "2Ti",
            ready: true,
            provider_id: None,
            owners: json!([]),
        }
    }

    /// With the label of an instance type.
    pub fn instance_type(self, instance_type: &str) -> Self {
        self.label("node.kubernetes.io/instance-type", instance_type)
    }

    /// With another label.
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// GPUs that its device plugin offers.
    pub fn gpus(mut self, gpus: u32) -> Self {
        self.gpus = gpus;
        self
    }

    /// With the taint `sku=gpu:NoSchedule`.
    pub fn for_gpu_work_alone(mut self) -> Self {
        self.gpu_taint = true;
        self
    }

    /// How much main memory it has.
    pub fn memory(mut self, memory: &'static str) -> Self {
        self.memory = memory;
        self
    }

    /// Registers without being ready.
    pub fn not_ready(mut self) -> Self {
        self.ready = false;
        self
    }

    /// The cloud's name of the machine.
    pub fn provider_id(mut self, id: &str) -> Self {
        self.provider_id = Some(id.to_owned());
        self
    }

    /// Owned by the NodeClaim that it was made for.
    pub fn of_claim(mut self, name: &str, uid: &str) -> Self {
        self.owners = json!([{
            "apiVersion": "karpenter.sh/v1", "kind": "NodeClaim", "name": name, "uid": uid, "blockOwnerDeletion": true,
        }]);
        self
    }

    pub(super) fn object(&self) -> Value {
        let taints =
            if self.gpu_taint { json!([{"key": "sku", "value": "gpu", "effect": "NoSchedule"}]) } else { json!([]) };
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self.name, "labels": self.labels, "ownerReferences": self.owners},
            "spec": {"taints": taints, "providerID": self.provider_id},
        })
    }

    pub(super) fn status(&self, ready: bool, ip: &str) -> Value {
        let mut capacity = json!({"cpu": "96", "memory": self.memory, "ephemeral-storage": "4Ti", "pods": "1000"});
        // Written by the device plugin, which runs only on nodes with GPUs.
        if self.gpus > 0 {
            capacity["nvidia.com/gpu"] = json!(self.gpus.to_string());
        }
        let condition = |kind: &str, status: &str, reason: &str, message: &str| {
            json!({
                "type": kind, "status": status, "reason": reason, "message": message,
                "lastHeartbeatTime": now(), "lastTransitionTime": now(),
            })
        };
        json!({
            "capacity": capacity,
            "allocatable": capacity,
            "addresses": [{"type": "InternalIP", "address": ip}, {"type": "Hostname", "address": self.name}],
            "conditions": [
                condition("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
                condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
                condition("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
                if ready {
                    condition("Ready", "True", "KubeletReady", "kubelet is posting ready status")
                } else {
                    condition(
                        "Ready",
                        "False",
                        "KubeletNotReady",
                        "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:Network \
                         plugin returns error: cni plugin not initialized",
                    )
                },
            ],
            "nodeInfo": {
                "architecture": "amd64", "operatingSystem": "linux", "osImage": "simulated", "kernelVersion": "6.8.0",
                "containerRuntimeVersion": "containerd://2.1.4", "kubeletVersion": "v1.34.4", "kubeProxyVersion": "",
                "machineID": self.name, "systemUUID": self.name, "bootID": self.name,
            },
        })
    }

    /// The conditions that the controller manager gives to a node without heartbeats.
    pub(super) fn unknown(&self) -> Value {
        let kinds = ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"];
        json!(kinds.map(|kind| json!({
            "type": kind,
            "status": "Unknown",
            "reason": "NodeStatusUnknown",
            "message": "Kubelet stopped posting node status.",
            "lastTransitionTime": now(),
        })))
    }

    pub(super) fn lease(&self) -> Value {
        json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self.name, "namespace": "kube-node-lease"},
            "spec": {
                "holderIdentity": self.name,
                "leaseDurationSeconds": 40,
                "renewTime": k8s_openapi::jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string(),
            },
        })
    }

    pub(super) fn starts_ready(&self) -> bool {
        self.ready
    }
}

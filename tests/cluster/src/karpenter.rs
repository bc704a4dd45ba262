//! Simulates Karpenter: its kinds as it defines them, and nodes for node claims, or the failures that a test asks for.

use std::{
    collections::BTreeMap,
    pin::pin,
    sync::{Arc, Mutex},
};

use futures_util::StreamExt;
use k8s_openapi::{
    api::core::v1::Event, apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, ResourceExt,
    api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams},
    runtime::{
        WatchStreamExt, conditions,
        wait::await_condition,
        watcher::{self, watcher},
    },
};
use serde_json::{Value, json};

use crate::{
    control_plane::ControlPlane,
    kubelet::{Kubelet, Node, insist},
};

/// What Karpenter does with a node claim.
#[derive(Debug, Clone)]
pub enum Fate {
    /// A node is provisioned.
    Provisioned {
        /// How many GPUs it has.
        gpus: u32,
    },
    /// The cloud answers with an error, and Karpenter keeps trying.
    LaunchFailed {
        /// The cloud's words.
        message: &'static str,
    },
    /// The cloud has no such machine now: Karpenter says so in an event, and deletes the claim.
    InsufficientCapacity {
        /// The cloud's words.
        message: &'static str,
    },
    /// It stays pending.
    Pending,
}

/// The simulated Karpenter.
#[derive(Clone)]
pub struct Karpenter(Arc<Inner>);

struct Inner {
    plane: ControlPlane,
    kubelet: Kubelet,
    fates: Mutex<BTreeMap<String, Fate>>,
    /// The uid of the claim that each node was provisioned for, by the name of both. Held while a claim is seen to, so that a
    /// watch and a change of fate do not see to one claim at the same time.
    nodes: tokio::sync::Mutex<BTreeMap<String, String>>,
}

const FINALIZER: &str = "karpenter.sh/termination";

/// The kind NodeClaim.
pub fn node_claims() -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("karpenter.sh", "v1", "NodeClaim"), "nodeclaims")
}

impl Karpenter {
    /// Installs the kinds and begins to fulfil node claims.
    pub async fn install(plane: &ControlPlane, kubelet: &Kubelet) -> Self {
        let crds = Api::<CustomResourceDefinition>::all(plane.client.clone());
        let crd = definition();
        let name = crd["metadata"]["name"].as_str().unwrap();
        crds.patch(name, &PatchParams::apply("tests"), &Patch::Apply(&crd)).await.unwrap();
        await_condition(crds, name, conditions::is_crd_established()).await.unwrap();
        let karpenter = Self(Arc::new(Inner {
            plane: plane.clone(),
            kubelet: kubelet.clone(),
            fates: Mutex::default(),
            nodes: tokio::sync::Mutex::default(),
        }));
        tokio::spawn(karpenter.clone().watch());
        karpenter
    }

    /// Sets what Karpenter does with node claims for workspaces of a namespace; until then they stay pending.
    pub async fn claims_of(&self, namespace: &str, fate: Fate) {
        self.0.fates.lock().unwrap().insert(namespace.to_owned(), fate);
        for claim in &self.api().list(&kube::api::ListParams::default()).await.unwrap() {
            self.see(&claim.name_any()).await;
        }
    }

    /// The node claims for workspaces of a namespace.
    pub async fn claims(&self, namespace: &str) -> Vec<DynamicObject> {
        let label = format!("kaito.sh/workspacenamespace={namespace}");
        self.api().list(&kube::api::ListParams::default().labels(&label)).await.unwrap().items
    }

    fn api(&self) -> Api<DynamicObject> {
        Api::all_with(self.0.plane.client.clone(), &node_claims())
    }

    async fn watch(self) {
        let config = watcher::Config::default();
        let mut claims = pin!(watcher(self.api(), config).default_backoff().applied_objects());
        while let Some(claim) = claims.next().await {
            if let Ok(claim) = claim {
                self.see(&claim.name_any()).await;
            }
        }
    }

    /// Does what the present state of a claim asks for, whatever the event was that told of it: events come late, and a claim's
    /// name is used again.
    async fn see(&self, name: &str) {
        let mut nodes = self.0.nodes.lock().await;
        let claim = insist(|| async { self.api().get_opt(name).await }).await.unwrap();
        let uid = claim.as_ref().and_then(|claim| claim.metadata.uid.clone());
        let is_going = claim.as_ref().is_none_or(|claim| claim.metadata.deletion_timestamp.is_some());
        if nodes.get(name).is_some_and(|of| is_going || Some(of) != uid.as_ref()) {
            nodes.remove(name);
            self.0.kubelet.remove(name).await;
        }
        let Some(claim) = claim else { return };
        if is_going {
            let patch = json!({"metadata": {"finalizers": null, "uid": uid}});
            let _ = self.api().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await;
            return;
        }
        let namespace = claim.labels().get("kaito.sh/workspacenamespace").cloned().unwrap_or_default();
        let fate = self.0.fates.lock().unwrap().get(&namespace).cloned().unwrap_or(Fate::Pending);
        if !claim.finalizers().iter().any(|finalizer| finalizer == FINALIZER) {
            let patch = json!({"metadata": {"finalizers": [FINALIZER]}});
            let _ = self.api().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await;
        }
        match fate {
            Fate::Pending => {
                self.write(&claim, "Unknown", "AwaitingReconciliation", "object is awaiting reconciliation", None).await
            }
            Fate::LaunchFailed { message } => self.write(&claim, "Unknown", "LaunchFailed", message, None).await,
            Fate::InsufficientCapacity { message } => {
                self.tell(&claim, "InsufficientCapacityError", message).await;
                let _ = self.api().delete(name, &kube::api::DeleteParams::default()).await;
            }
            Fate::Provisioned { gpus } => {
                if nodes.insert(name.to_owned(), uid.unwrap_or_default()).is_none() {
                    self.provision(&claim, gpus).await;
                }
            }
        }
    }

    /// An event about a node claim.
    async fn tell(&self, claim: &DynamicObject, reason: &str, message: &str) {
        let name = claim.name_any();
        let now = crate::kubelet::now();
        let event = serde_json::from_value(json!({
            "metadata": {"generateName": format!("{name}."), "namespace": "default"},
            "involvedObject": {
                "apiVersion": "karpenter.sh/v1", "kind": "NodeClaim", "name": name, "uid": claim.metadata.uid,
            },
            "type": "Warning",
            "reason": reason,
            "message": format!("NodeClaim {name} event: {message}"),
            "source": {"component": "karpenter"},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }));
        let events = Api::<Event>::namespaced(self.0.plane.client.clone(), "default");
        let _ = events.create(&PostParams::default(), &event.unwrap()).await;
    }

    async fn provision(&self, claim: &DynamicObject, gpus: u32) {
        let name = claim.name_any();
        let provider_id = format!("azure:///subscriptions/tests/virtualMachines/{name}");
        let uid = claim.metadata.uid.clone().unwrap_or_default();
        let mut node = Node::new(&name).gpus(gpus).provider_id(&provider_id).of_claim(&name, &uid);
        // Requirements with one value become labels, as Karpenter does it; so do the claim's own labels.
        for requirement in claim.data["spec"]["requirements"].as_array().unwrap() {
            if let (Some(key), [value]) =
                (requirement["key"].as_str(), requirement["values"].as_array().unwrap().as_slice())
            {
                node = node.label(key, value.as_str().unwrap());
            }
        }
        for (key, value) in claim.labels() {
            node = node.label(key, value);
        }
        let taints = claim.data["spec"]["taints"].as_array().cloned().unwrap_or_default();
        if taints.iter().any(|taint| taint["key"] == "sku") {
            node = node.for_gpu_work_alone();
        }
        self.0.kubelet.add(node).await;
        self.write(claim, "True", "Launched", "", Some(&provider_id)).await;
    }

    async fn write(&self, claim: &DynamicObject, status: &str, reason: &str, message: &str, provider_id: Option<&str>) {
        let condition = |kind: &str, status: &str, reason: &str, message: &str| {
            json!({
                "type": kind, "status": status, "reason": reason, "message": message,
                "observedGeneration": claim.metadata.generation,
                "lastTransitionTime": crate::kubelet::now(),
            })
        };
        let launched = condition("Launched", status, reason, message);
        let kinds = ["Registered", "Initialized", "Ready"];
        let others = kinds.map(|kind| match provider_id {
            Some(_) => condition(kind, "True", kind, ""),
            None if kind == "Ready" => condition(kind, "Unknown", "ReconcilingDependents", "Launched is not True"),
            None => condition(kind, "Unknown", "AwaitingReconciliation", "object is awaiting reconciliation"),
        });
        let conditions: Vec<Value> = [launched].into_iter().chain(others).collect();
        let known = claim.data["status"]["conditions"].as_array().cloned().unwrap_or_default();
        if known.first().is_some_and(|known| known["reason"] == reason && known["message"] == message) {
            return;
        }
        let mut patch = json!({"status": {"conditions": conditions}});
        if let Some(id) = provider_id {
            patch["status"]["providerID"] = json!(id);
            patch["status"]["nodeName"] = json!(claim.name_any());
        }
        let _ = self.api().patch_status(&claim.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await;
    }
}

/// NodeClaim as Karpenter 1.x defines it: the fields, what is required, the values that it allows.
fn definition() -> Value {
    let string = || json!({"type": "string"});
    let quantities = json!({
        "type": "object",
        "additionalProperties": {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "pattern": r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$",
            "x-kubernetes-int-or-string": true,
        },
    });
    let taints = json!({
        "type": "array",
        "items": {
            "type": "object",
            "required": ["effect", "key"],
            "properties": {
                "effect": {"type": "string", "enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]},
                "key": {"type": "string", "minLength": 1},
                "value": string(),
                "timeAdded": {"type": "string", "format": "date-time"},
            },
        },
    });
    let requirement = json!({
        "type": "object",
        "required": ["key", "operator"],
        "properties": {
            "key": {"type": "string", "maxLength": 316},
            "minValues": {"type": "integer", "minimum": 1, "maximum": 50},
            "operator": {"type": "string", "enum": ["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]},
            "values": {"type": "array", "maxLength": 63, "items": string(), "x-kubernetes-list-type": "atomic"},
        },
    });
    let spec = json!({
        "type": "object",
        "required": ["nodeClassRef", "requirements"],
        "properties": {
            "expireAfter": {"type": "string", "default": "720h", "pattern": r"^(([0-9]+(s|m|h))+|Never)$"},
            "nodeClassRef": {
                "type": "object",
                "required": ["group", "kind", "name"],
                "properties": {
                    "group": {"type": "string", "pattern": r"^[^/]*$"},
                    "kind": string(),
                    "name": string(),
                },
                "x-kubernetes-validations": [
                    {"rule": "self.kind != ''", "message": "kind may not be empty"},
                    {"rule": "self.name != ''", "message": "name may not be empty"},
                ],
            },
            "requirements": {
                "type": "array",
                "maxItems": 100,
                "items": requirement,
                "x-kubernetes-validations": [{
                    "rule": "self.all(x, x.operator == 'In' ? x.values.size() != 0 : true)",
                    "message": "requirements with operator 'In' must have a value defined",
                }],
            },
            "resources": {"type": "object", "properties": {"requests": quantities}},
            "startupTaints": taints,
            "taints": taints,
            "terminationGracePeriod": {"type": "string", "pattern": r"^([0-9]+(s|m|h))+$"},
        },
        "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "spec is immutable"}],
    });
    let condition = json!({
        "type": "object",
        "required": ["lastTransitionTime", "message", "reason", "status", "type"],
        "properties": {
            "lastTransitionTime": {"type": "string", "format": "date-time"},
            "message": {"type": "string", "maxLength": 32768},
            "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0},
            "reason": {"type": "string", "minLength": 1, "maxLength": 1024},
            "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
            "type": {"type": "string", "maxLength": 316},
        },
    });
    let status = json!({
        "type": "object",
        "properties": {
            "allocatable": quantities,
            "capacity": quantities,
            "conditions": {"type": "array", "items": condition},
            "imageID": string(),
            "lastPodEventTime": {"type": "string", "format": "date-time"},
            "nodeName": string(),
            "providerID": string(),
        },
    });
    let column = |name: &str, path: &str| json!({"name": name, "type": "string", "jsonPath": path});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "nodeclaims.karpenter.sh"},
        "spec": {
            "group": "karpenter.sh",
            "scope": "Cluster",
            "names": {
                "kind": "NodeClaim", "listKind": "NodeClaimList", "plural": "nodeclaims", "singular": "nodeclaim",
                "categories": ["karpenter"],
            },
            "versions": [{
                "name": "v1",
                "served": true,
                "storage": true,
                "subresources": {"status": {}},
                "additionalPrinterColumns": [
                    column("Type", r".metadata.labels.node\.kubernetes\.io/instance-type"),
                    column("Node", ".status.nodeName"),
                    column("Ready", r#".status.conditions[?(@.type=="Ready")].status"#),
                ],
                "schema": {"openAPIV3Schema": {
                    "type": "object",
                    "required": ["spec"],
                    "properties": {
                        "apiVersion": string(), "kind": string(), "metadata": {"type": "object"},
                        "spec": spec, "status": status,
                    },
                }},
            }],
        },
    })
}

//! Clusters to decide about.

use std::sync::Arc;

use k8s_openapi::{
    api::core::v1::{Node, Pod},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
    jiff::Timestamp,
};
use serde_json::{Value, json};

use crate::{
    decide::{Change, Claims, Decision, Object, ObjectKind, Observed, Options, PodNeeds, Provisioner, decide},
    karpenter::NodeClaim,
    workspace::{ConditionType, Workspace},
};

pub const TYPE: &str = "Standard_NC24s_v3";
pub const OTHER_TYPE: &str = "Standard_NC6s_v3";

pub fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

pub fn now() -> Timestamp {
    time("2026-01-01T00:10:00Z")
}

pub fn options() -> Options {
    Options {
        preset_registry: Some("registry.example/kaito".to_owned()),
        preset_tag: "0.1.0".to_owned(),
        server_image: Some("registry.example/kaito:1".to_owned()),
        vllm_image: "registry.example/vllm:1".to_owned(),
        vllm_rocm_image: "registry.example/vllm-rocm:1".to_owned(),
        ..Options::default()
    }
}

pub fn karpenter() -> Options {
    Options {
        provisioner: Provisioner::Karpenter("EC2NodeClass.karpenter.k8s.aws/default".parse().unwrap()),
        ..options()
    }
}

/// A workspace as the API server stores it.
pub fn workspace(fields: &str) -> Workspace {
    let mut workspace: Workspace = serde_saphyr::from_str(fields).unwrap();
    let metadata = &mut workspace.metadata;
    metadata.name.get_or_insert_with(|| "ws".to_owned());
    metadata.namespace.get_or_insert_with(|| "team".to_owned());
    metadata.uid = Some("11111111-2222-3333-4444-555555555555".to_owned());
    metadata.generation = Some(1);
    metadata.creation_timestamp = Some(Time(time("2026-01-01T00:00:00Z")));
    workspace
}

/// A workspace for a preset on this many nodes, with the runtime kaito.
pub fn preset(name: &str, count: i32) -> Workspace {
    workspace(&format!(
        "metadata: {{annotations: {{kaito.sh/runtime: kaito}}}}\n\
         resource: {{count: {count}, instanceType: {TYPE}, labelSelector: {{matchLabels: {{apps: llm}}}}}}\n\
         inference: {{preset: {{name: {name}, accessMode: private, presetOptions: {{image: registry.example/mine:1}}}}}}"
    ))
}

/// The needs of a pod with this many GPUs and no tolerations.
pub fn gpus(gpus: u32) -> PodNeeds {
    PodNeeds { gpus, ..PodNeeds::default() }
}

/// The workspace with the runtime vllm.
pub fn on_gpus(mut workspace: Workspace) -> Workspace {
    let annotations = workspace.metadata.annotations.get_or_insert_default();
    annotations.insert("kaito.sh/runtime".to_owned(), "vllm".to_owned());
    workspace
}

/// A ready node that [`preset`] selects.
pub fn node(name: &str) -> Value {
    json!({
        "metadata": {"name": name, "labels": {"apps": "llm", "node.kubernetes.io/instance-type": TYPE}},
        "status": {
            "allocatable": {"nvidia.com/gpu": "4"},
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
        },
    })
}

pub fn with(mut object: Value, pointer: &str, value: Value) -> Value {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let mut at = &mut object;
    for step in parent.split('/').skip(1) {
        let step = step.replace("~1", "/");
        at = match step.parse::<usize>() {
            Ok(index) => &mut at[index],
            Err(_) => &mut at[&step],
        };
    }
    at[key.replace("~1", "/")] = value;
    object
}

pub fn unready(name: &str, since: &str) -> Value {
    with(
        node(name),
        "/status/conditions",
        json!([
            {"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown", "lastTransitionTime": since}
        ]),
    )
}

pub fn observed(nodes: impl IntoIterator<Item = Value>) -> Observed {
    Observed { nodes: nodes.into_iter().map(read).collect(), ..Observed::default() }
}

pub fn read<T: serde::de::DeserializeOwned>(object: Value) -> Arc<T> {
    Arc::new(serde_json::from_value(object).unwrap())
}

/// A pod of [`preset`], bound to a node, with this status.
pub fn pod(name: &str, node: Option<&str>, status: Value) -> Arc<Pod> {
    read(json!({
        "metadata": {
            "name": name,
            "namespace": "team",
            "creationTimestamp": "2026-01-01T00:01:00Z",
            "labels": {"kaito.sh/workspace": "ws"},
        },
        "spec": {"nodeName": node, "containers": [{"name": "server", "image": "registry.example/mine:1"}]},
        "status": status,
    }))
}

pub fn ready_pod(name: &str, node: &str) -> Arc<Pod> {
    pod(
        name,
        Some(node),
        json!({
            "phase": "Running",
            "conditions": [
                {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:01:01Z"},
                {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:03:30Z"},
            ],
            "containerStatuses": [{
                "name": "server", "image": "registry.example/mine:1", "imageID": "", "ready": true, "restartCount": 0,
                "started": true, "state": {"running": {"startedAt": "2026-01-01T00:02:50Z"}},
            }],
        }),
    )
}

/// Carries a decision out, as far as the API server does it.
pub fn carry_out(workspace: &mut Workspace, observed: &mut Observed, decision: &Decision) {
    if let Some(finalizers) = &decision.finalizers {
        workspace.metadata.finalizers = Some(finalizers.clone());
    }
    if let Some(status) = &decision.status {
        workspace.status = Some(status.clone());
    }
    for (place, change) in &decision.writes {
        let object = &decision.objects[*place];
        match object.clone() {
            Object::Service(service) => {
                observed.services.retain(|other| other.metadata.name != service.metadata.name);
                observed.services.push(Arc::new(service));
            }
            Object::NetworkPolicy(policy) => observed.network_policy = Some(Arc::new(policy)),
            Object::Deployment(mut deployment) => {
                bump(&mut deployment.metadata, observed.deployment.as_ref().map(|old| &old.metadata));
                deployment.status = observed.deployment.as_ref().and_then(|old| old.status.clone());
                observed.deployment = Some(Arc::new(deployment));
            }
            Object::StatefulSet(mut set) => {
                bump(&mut set.metadata, observed.stateful_set.as_ref().map(|old| &old.metadata));
                set.status = observed.stateful_set.as_ref().and_then(|old| old.status.clone());
                observed.stateful_set = Some(Arc::new(set));
            }
            Object::NodeClaim(claim) => {
                assert_eq!(*change, Change::Create, "Karpenter forbids changes");
                match &mut observed.claims {
                    Claims::Present(claims) => claims.push(Arc::new(claim)),
                    Claims::Absent => panic!("a claim where the kind is absent"),
                }
            }
        }
    }
    for (kind, name) in &decision.deletes {
        match kind {
            ObjectKind::NodeClaim => {
                if let Claims::Present(claims) = &mut observed.claims {
                    claims.retain(|claim| claim.metadata.name.as_ref() != Some(name));
                }
            }
            ObjectKind::NetworkPolicy => observed.network_policy = None,
            ObjectKind::Deployment => observed.deployment = None,
            ObjectKind::StatefulSet => observed.stateful_set = None,
            ObjectKind::Service => observed.services.retain(|service| service.metadata.name.as_ref() != Some(name)),
        }
    }
    for replaced in &decision.replaced {
        let is_it = |pod: &&mut Arc<Pod>| {
            (pod.metadata.name.as_ref(), pod.metadata.uid.as_ref()) == (Some(&replaced.name), Some(&replaced.uid))
        };
        let pod = observed.pods.iter_mut().find(is_it).expect("a pod that is replaced exists");
        assert_eq!(pod.metadata.deletion_timestamp, None, "{replaced:?} is deleted twice");
        Arc::make_mut(pod).metadata.deletion_timestamp = Some(Time(now()));
    }
}

fn bump(metadata: &mut ObjectMeta, old: Option<&ObjectMeta>) {
    metadata.generation = Some(old.and_then(|old| old.generation).unwrap_or(0) + 1);
    metadata.uid = Some("99999999-2222-3333-4444-555555555555".to_owned());
}

/// Carries decisions out until nothing more is to be done.
pub fn settle(workspace: &mut Workspace, observed: &mut Observed, options: &Options) {
    let decision = decide(workspace, observed, options, now());
    carry_out(workspace, observed, &decision);
    let again = decide(workspace, observed, options, now());
    // The status may change once more, since the new objects exist now.
    carry_out(workspace, observed, &again);
    assert!(again.writes.is_empty() && again.deletes.is_empty() && again.finalizers.is_none(), "{again:#?}");
}

/// Says that all pods of the workload are ready.
pub fn all_ready(observed: &mut Observed, pods: i32) {
    if let Some(deployment) = &mut observed.deployment {
        let deployment = Arc::make_mut(deployment);
        deployment.status = Some(
            serde_json::from_value(json!({
                "observedGeneration": deployment.metadata.generation,
                "replicas": pods, "updatedReplicas": pods, "readyReplicas": pods,
            }))
            .unwrap(),
        );
    }
    if let Some(set) = &mut observed.stateful_set {
        let set = Arc::make_mut(set);
        set.status = Some(
            serde_json::from_value(json!({
                "observedGeneration": set.metadata.generation,
                "replicas": pods, "updatedReplicas": pods, "readyReplicas": pods,
            }))
            .unwrap(),
        );
    }
}

pub fn condition(workspace: &Workspace, type_: ConditionType) -> (&str, &str, &str) {
    let status = workspace.status.as_ref().unwrap();
    let condition = status.condition(type_).unwrap_or_else(|| panic!("no {type_} in {status:#?}"));
    (&condition.status, &condition.reason, &condition.message)
}

pub fn claims(observed: &Observed) -> Vec<&NodeClaim> {
    observed.claims.all().iter().map(AsRef::as_ref).collect()
}

pub fn names(nodes: &[&Node]) -> Vec<String> {
    nodes.iter().map(|node| node.metadata.name.clone().unwrap()).collect()
}

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::fixtures::{condition, node, observed, on_gpus, options, pod, preset, ready_pod, settle};
use crate::{
    decide::{Claims, ObjectKind, Observed, PodFailure, Refusal},
    reason::Reason,
    workspace::{ConditionType, Workspace, WorkspaceState},
};

/// A workspace whose workload exists, with these pods.
pub(super) fn running(preset_name: &str, count: i32, pods: Vec<Arc<Pod>>) -> (Workspace, Observed) {
    // Only vLLM serves ranks, on GPUs.
    let mut workspace = if count > 1 { on_gpus(preset(preset_name, count)) } else { preset(preset_name, count) };
    let mut observed = observed(["a", "b"].map(node));
    settle(&mut workspace, &mut observed, &options());
    observed.pods = pods;
    settle(&mut workspace, &mut observed, &options());
    (workspace, observed)
}

fn container(state: Value, last: Value, restarts: i32) -> Value {
    json!({
        "phase": "Pending",
        "conditions": [{"type": "PodScheduled", "status": "True"}],
        "containerStatuses": [{
            "name": "server", "image": "registry.example/mine:1", "imageID": "", "ready": false,
            "restartCount": restarts, "state": state, "lastState": last,
        }],
    })
}

pub(super) fn waiting(reason: &str, message: &str) -> Value {
    json!({"waiting": {"reason": reason, "message": message}})
}

pub(super) fn ended(reason: &str, status: i32, message: &str) -> Value {
    json!({"terminated": {"reason": reason, "exitCode": status, "message": message}})
}

#[test]
fn every_cause_has_its_reason_its_message_and_a_next_step() {
    let running_since = json!({"running": {"startedAt": "2026-01-01T00:05:00Z"}});
    let image_message = "pod ws-1: image registry.example/mine:1: ";
    let image_step =
        ". Check the image's name and tag; a private registry needs inference.preset.presetOptions.imagePullSecrets";
    let logs_step = ". See kubectl logs --previous of the pod";
    let memory_step = ". Use a larger instance type, or a shorter context by inference.config";
    let cases: Vec<(Value, &str, String)> = vec![
        (
            container(waiting("ErrImagePull", "not found"), json!({}), 0),
            "ImagePullError",
            format!("{image_message}ErrImagePull: not found{image_step}"),
        ),
        (
            container(waiting("ImagePullBackOff", "Back-off pulling image: 401 Unauthorized"), json!({}), 0),
            "ImagePullError",
            format!("{image_message}ImagePullBackOff: Back-off pulling image: 401 Unauthorized{image_step}"),
        ),
        (
            container(waiting("InvalidImageName", "bad"), json!({}), 0),
            "ImagePullError",
            format!("{image_message}InvalidImageName: bad{image_step}"),
        ),
        (
            container(waiting("CreateContainerConfigError", "secret \"x\" not found"), json!({}), 0),
            "ContainerConfigError",
            "pod ws-1: container server: CreateContainerConfigError: secret \"x\" not found. See that the ConfigMaps and \
             Secrets that the pod names exist"
                .to_owned(),
        ),
        (
            container(waiting("CrashLoopBackOff", "back-off 5m0s"), ended("Error", 1, "error: no weights in /weights"), 4),
            "ContainerCrashLoopBackOff",
            format!(
                "pod ws-1: container server ended with exit status 1, was restarted 4 times: error: no weights in \
                 /weights{logs_step}"
            ),
        ),
        (
            // Between two restarts.
            container(ended("Error", 2, ""), json!({}), 0),
            "ContainerCrashLoopBackOff",
            format!("pod ws-1: container server ended with exit status 2{logs_step}"),
        ),
        (
            // It was restarted, and is not ready yet.
            container(running_since.clone(), ended("Error", 139, ""), 1),
            "ContainerCrashLoopBackOff",
            format!("pod ws-1: container server ended with exit status 139, was restarted once{logs_step}"),
        ),
        (
            container(waiting("CrashLoopBackOff", ""), ended("OOMKilled", 137, ""), 3),
            "ContainerOOMKilled",
            format!("pod ws-1: container server ran out of memory, was restarted 3 times{memory_step}"),
        ),
        (
            container(running_since.clone(), ended("OOMKilled", 137, ""), 1),
            "ContainerOOMKilled",
            format!("pod ws-1: container server ran out of memory, was restarted once{memory_step}"),
        ),
        (
            container(waiting("CrashLoopBackOff", ""), ended("Completed", 0, ""), 3),
            "ContainerCrashLoopBackOff",
            format!("pod ws-1: container server ended with exit status 0, was restarted 3 times{logs_step}"),
        ),
        (
            container(running_since, json!({}), 0),
            "ModelLoading",
            "pod ws-1: the model is loading since 2026-01-01T00:05:00Z; it may take 30m".to_owned(),
        ),
        (
            container(waiting("ContainerCreating", ""), json!({}), 0),
            "PodsStarting",
            "pod ws-1: node a fetches and starts image registry.example/mine:1".to_owned(),
        ),
        (
            json!({"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}),
            "PodEvicted",
            "pod ws-1: Evicted: The node was low on resource: memory. Free resources of the node, or use a larger instance \
             type"
                .to_owned(),
        ),
        (
            json!({"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "no GPU"}),
            "PodFailed",
            "pod ws-1: UnexpectedAdmissionError: no GPU. See kubectl describe pod".to_owned(),
        ),
        (
            json!({"phase": "Pending", "conditions": [{
                "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                "message": "0/2 nodes are available: 2 Insufficient nvidia.com/gpu.",
            }]}),
            "Unschedulable",
            "pod ws-1: 0/2 nodes are available: 2 Insufficient nvidia.com/gpu. Free a node that resource.labelSelector \
             matches, or add one"
                .to_owned(),
        ),
    ];
    for (status, reason, message) in cases {
        let (workspace, _) = running("falcon-7b", 1, vec![pod("ws-1", Some("a"), status.clone())]);
        assert_eq!(
            condition(&workspace, ConditionType::InferenceReady),
            ("False", reason, message.as_str()),
            "{status}"
        );
        let (_, summary, text) = condition(&workspace, ConditionType::WorkspaceReady);
        assert_eq!((summary, text), (reason, format!("InferenceReady: {message}").as_str()));
        let on_its_way = ["ModelLoading", "PodsStarting"].contains(&reason);
        let state = if on_its_way { WorkspaceState::Pending } else { WorkspaceState::NotReady };
        assert_eq!(workspace.status.unwrap().state, Some(state), "{status}");
    }
}

#[test]
fn a_pod_without_a_node_waits_for_the_scheduler() {
    let (workspace, _) = running("falcon-7b", 1, vec![pod("ws-1", None, json!({"phase": "Pending"}))]);
    assert_eq!(
        condition(&workspace, ConditionType::InferenceReady),
        ("False", "PodsPending", "pod ws-1: it waits for the scheduler")
    );
}

#[test]
fn a_server_that_answered_and_does_not_now_is_unhealthy() {
    let status = json!({
        "phase": "Running",
        "conditions": [
            {"type": "PodScheduled", "status": "True"},
            {"type": "Ready", "status": "False", "lastTransitionTime": "2026-01-01T00:08:00Z"},
        ],
        "containerStatuses": [{
            "name": "server", "image": "", "imageID": "", "ready": false, "restartCount": 0, "started": true,
            "state": {"running": {"startedAt": "2026-01-01T00:02:50Z"}},
        }],
    });
    let (workspace, _) = running("falcon-7b", 1, vec![pod("ws-1", Some("a"), status)]);
    assert_eq!(
        condition(&workspace, ConditionType::InferenceReady),
        (
            "False",
            "ServerUnhealthy",
            "pod ws-1: the server runs, but its readiness probe fails. See kubectl logs of the pod"
        )
    );
}

#[test]
fn an_init_container_that_fails_is_named() {
    let status = json!({
        "phase": "Pending",
        "conditions": [{"type": "PodScheduled", "status": "True"}],
        "initContainerStatuses": [{
            "name": "adapter-poet", "image": "registry.example/poet:1", "imageID": "", "ready": false, "restartCount": 2,
            "state": waiting("CrashLoopBackOff", ""), "lastState": ended("Error", 1, "cp: /data: No such file"),
        }],
        "containerStatuses": [{
            "name": "server", "image": "registry.example/mine:1", "imageID": "", "ready": false, "restartCount": 0,
            "state": waiting("PodInitializing", ""),
        }],
    });
    let (workspace, _) = running("falcon-7b", 1, vec![pod("ws-1", Some("a"), status)]);
    let (_, reason, message) = condition(&workspace, ConditionType::InferenceReady);
    assert_eq!(reason, "ContainerCrashLoopBackOff");
    assert!(message.starts_with("pod ws-1: container adapter-poet ended with exit status 1"), "{message}");
    assert!(message.contains("cp: /data: No such file"), "{message}");
}

#[test]
fn the_worst_cause_of_several_pods_is_named() {
    let pods = || {
        vec![
            pod("ws-0", Some("a"), container(json!({"running": {}}), json!({}), 0)),
            pod("ws-1", Some("b"), container(waiting("ErrImagePull", "x"), json!({}), 0)),
        ]
    };
    let (workspace, _) = running("falcon-7b", 2, pods());
    let (_, reason, message) = condition(&workspace, ConditionType::InferenceReady);
    assert_eq!(reason, "ImagePullError");
    assert!(message.starts_with("pod ws-1: "), "{message}");

    let both = vec![
        pod("ws-0", Some("a"), container(waiting("ErrImagePull", "x"), json!({}), 0)),
        pod("ws-1", Some("b"), container(waiting("ErrImagePull", "x"), json!({}), 0)),
    ];
    let (workspace, _) = running("falcon-7b", 2, both);
    let (_, _, message) = condition(&workspace, ConditionType::InferenceReady);
    assert!(message.starts_with("pod ws-0: ") && message.contains("(and 1 pod likewise)"), "{message}");
}

#[test]
fn an_ended_pod_does_not_matter_once_another_runs() {
    let pods = vec![
        pod("ws-0", Some("a"), json!({"phase": "Failed", "reason": "Evicted"})),
        pod("ws-1", Some("b"), container(json!({"running": {}}), json!({}), 0)),
    ];
    let (workspace, _) = running("falcon-7b", 1, pods);
    assert_eq!(condition(&workspace, ConditionType::InferenceReady).1, "ModelLoading");
}

#[test]
fn quota_and_other_refusals_of_pods_are_told_from_each_other() {
    let quota =
        "pods \"ws-1\" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1, used: 4, limited: 4";
    let policy = "pods \"ws-1\" is forbidden: violates PodSecurity \"restricted:latest\"";
    for (said, reason, step) in [
        (quota, "QuotaExceeded", "Raise the namespace's ResourceQuota"),
        (policy, "PodsForbidden", "See what the namespace admits"),
    ] {
        let (mut workspace, mut observed) = running("falcon-7b", 1, vec![]);
        let deployment = Arc::make_mut(observed.deployment.as_mut().unwrap());
        deployment.status = Some(
            serde_json::from_value(json!({"conditions": [
                {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": said}
            ]}))
            .unwrap(),
        );
        settle(&mut workspace, &mut observed, &options());
        let (_, actual, message) = condition(&workspace, ConditionType::InferenceReady);
        assert_eq!(actual, reason);
        assert!(message.starts_with(said) && message.contains(step), "{message}");

        // A StatefulSet has no such condition; its events say it.
        let (mut workspace, mut observed) = running("llama-2-13b", 2, vec![]);
        observed.pod_failures = vec![PodFailure { message: said.to_owned() }];
        settle(&mut workspace, &mut observed, &options());
        assert_eq!(condition(&workspace, ConditionType::InferenceReady).1, reason);
        observed.pods =
            vec![ready_pod("ws-0", "a"), pod("ws-1", Some("b"), container(json!({"running": {}}), json!({}), 0))];
        settle(&mut workspace, &mut observed, &options());
        assert_eq!(condition(&workspace, ConditionType::InferenceReady).1, "ModelLoading", "the event is history");
    }
}

#[test]
fn a_refused_object_is_named() {
    let (mut workspace, mut observed) = running("falcon-7b", 1, vec![]);
    observed.refusals = vec![Refusal {
        kind: ObjectKind::Deployment,
        name: "ws".to_owned(),
        reason: Reason::ApplyRefused,
        message: "field is immutable".to_owned(),
    }];
    settle(&mut workspace, &mut observed, &options());
    assert_eq!(
        condition(&workspace, ConditionType::InferenceReady),
        ("False", "ApplyRefused", "the API server refuses Deployment ws: field is immutable")
    );
    observed.refusals[0].message = "exceeded quota: objects".to_owned();
    settle(&mut workspace, &mut observed, &options());
    assert_eq!(condition(&workspace, ConditionType::InferenceReady).1, "QuotaExceeded");
}

#[test]
fn weights_without_a_server_are_refused_by_name() {
    let mut workspace = preset("falcon-7b", 1);
    workspace.inference = Some(
        serde_saphyr::from_str("preset: {name: falcon-7b, accessMode: private, presetOptions: {weightsImage: 'w:1'}}")
            .unwrap(),
    );
    let mut observed = observed([node("a")]);
    let without = crate::decide::Options { server_image: None, ..options() };
    settle(&mut workspace, &mut observed, &without);
    let (_, reason, message) = condition(&workspace, ConditionType::InferenceReady);
    assert_eq!(reason, "ServerImageMissing");
    assert!(message.contains("presetOptions.image") && message.contains("--server-image"), "{message}");
}

#[test]
fn what_a_workspace_asks_for_and_cannot_have_is_said() {
    for (fields, annotation, reason, part) in [
        ("preset: {name: lama-2-7b}", None, "PresetUnknown", "did you mean llama-2-7b?"),
        ("preset: {name: falcon-7b, accessMode: private}", None, "ImageMissing", "presetOptions.image"),
        ("preset: {name: falcon-7b}", Some("mxnet"), "RuntimeUnknown", "there is no runtime \"mxnet\""),
        ("{}", None, "InferenceEmpty", "neither preset nor template"),
        ("{preset: {name: falcon-7b}, adapters: [{source: {name: \"a;b\", image: i}}]}", None, "AdapterInvalid", "a;b"),
        ("{preset: {name: falcon-7b}, adapters: [{source: {name: a}}]}", None, "AdapterInvalid", "source.image"),
    ] {
        let mut workspace = preset("falcon-7b", 1);
        workspace.inference = Some(serde_saphyr::from_str(fields).unwrap());
        if let Some(runtime) = annotation {
            let annotations = workspace.metadata.annotations.get_or_insert_default();
            annotations.insert("kaito.sh/runtime".to_owned(), runtime.to_owned());
        }
        let mut observed = observed([node("a")]);
        settle(&mut workspace, &mut observed, &options());
        let (_, actual, message) = condition(&workspace, ConditionType::InferenceReady);
        assert_eq!(actual, reason, "{fields}");
        assert!(message.contains(part), "{message}");
        assert!(observed.deployment.is_none(), "{fields}");
    }
    let mut workspace = preset("falcon-7b", 1);
    workspace.inference = Some(serde_saphyr::from_str("preset: {name: falcon-7b}").unwrap());
    let no_registry = crate::decide::Options { preset_registry: None, server_image: None, ..options() };
    settle(&mut workspace, &mut observed([node("a")]), &no_registry);
    assert_eq!(condition(&workspace, ConditionType::InferenceReady).1, "RegistryMissing");
}

/// The server would end right after each start.
#[test]
fn a_model_that_our_server_cannot_spread_over_nodes_is_refused_before_anything_is_started() {
    for (name, count, is_refused) in
        [("llama-2-13b", 2, true), ("llama-2-70b", 2, true), ("llama-2-13b", 1, false), ("falcon-7b", 2, false)]
    {
        for karpenter in [false, true] {
            let options = if karpenter { super::fixtures::karpenter() } else { options() };
            let mut workspace = preset(name, count);
            let mut observed = observed([node("a"), node("b")]);
            observed.claims = Claims::Present(Vec::new());
            if karpenter {
                observed.nodes.clear();
            }
            settle(&mut workspace, &mut observed, &options);
            let (status, reason, message) = condition(&workspace, ConditionType::InferenceReady);
            if is_refused {
                assert_eq!((status, reason), ("False", "RanksUnsupported"), "{name}");
                assert!(message.contains("kaito.sh/runtime: vllm on nodes with GPUs"), "{message}");
                assert!(observed.stateful_set.is_none() && observed.services.is_empty());
                assert!(observed.claims.all().is_empty(), "no node is paid for");
                assert_eq!(condition(&workspace, ConditionType::WorkspaceReady).1, "RanksUnsupported");
            } else {
                assert_ne!(reason, "RanksUnsupported", "{name}: {message}");
                assert_eq!(observed.claims.all().len(), if karpenter { count as usize } else { 0 });
            }
        }
    }
}

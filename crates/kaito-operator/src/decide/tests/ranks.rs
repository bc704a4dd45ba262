//! What the status says of ranks: which one is missing or lost, and of engines that load for too long.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::fixtures::{
    condition, node, now, observed, on_gpus, options, pod, preset, read, ready_pod, settle, time, unready, with,
};
use crate::{
    decide::{Observed, decide, object::AnyObject},
    workspace::{ConditionType, Workspace, WorkspaceState},
};

/// Two ranks on the nodes a and b, with these pods.
fn ranks(nodes: Vec<Value>, pods: Vec<Arc<Pod>>) -> (Workspace, Observed) {
    let mut workspace = on_gpus(preset("llama-2-13b", 2));
    let mut observed = observed(["a", "b"].map(node));
    settle(&mut workspace, &mut observed, &options());
    observed.nodes = nodes.into_iter().map(read).collect();
    observed.pods = pods;
    settle(&mut workspace, &mut observed, &options());
    (workspace, observed)
}

fn both() -> Vec<Value> {
    ["a", "b"].map(node).to_vec()
}

/// A pod whose engine runs since then, and was never ready.
fn loading(name: &str, node: &str, since: &str) -> Arc<Pod> {
    let container = |name: &str, since: &str| {
        json!({
            "name": name, "image": "", "imageID": "", "ready": false, "started": true, "restartCount": 0,
            "state": {"running": {"startedAt": since}},
        })
    };
    pod(
        name,
        Some(node),
        json!({
            "phase": "Running",
            "conditions": [
                {"type": "PodScheduled", "status": "True"},
                {"type": "Ready", "status": "False", "lastTransitionTime": "2026-01-01T00:01:01Z"},
            ],
            "containerStatuses": [container("server", "2026-01-01T00:01:30Z"), container("engine", since)],
        }),
    )
}

fn going(pod: &Arc<Pod>) -> Arc<Pod> {
    read(with(pod.to_json(), "/metadata/deletionTimestamp", json!("2026-01-01T00:09:00Z")))
}

/// The scheduler has no node for it.
fn unschedulable(name: &str) -> Arc<Pod> {
    let said = "0/2 nodes are available: 1 Insufficient nvidia.com/gpu.";
    let status = json!({"phase": "Pending", "conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": said},
    ]});
    pod(name, None, status)
}

#[test]
fn a_rank_that_is_missing_or_lost_is_named_with_its_node() {
    let first = || loading("ws-0", "a", "2026-01-01T00:02:00Z");
    let second = || loading("ws-1", "b", "2026-01-01T00:02:00Z");
    let lost = "Get the node ready, or delete it: only then is the rank started elsewhere";
    let free = "Free a node that resource.labelSelector matches, or add one";
    for (nodes, pods, reason, message, state) in [
        (both(), vec![first()], "RankMissing", "pod ws-1: rank 1 has no pod".to_owned(), WorkspaceState::Pending),
        (both(), vec![second()], "RankMissing", "pod ws-0: rank 0 has no pod".to_owned(), WorkspaceState::Pending),
        (
            both(),
            vec![going(&first()), second()],
            "RankMissing",
            "pod ws-0: rank 0 ends, and another pod takes its place".to_owned(),
            WorkspaceState::Pending,
        ),
        (
            both(),
            vec![first(), unschedulable("ws-1")],
            "RankMissing",
            format!("pod ws-1: rank 1 is missing: 0/2 nodes are available: 1 Insufficient nvidia.com/gpu. {free}"),
            WorkspaceState::NotReady,
        ),
        (
            vec![node("a"), unready("b", "2026-01-01T00:09:00Z")],
            vec![first(), second()],
            "RankLost",
            format!(
                "pod ws-1: rank 1 is lost with its node b, which is not ready (NodeStatusUnknown since 2026-01-01T00:09:00Z). {lost}"
            ),
            WorkspaceState::NotReady,
        ),
        (
            // Kubernetes has asked the pod to end, and nobody there does it.
            vec![node("a"), unready("b", "2026-01-01T00:01:00Z")],
            vec![first(), going(&second())],
            "RankLost",
            format!(
                "pod ws-1: rank 1 is lost with its node b, which is not ready (NodeStatusUnknown since 2026-01-01T00:01:00Z). {lost}"
            ),
            WorkspaceState::NotReady,
        ),
        (
            vec![node("b")],
            vec![first(), second()],
            "RankLost",
            format!("pod ws-0: rank 0 is lost with its node a, which is gone. {lost}"),
            WorkspaceState::NotReady,
        ),
    ] {
        let (workspace, _) = ranks(nodes, pods);
        assert_eq!(condition(&workspace, ConditionType::InferenceReady), ("False", reason, message.as_str()));
        assert_eq!(workspace.status.unwrap().state, Some(state), "{message}");
    }
}

/// What the other ranks do then follows from it.
#[test]
fn a_lost_rank_is_worse_than_what_it_does_to_the_others() {
    let crashed = pod(
        "ws-0",
        Some("a"),
        json!({
            "phase": "Running", "conditions": [{"type": "PodScheduled", "status": "True"}],
            "containerStatuses": [{
                "name": "engine", "image": "", "imageID": "", "ready": false, "restartCount": 3,
                "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": {"exitCode": 1, "message": "Connection closed by peer"}},
            }],
        }),
    );
    let nodes = vec![node("a"), unready("b", "2026-01-01T00:09:00Z")];
    let (workspace, _) = ranks(nodes, vec![crashed, loading("ws-1", "b", "2026-01-01T00:02:00Z")]);
    assert_eq!(condition(&workspace, ConditionType::InferenceReady).1, "RankLost");
}

/// A StatefulSet makes one pod after the other, within moments.
#[test]
fn ranks_that_are_being_made_are_not_missing() {
    let (workspace, observed) = ranks(both(), vec![]);
    assert_eq!(
        condition(&workspace, ConditionType::InferenceReady),
        ("False", "PodsPending", "the pods are being made")
    );
    let (workspace, mut observed) = (workspace, observed);
    let young = with(
        loading("ws-0", "a", "2026-01-01T00:09:58Z").to_json(),
        "/metadata/creationTimestamp",
        json!("2026-01-01T00:09:55Z"),
    );
    observed.pods = vec![read(young)];
    let decision = decide(&workspace, &observed, &options(), now());
    let status = decision.status.unwrap();
    assert_eq!(status.condition(ConditionType::InferenceReady).unwrap().reason, "ModelLoading");
    assert!(decision.requeue.is_some_and(|after| after.as_secs() <= 6), "{:?}", decision.requeue);
    let later = decide(&workspace, &observed, &options(), time("2026-01-01T00:10:05Z"));
    assert_eq!(later.status.unwrap().condition(ConditionType::InferenceReady).unwrap().reason, "RankMissing");
}

/// Its supervisor is alive all the time, so that no probe ends it.
#[test]
fn an_engine_that_loads_for_longer_than_it_may_take_fails() {
    let limit = kaito_presets::find("falcon-7b").unwrap().workload.ready_within;
    assert_eq!(limit.as_secs(), 30 * 60);
    let mut workspace = on_gpus(preset("falcon-7b", 1));
    let mut observed = observed(["a", "b"].map(node));
    settle(&mut workspace, &mut observed, &options());
    observed.pods = vec![loading("ws-x", "a", "2026-01-01T00:05:00Z")];
    for (at, reason, message) in [
        (
            "2026-01-01T00:34:59Z",
            "ModelLoading",
            "pod ws-x: the model is loading since 2026-01-01T00:05:00Z; it may take 30m",
        ),
        (
            "2026-01-01T00:35:00Z",
            "ModelLoadingTooLong",
            "pod ws-x: the model is loading since 2026-01-01T00:05:00Z, and may take 30m. The server's /healthz says how far it has \
             come, and kubectl logs of the container engine the rest",
        ),
    ] {
        let decision = decide(&workspace, &observed, &options(), time(at));
        let status = decision.status.unwrap();
        let found = status.condition(ConditionType::InferenceReady).unwrap();
        assert_eq!((found.reason.as_str(), found.message.as_str()), (reason, message));
        if reason == "ModelLoading" {
            assert!(decision.requeue.is_some_and(|after| after.as_secs() <= 2), "{:?}", decision.requeue);
        }
    }
}

/// A rank that waited for another one has loaded nothing.
#[test]
fn ranks_load_from_when_the_last_of_them_started() {
    let limit = i64::try_from(kaito_presets::find("llama-2-13b").unwrap().workload.ready_within.as_secs()).unwrap();
    let started = time("2026-01-01T02:00:00Z");
    let (workspace, mut observed) = ranks(both(), vec![]);
    observed.pods = vec![loading("ws-0", "a", "2026-01-01T00:02:00Z"), loading("ws-1", "b", "2026-01-01T02:00:00Z")];
    for (seconds, reason) in [(limit - 1, "ModelLoading"), (limit, "ModelLoadingTooLong")] {
        let at = k8s_openapi::jiff::Timestamp::from_second(started.as_second() + seconds).unwrap();
        let status = decide(&workspace, &observed, &options(), at).status.unwrap();
        assert_eq!(status.condition(ConditionType::InferenceReady).unwrap().reason, reason, "{seconds}");
    }
}

#[test]
fn an_init_container_that_runs_is_named() {
    let status = json!({
        "phase": "Pending",
        "conditions": [{"type": "PodScheduled", "status": "True"}],
        "initContainerStatuses": [{
            "name": "adapter-poet", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"running": {"startedAt": "2026-01-01T00:03:00Z"}},
        }],
        "containerStatuses": [{
            "name": "server", "image": "registry.example/mine:1", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": "PodInitializing"}},
        }],
    });
    let (workspace, _) = ranks(both(), vec![pod("ws-0", Some("a"), status), ready_pod("ws-1", "b")]);
    assert_eq!(
        condition(&workspace, ConditionType::InferenceReady),
        ("False", "PodsStarting", "pod ws-0: init container adapter-poet runs since 2026-01-01T00:03:00Z")
    );
}

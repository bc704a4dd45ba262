use std::sync::Arc;

use serde_json::json;

use super::fixtures::{
    all_ready, carry_out, condition, node, now, observed, on_gpus, options, preset, ready_pod, settle, time, unready,
    with, workspace,
};
use crate::{
    decide::{Change, ObjectKind, decide},
    reason::Reason,
    workspace::{ConditionType, WorkspaceState},
};

#[test]
fn a_workspace_goes_from_nothing_to_ready() {
    let mut workspace = preset("falcon-7b", 1);
    let mut observed = observed([]);
    settle(&mut workspace, &mut observed, &options());
    assert_eq!(
        condition(&workspace, ConditionType::ResourceReady),
        (
            "False",
            "NodesMissing",
            "1 of 1 node missing; the cluster has no nodes. Add Standard_NC24s_v3 nodes with the labels apps=llm, or label ready ones so"
        )
    );
    assert_eq!(
        condition(&workspace, ConditionType::InferenceReady),
        ("False", "WaitingForNodes", "starts when the nodes are ready")
    );
    assert_eq!(condition(&workspace, ConditionType::WorkspaceReady).1, "NodesMissing");
    assert!(observed.deployment.is_none());
    assert_eq!(observed.services.len(), 1, "clients may resolve the name from the first");

    observed.nodes = super::fixtures::observed([node("a")]).nodes;
    let decision = decide(&workspace, &observed, &options(), time("2026-01-01T00:01:00Z"));
    carry_out(&mut workspace, &mut observed, &decision);
    assert_eq!(
        condition(&workspace, ConditionType::ResourceReady),
        ("True", "NodesReady", "1 ready node: a; the runtime kaito computes on CPUs")
    );
    assert_eq!(
        condition(&workspace, ConditionType::InferenceReady),
        ("False", "PodsPending", "the pods are being made")
    );

    observed.pods = vec![ready_pod("ws-1", "a")];
    all_ready(&mut observed, 1);
    settle(&mut workspace, &mut observed, &options());
    assert_eq!(
        condition(&workspace, ConditionType::InferenceReady),
        (
            "True",
            "InferenceReady",
            "1 pod answers at http://ws.team.svc:80; ready after 3m30s: nodes 1m, scheduling 1s, images 1m49s, model 40s"
        )
    );
    assert_eq!(
        condition(&workspace, ConditionType::WorkspaceReady),
        ("True", "WorkspaceReady", "the model answers at http://ws.team.svc:80")
    );
    let status = workspace.status.as_ref().unwrap();
    assert_eq!(status.state, Some(WorkspaceState::Ready));
    assert_eq!((status.worker_nodes.as_slice(), status.target_node_count), (&["a".to_owned()][..], Some(1)));
    assert!(status.conditions.iter().all(|condition| condition.observed_generation == Some(1)));
    assert!(decide(&workspace, &observed, &options(), now()).is_empty());
}

#[test]
fn times_change_only_with_the_status_of_a_condition() {
    let mut workspace = preset("falcon-7b", 1);
    let mut observed = observed([]);
    let at = |text: &str, workspace: &mut _, observed: &mut _| {
        let decision = decide(workspace, observed, &options(), time(text));
        carry_out(workspace, observed, &decision);
    };
    let since = |workspace: &crate::workspace::Workspace, type_: ConditionType| {
        workspace.status.as_ref().unwrap().condition(type_).unwrap().last_transition_time.0.to_string()
    };
    at("2026-01-01T00:00:01.75Z", &mut workspace, &mut observed);
    assert_eq!(
        since(&workspace, ConditionType::ResourceReady),
        "2026-01-01T00:00:01Z",
        "the API server keeps whole seconds"
    );
    observed.nodes = super::fixtures::observed([unready("a", "2026-01-01T00:00:00Z")]).nodes;
    at("2026-01-01T00:05:00Z", &mut workspace, &mut observed);
    assert_eq!(
        since(&workspace, ConditionType::ResourceReady),
        "2026-01-01T00:00:01Z",
        "another message of the same status"
    );
    observed.nodes = super::fixtures::observed([node("a")]).nodes;
    at("2026-01-01T00:06:00Z", &mut workspace, &mut observed);
    assert_eq!(since(&workspace, ConditionType::ResourceReady), "2026-01-01T00:06:00Z");
    assert_eq!(since(&workspace, ConditionType::WorkspaceReady), "2026-01-01T00:00:01Z");
}

#[test]
fn every_missing_node_is_accounted_for() {
    let mut workspace = preset("falcon-7b", 3);
    let others = (0..3).map(|n| with(node(&format!("web-{n}")), "/metadata/labels", json!({"apps": "web"})));
    let mut observed = observed(others.chain([
        node("a"),
        unready("b", "2026-01-01T00:01:00Z"),
        with(node("c"), "/metadata/labels/node.kubernetes.io~1instance-type", json!("Standard_NC6s_v3")),
    ]));
    settle(&mut workspace, &mut observed, &options());
    assert_eq!(
        condition(&workspace, ConditionType::ResourceReady).2,
        "2 of 3 nodes missing; b is not ready (NodeStatusUnknown since 2026-01-01T00:01:00Z), c is a Standard_NC6s_v3; 3 \
         other nodes without the labels apps=llm. Add Standard_NC24s_v3 nodes with the labels apps=llm, or label ready ones so"
    );
}

#[test]
fn each_change_has_one_event() {
    let mut workspace = preset("falcon-7b", 1);
    let mut observed = observed([node("a")]);
    let first = decide(&workspace, &observed, &options(), now());
    let reasons: Vec<_> = first.deeds.iter().chain(&first.notices).map(|notice| notice.reason.as_str()).collect();
    assert_eq!(reasons, ["Created", "NodesReady", "PodsPending"]);
    assert_eq!(first.deeds[0].message, "created Service ws, Deployment ws");
    carry_out(&mut workspace, &mut observed, &first);
    let again = decide(&workspace, &observed, &options(), now());
    assert!(again.notices.is_empty() && again.deeds.is_empty(), "{again:#?}");

    observed.pods = vec![ready_pod("ws-1", "a")];
    all_ready(&mut observed, 1);
    let ready = decide(&workspace, &observed, &options(), now());
    let reasons: Vec<_> = ready.notices.iter().map(|notice| (notice.reason.as_str(), notice.is_warning)).collect();
    assert_eq!(reasons, [("InferenceReady", false), ("WorkspaceReady", false)]);
}

#[test]
fn drift_is_repaired_with_an_event() {
    let mut workspace = preset("falcon-7b", 1);
    let mut observed = observed([node("a")]);
    settle(&mut workspace, &mut observed, &options());
    let deployment = Arc::make_mut(observed.deployment.as_mut().unwrap());
    let spec = deployment.spec.as_mut().unwrap();
    spec.replicas = Some(0);
    spec.template.spec.as_mut().unwrap().containers[0].image = Some("registry.example/evil:1".to_owned());
    // Fields that others add are left alone.
    deployment
        .metadata
        .annotations
        .as_mut()
        .unwrap()
        .insert("deployment.kubernetes.io/revision".to_owned(), "1".to_owned());
    let decision = decide(&workspace, &observed, &options(), now());
    let [(place, Change::Repair(paths))] = decision.writes.as_slice() else { panic!("{:#?}", decision.writes) };
    assert_eq!(decision.objects[*place].kind(), ObjectKind::Deployment);
    assert_eq!(paths, &["spec.replicas", "spec.template.spec.containers[server].image"]);
    assert!(decision.deeds.iter().any(|notice| notice.reason == Reason::Repaired && notice.is_warning));
    carry_out(&mut workspace, &mut observed, &decision);
    settle(&mut workspace, &mut observed, &options());
}

#[test]
fn a_running_model_is_kept_when_its_node_goes() {
    let mut workspace = preset("falcon-7b", 1);
    let mut observed = observed([node("a")]);
    settle(&mut workspace, &mut observed, &options());
    observed.nodes.clear();
    settle(&mut workspace, &mut observed, &options());
    assert!(observed.deployment.is_some());
    assert_eq!(condition(&workspace, ConditionType::ResourceReady).1, "NodesMissing");
}

#[test]
fn a_device_plugin_that_goes_away_does_not_restart_the_model() {
    let by_hardware = || {
        workspace(
            "resource: {labelSelector: {matchLabels: {apps: llm}}}\n\
             inference: {preset: {name: falcon-40b}}",
        )
    };
    for mut workspace in [on_gpus(by_hardware()), by_hardware()] {
        let node = || with(node("a"), "/metadata/labels", json!({"apps": "llm"}));
        let mut observed = observed([node()]);
        settle(&mut workspace, &mut observed, &options());
        let before = observed.deployment.clone();
        let pod = before.as_ref().unwrap().spec.as_ref().unwrap().template.spec.as_ref().unwrap();
        assert_eq!(crate::layout::gpus_of(pod), 2);
        observed.nodes = super::fixtures::observed([with(node(), "/status/allocatable", json!({}))]).nodes;
        settle(&mut workspace, &mut observed, &options());
        assert_eq!(observed.deployment, before);
    }
}

#[test]
fn nodes_without_gpus_compute_on_their_cpus_and_the_status_says_so() {
    let mut workspace = workspace(
        "resource: {labelSelector: {matchLabels: {apps: llm}}}\n\
         inference: {preset: {name: falcon-7b}}",
    );
    let cpu_node =
        with(with(node("a"), "/metadata/labels", json!({"apps": "llm"})), "/status/allocatable", json!({"cpu": "64"}));
    let mut observed = observed([cpu_node]);
    settle(&mut workspace, &mut observed, &options());
    assert_eq!(
        condition(&workspace, ConditionType::ResourceReady).2,
        "1 ready node: a; the runtime kaito computes on CPUs"
    );
    workspace.metadata.annotations = Some([("kaito.sh/runtime".to_owned(), "vllm".to_owned())].into());
    settle(&mut workspace, &mut observed, &options());
    assert_eq!(condition(&workspace, ConditionType::InferenceReady).1, "GpusMissing");
}

#[test]
fn adapters_are_ready_where_the_server_applies_them_as_the_workspace_says() {
    let mut workspace = preset("mistral-7b", 1);
    workspace.inference.as_mut().unwrap().adapters =
        serde_saphyr::from_str("[{source: {name: poet, image: 'registry.example/poet:1'}, strength: '0.5'}]").unwrap();
    let mut observed = observed([node("a")]);
    settle(&mut workspace, &mut observed, &options());
    observed.pods = vec![ready_pod("ws-1", "a")];
    all_ready(&mut observed, 1);
    settle(&mut workspace, &mut observed, &options());
    assert_eq!(
        condition(&workspace, ConditionType::AdaptersReady),
        ("True", "AdaptersLoaded", "the server loads poet")
    );
    assert_eq!(condition(&workspace, ConditionType::WorkspaceReady).0, "True");

    workspace.metadata.annotations = Some([("kaito.sh/runtime".to_owned(), "vllm".to_owned())].into());
    settle(&mut workspace, &mut observed, &options());
    assert_eq!(
        condition(&workspace, ConditionType::AdaptersReady),
        ("False", "AdapterStrengthIgnored", "vLLM applies every adapter at full strength, poet too")
    );
}

#[test]
fn a_workspace_without_inference_is_ready_with_its_nodes() {
    let mut workspace = workspace("resource: {labelSelector: {matchLabels: {apps: llm}}}");
    let mut observed = observed([node("a")]);
    settle(&mut workspace, &mut observed, &options());
    assert_eq!(condition(&workspace, ConditionType::WorkspaceReady), ("True", "WorkspaceReady", "the nodes are ready"));
    assert!(observed.services.is_empty());
}

#[test]
fn pods_of_an_old_template_do_not_make_a_workspace_ready() {
    let mut workspace = preset("falcon-7b", 1);
    let mut observed = observed([node("a")]);
    settle(&mut workspace, &mut observed, &options());
    all_ready(&mut observed, 1);
    Arc::make_mut(observed.deployment.as_mut().unwrap()).metadata.generation = Some(9);
    settle(&mut workspace, &mut observed, &options());
    assert_eq!(condition(&workspace, ConditionType::InferenceReady).0, "False");
}

/// With GPUs, they would keep them from pods that can use them.
#[test]
fn pods_that_compute_on_cpus_hold_no_gpus_and_ask_for_what_they_need() {
    for (name, instance_type, cpus, memory) in [
        ("falcon-7b", Some("Standard_NC24s_v3"), "7", "15Gi"),
        ("llama-2-13b", Some("Standard_NC24s_v3"), "12", "29Gi"),
        // Half of the node's 24 CPUs.
        ("falcon-40b", Some("Standard_NC24s_v3"), "12", "79Gi"),
        ("mistral-7b", None, "4", "16Gi"),
    ] {
        let mut workspace = preset(name, 1);
        workspace.resource.instance_type = instance_type.map(str::to_owned);
        let mut observed = observed([node("a")]);
        settle(&mut workspace, &mut observed, &options());
        let of_deployment = observed.deployment.as_ref().map(|it| it.spec.as_ref().unwrap().template.clone());
        let of_set = observed.stateful_set.as_ref().map(|it| it.spec.as_ref().unwrap().template.clone());
        let pod = of_deployment.or(of_set).unwrap().spec.unwrap();
        let resources = serde_json::to_value(&pod.containers[0].resources).unwrap();
        assert_eq!(resources, json!({"requests": {"cpu": cpus, "memory": memory}}), "{name}");
        assert!(pod.volumes.unwrap().iter().all(|volume| volume.name != "shm"));
        // On any node, even without free GPUs.
        assert_eq!(condition(&workspace, ConditionType::ResourceReady).0, "True");
    }
    let mut workspace = preset("falcon-7b", 1);
    workspace.inference.as_mut().unwrap().config = Some("flags".to_owned());
    let mut observed = observed([node("a")]);
    observed.config = crate::decide::Config::Data([("quantize".to_owned(), "int4".to_owned())].into());
    settle(&mut workspace, &mut observed, &options());
    let template = &observed.deployment.as_ref().unwrap().spec.as_ref().unwrap().template;
    let requests = template.spec.as_ref().unwrap().containers[0].resources.clone().unwrap().requests.unwrap();
    assert_eq!((requests["cpu"].0.as_str(), requests["memory"].0.as_str()), ("2", "6Gi"));
}

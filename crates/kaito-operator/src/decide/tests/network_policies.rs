//! Who reaches a workspace's pods.

use std::sync::Arc;

use serde_json::{Value, json};

use super::fixtures::{
    carry_out, node, now, observed, on_gpus, options, preset, read, ready_pod, settle, with, workspace,
};
use crate::{
    decide::{Change, ObjectKind, Observed, decide, object::AnyObject},
    workspace::Workspace,
};

fn two_nodes() -> Observed {
    observed([node("a"), node("b")])
}

fn annotated(mut workspace: Workspace, name: &str, value: &str) -> Workspace {
    workspace.metadata.annotations.get_or_insert_default().insert(name.to_owned(), value.to_owned());
    workspace
}

/// The policy that a workspace is to have.
fn policy(workspace: &Workspace) -> Option<Value> {
    let decision = decide(workspace, &two_nodes(), &options(), now());
    decision.objects.iter().find(|object| object.kind() == ObjectKind::NetworkPolicy).map(|object| object.to_json())
}

/// A pod as vLLM's workspaces have it.
fn pod_with_an_engine() -> Arc<k8s_openapi::api::core::v1::Pod> {
    let pod = with(
        ready_pod("ws-0", "a").to_json(),
        "/spec/containers",
        json!([{"name": "server", "image": "s:1"}, {"name": "engine", "image": "v:1"}]),
    );
    read(pod)
}

#[test]
fn clients_reach_the_server_and_only_ranks_reach_ranks() {
    let pods = json!({"matchLabels": {"kaito.sh/workspace": "ws"}});
    let clients = json!({"ports": [{"port": 5000, "protocol": "TCP"}]});
    let ranks = json!({"from": [{"podSelector": pods}]});
    for (preset_name, count, ingress) in [
        ("llama-2-13b", 2, json!([ranks, clients])),
        ("falcon-7b", 1, json!([clients])),
        ("falcon-7b", 2, json!([clients])),
    ] {
        let policy = policy(&on_gpus(preset(preset_name, count))).unwrap();
        assert_eq!(
            policy["spec"],
            json!({"podSelector": pods, "policyTypes": ["Ingress"], "ingress": ingress}),
            "{preset_name} on {count}"
        );
        let metadata = &policy["metadata"];
        assert_eq!((&metadata["name"], &metadata["namespace"]), (&json!("ws"), &json!("team")));
        assert_eq!(metadata["labels"], json!({"kaito.sh/workspace": "ws"}));
        assert_eq!(metadata["ownerReferences"][0]["kind"], "Workspace");
    }
}

/// Our own server has one port, and what a template's pods listen on is the author's matter.
#[test]
fn who_listens_on_no_other_port_has_no_policy() {
    assert_eq!(policy(&preset("falcon-7b", 1)), None);
    let template = workspace(
        "resource: {labelSelector: {matchLabels: {apps: llm}}}\n\
         inference: {template: {spec: {containers: [{name: engine, image: nginx}]}}}",
    );
    assert_eq!(policy(&template), None);
    let declined = |value| annotated(on_gpus(preset("llama-2-13b", 2)), "kaito.sh/disable-network-policy", value);
    assert_eq!(policy(&declined("True")), None);
    assert!(policy(&declined("False")).is_some());
}

#[test]
fn it_comes_before_the_pods() {
    let decision = decide(&on_gpus(preset("llama-2-13b", 2)), &two_nodes(), &options(), now());
    let kinds: Vec<_> = decision.writes.iter().map(|(place, _)| decision.objects[*place].kind().as_str()).collect();
    assert_eq!(kinds, ["Service", "Service", "NetworkPolicy", "StatefulSet"]);
}

#[test]
fn what_others_open_is_closed_again() {
    let mut workspace = on_gpus(preset("llama-2-13b", 2));
    let mut observed = two_nodes();
    settle(&mut workspace, &mut observed, &options());
    let policy = observed.network_policy.as_ref().unwrap().to_json();
    observed.network_policy = Some(read(with(policy, "/spec/ingress", json!([{}]))));
    let decision = decide(&workspace, &observed, &options(), now());
    let [(place, change)] = decision.writes.as_slice() else { panic!("{:?}", decision.writes) };
    assert_eq!(decision.objects[*place].kind(), ObjectKind::NetworkPolicy);
    assert_eq!(*change, Change::Repair(vec!["spec.ingress".to_owned()]));
    carry_out(&mut workspace, &mut observed, &decision);
    assert!(decide(&workspace, &observed, &options(), now()).writes.is_empty());
}

/// Pods may take minutes to end, and listen as long.
#[test]
fn it_goes_after_the_last_pod_with_an_engine() {
    let mut workspace = on_gpus(preset("falcon-7b", 1));
    let mut observed = two_nodes();
    settle(&mut workspace, &mut observed, &options());
    observed.pods = vec![pod_with_an_engine()];
    let mut workspace = annotated(workspace, "kaito.sh/runtime", "kaito");
    let decision = decide(&workspace, &observed, &options(), now());
    assert_eq!(decision.deletes, []);
    carry_out(&mut workspace, &mut observed, &decision);

    observed.pods = vec![ready_pod("ws-1", "a")];
    let decision = decide(&workspace, &observed, &options(), now());
    assert_eq!(decision.deletes, [(ObjectKind::NetworkPolicy, "ws".to_owned())]);
    carry_out(&mut workspace, &mut observed, &decision);
    assert_eq!(decide(&workspace, &observed, &options(), now()).deletes, []);
}

#[test]
fn who_declines_it_loses_it_at_once() {
    let mut workspace = on_gpus(preset("llama-2-13b", 2));
    let mut observed = two_nodes();
    settle(&mut workspace, &mut observed, &options());
    observed.pods = vec![pod_with_an_engine()];
    let workspace = annotated(workspace, "kaito.sh/disable-network-policy", "true");
    let decision = decide(&workspace, &observed, &options(), now());
    assert_eq!(decision.deletes, [(ObjectKind::NetworkPolicy, "ws".to_owned())]);
}

#[test]
fn a_policy_of_somebody_else_stays() {
    for (path, value) in [
        ("/metadata/ownerReferences/0/uid", json!("66666666-2222-3333-4444-555555555555")),
        ("/metadata/deletionTimestamp", json!("2026-01-01T00:08:00Z")),
    ] {
        let mut workspace = on_gpus(preset("falcon-7b", 1));
        let mut observed = two_nodes();
        settle(&mut workspace, &mut observed, &options());
        let policy = observed.network_policy.as_ref().unwrap().to_json();
        observed.network_policy = Some(read(with(policy, path, value)));
        let workspace = annotated(workspace, "kaito.sh/runtime", "kaito");
        assert_eq!(decide(&workspace, &observed, &options(), now()).deletes, [], "{path}");
    }
}

//! GPUs of another vendor than NVIDIA.

use kaito_presets::InstanceTypes;
use serde_json::{Value, json};

use super::{
    fixtures::{
        all_ready, carry_out, condition, node, now, observed, on_gpus, options, preset, read, ready_pod, settle, with,
        workspace,
    },
    objects::objects,
};
use crate::{
    decide::{Decision, Observed, Options, TurnedDown, decide},
    instance_types,
    workspace::{ConditionType, Workspace},
};

/// An instance type of the user's own.
const RACK: &str = "rack-mi300x";

fn with_racks() -> Options {
    Options { instance_types: racks(), ..options() }
}

fn racks() -> InstanceTypes {
    instance_types::read(&format!(
        "- {{name: {RACK}, gpus: 8, gpuMemory: 192Gi, gpuVendor: amd, gpuModel: AMD Instinct MI300X}}"
    ))
    .unwrap()
}

/// A node of no type that is known, which offers this.
fn offering(name: &str, offered: Value) -> Value {
    with(with(node(name), "/metadata/labels", json!({"apps": "llm"})), "/status/allocatable", offered)
}

fn of_amd(name: &str) -> Value {
    offering(name, json!({"amd.com/gpu": "8"}))
}

fn of_nvidia(name: &str) -> Value {
    offering(name, json!({"nvidia.com/gpu": "8"}))
}

/// A workspace that leaves the runtime and the instance type to the nodes.
fn untyped(name: &str, count: i32) -> Workspace {
    let mut workspace = preset(name, count);
    workspace.metadata.annotations = None;
    workspace.resource.instance_type = None;
    workspace
}

/// The pods of the workload that is wanted.
fn pods(decision: &Decision) -> Value {
    let workload = decision.objects.iter().find(|object| object.template().is_some()).unwrap();
    workload.to_json()["spec"]["template"]["spec"].clone()
}

/// Image, GPUs, and the taints that the pods tolerate.
fn of_engine(decision: &Decision) -> (Value, Value, Vec<Value>) {
    let pods = pods(decision);
    let engine = pods["containers"][1].clone();
    let tolerated = pods["tolerations"].as_array().unwrap().iter().map(|one| one["key"].clone()).collect();
    (engine["image"].clone(), engine["resources"]["limits"].clone(), tolerated)
}

#[test]
fn vllm_on_an_instance_type_of_amd() {
    let mut workspace = on_gpus(preset("llama-2-70b-chat", 2));
    workspace.resource.instance_type = Some(RACK.to_owned());
    let nodes =
        ["a", "b"].map(|name| with(of_amd(name), "/metadata/labels/node.kubernetes.io~1instance-type", json!(RACK)));
    insta::assert_snapshot!(objects(&workspace, &observed(nodes), &with_racks()));
}

#[test]
fn nodes_say_whose_gpus_they_have() {
    for (nodes, image, resource) in [
        (of_amd("a"), "registry.example/vllm-rocm:1", "amd.com/gpu"),
        (of_nvidia("a"), "registry.example/vllm:1", "nvidia.com/gpu"),
    ] {
        let decision = decide(&untyped("falcon-7b", 1), &observed([nodes]), &options(), now());
        let (its_image, limits, tolerated) = of_engine(&decision);
        assert_eq!((its_image, limits), (json!(image), json!({resource: "1"})));
        assert_eq!(tolerated, [json!(resource), json!("sku")]);
    }
}

#[test]
fn a_preferred_node_and_a_tainted_one_may_be_of_amd() {
    let tainted = with(
        of_amd("mine"),
        "/spec",
        json!({"taints": [{"key": "amd.com/gpu", "value": "present", "effect": "NoSchedule"}]}),
    );
    let mut workspace = untyped("falcon-7b", 1);
    workspace.resource.preferred_nodes = vec!["mine".to_owned()];
    let mut observed = observed([tainted, of_amd("a")]);
    settle(&mut workspace, &mut observed, &options());
    assert_eq!(workspace.status.as_ref().unwrap().worker_nodes, ["mine"]);
    assert_eq!(condition(&workspace, ConditionType::ResourceReady).0, "True");
}

/// Our own engine leaves the GPUs alone, but its pods may go to such nodes.
#[test]
fn nodes_of_amd_compute_on_their_cpus_too() {
    let mut workspace = preset("falcon-7b", 1);
    workspace.resource.instance_type = None;
    let pods = pods(&decide(&workspace, &observed([of_amd("a")]), &options(), now()));
    assert_eq!(pods["containers"][0]["resources"].get("limits"), None);
    assert_eq!(pods["tolerations"][0]["key"], "amd.com/gpu");
}

/// All pods are alike, so the GPUs of one vendor count.
#[test]
fn among_nodes_of_several_vendors_the_most_count_and_pods_stay_with_theirs() {
    let image = |decision: &Decision| of_engine(decision).0.as_str().unwrap().to_owned();
    let decided = |workspace: &Workspace, observed: &Observed| decide(workspace, observed, &options(), now());
    for (nodes, rocm) in [
        (vec![of_nvidia("a"), of_amd("b")], false),
        (vec![of_nvidia("a"), of_amd("b"), of_amd("c")], true),
        (vec![of_nvidia("a"), of_nvidia("b"), of_amd("c")], false),
    ] {
        let image = image(&decided(&untyped("falcon-7b", 1), &observed(nodes.clone())));
        assert_eq!(image.contains("rocm"), rocm, "{nodes:?}");
    }

    let mut workspace = untyped("falcon-7b", 1);
    let mut observed = observed([of_nvidia("a")]);
    settle(&mut workspace, &mut observed, &options());
    for (nodes, rocm) in [
        (vec![of_nvidia("a"), of_amd("b"), of_amd("c")], false),
        // Its device plugin restarts.
        (vec![offering("a", json!({"cpu": "64"}))], false),
        (vec![offering("a", json!({"cpu": "64"})), of_amd("b")], true),
        (vec![of_amd("b")], true),
    ] {
        observed.nodes = nodes.iter().cloned().map(read).collect();
        assert_eq!(image(&decided(&workspace, &observed)).contains("rocm"), rocm, "{nodes:?}");
    }
}

#[test]
fn a_node_of_another_vendor_is_turned_down() {
    let nodes = observed([of_amd("a"), of_amd("b"), of_nvidia("c")]);
    let needs = crate::decide::PodNeeds { vendor: kaito_presets::GpuVendor::Amd, ..super::fixtures::gpus(1) };
    let choice = crate::decide::choose(&untyped("falcon-7b", 2), &nodes, &needs, now());
    let [(name, why)] = choice.turned_down.as_slice() else { panic!("{:?}", choice.turned_down) };
    assert_eq!(name, "c");
    assert!(matches!(why, TurnedDown::Gpus { offered: 0, .. }), "{why}");
    assert_eq!(why.to_string(), "offers no amd.com/gpu and a pod needs 1; does its device plugin run?");
}

#[test]
fn a_template_may_hold_gpus_of_amd() {
    let workspace = workspace(
        "resource: {labelSelector: {matchLabels: {apps: llm}}}\n\
         inference:\n  template:\n    spec:\n      containers:\n      - {name: web, image: nginx, resources: {limits: {amd.com/gpu: '2'}}}\n",
    );
    let decision = decide(&workspace, &observed([of_amd("a")]), &options(), now());
    assert_eq!(pods(&decision)["tolerations"][0]["key"], "amd.com/gpu");
    let decision = decide(&workspace, &observed([of_nvidia("a")]), &options(), now());
    assert!(decision.objects.iter().all(|object| object.template().is_none()), "no node offers what it asks for");
}

/// Where its image is another one, a running model waits for its rollout, and those on other GPUs have nothing to wait for.
#[test]
fn another_image_of_a_vendor_concerns_its_nodes() {
    let newer = Options { vllm_rocm_image: "registry.example/vllm-rocm:2".to_owned(), ..options() };
    for (nodes, due) in [(of_amd("a"), true), (of_nvidia("a"), false)] {
        let mut workspace = untyped("falcon-7b", 1);
        let mut observed = observed([nodes]);
        settle(&mut workspace, &mut observed, &options());
        observed.pods = vec![ready_pod("ws-0", "a")];
        all_ready(&mut observed, 1);
        observed.rollouts.under_way = vec!["team/other".to_owned()];
        let before = pods(&decide(&workspace, &observed, &options(), now()));
        let decision = decide(&workspace, &observed, &newer, now());
        assert_eq!(pods(&decision), before);
        carry_out(&mut workspace, &mut observed, &decision);
        let up_to_date = workspace.status.as_ref().unwrap().condition(ConditionType::UpToDate);
        assert_eq!(up_to_date.map(|condition| condition.reason.as_str()), due.then_some("RolloutDue"));
    }
}

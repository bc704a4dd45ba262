//! The containers of the runtime vllm: what starts an engine, what asks it how it is, and what it has.

use serde_json::{Value, json};

use super::fixtures::{node, now, observed, on_gpus, options, preset, with};
use crate::decide::{ObjectKind, decide};

/// The pod of a preset on nodes of a type, and the strategy of what makes it.
fn pod(name: &str, count: i32, instance_type: &str, gpus: &str) -> (Value, Value) {
    let mut workspace = on_gpus(preset(name, count));
    workspace.resource.instance_type = Some(instance_type.to_owned());
    let nodes = ["a", "b", "c"].map(|name| {
        let node = with(node(name), "/metadata/labels/node.kubernetes.io~1instance-type", json!(instance_type));
        with(node, "/status/allocatable", json!({"nvidia.com/gpu": gpus}))
    });
    let decision = decide(&workspace, &observed(nodes), &options(), now());
    let is_workload = |kind| [ObjectKind::Deployment, ObjectKind::StatefulSet].contains(&kind);
    let workload = decision.objects.iter().find(|object| is_workload(object.kind())).unwrap().to_json();
    let spec = &workload["spec"];
    (spec["template"]["spec"].clone(), spec["updateStrategy"].clone())
}

fn words(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect()
}

/// What a probe asks.
fn asked(probe: &Value) -> (u64, &str) {
    (probe["httpGet"]["port"].as_u64().unwrap(), probe["httpGet"]["path"].as_str().unwrap())
}

#[test]
fn an_engine_alone_is_started_by_its_supervisor() {
    let (pod, _) = pod("mistral-7b", 1, "Standard_NC24ads_A100_v4", "1");
    let [server, engine] = pod["containers"].as_array().unwrap().as_slice() else { panic!("{pod}") };
    assert_eq!(
        words(&engine["command"]),
        [
            "/opt/kaito/kaito",
            "supervise",
            "--host",
            "0.0.0.0",
            "--port",
            "5001",
            "--front",
            "http://127.0.0.1:5000",
            "--grace",
            "5s",
            "--scratch=/dev/shm",
            "--",
            "vllm",
        ]
    );
    let arguments = words(&engine["args"]);
    assert_eq!(arguments[0], "serve");
    assert!(arguments.windows(4).any(|some| some == ["--host", "127.0.0.1", "--port", "8000"]), "{arguments:?}");
    assert!(words(&server["args"]).windows(2).any(|pair| pair == ["--upstream-supervisor", "http://127.0.0.1:5001"]));
    // The server in front says whether the model answers.
    assert_eq!(asked(&server["readinessProbe"]), (5000, "/healthz"));
    assert_eq!(engine.get("readinessProbe"), None);
    assert_eq!(engine.get("lifecycle"), None);
}

#[test]
fn ranks_are_started_together_by_their_supervisors() {
    let (pod, strategy) = pod("llama-2-70b-chat", 2, "Standard_ND96asr_v4", "8");
    assert_eq!(strategy, json!({"type": "OnDelete"}));
    let [server, engine] = pod["containers"].as_array().unwrap().as_slice() else { panic!("{pod}") };
    assert_eq!(
        words(&engine["command"]),
        [
            "/opt/kaito/kaito",
            "supervise",
            "--rank",
            "$(POD_INDEX)",
            "--ranks",
            "2",
            "--first",
            "ws-0.ws-headless.team.svc",
            "--first-argument=--host",
            "--first-argument=127.0.0.1",
            "--first-argument=--port",
            "--first-argument=8000",
            "--other-argument=--headless",
            "--host",
            "0.0.0.0",
            "--port",
            "5001",
            "--front",
            "http://127.0.0.1:5000",
            "--grace",
            "5s",
            "--scratch=/dev/shm",
            "--",
            "vllm",
        ]
    );
    let arguments = words(&engine["args"]);
    assert!(!arguments.contains(&"--host") && !arguments.contains(&"--headless"), "{arguments:?}");
    assert!(arguments.windows(2).any(|pair| pair == ["--node-rank", "$(POD_INDEX)"]), "{arguments:?}");
    let index = engine["env"].as_array().unwrap().iter().find(|variable| variable["name"] == "POD_INDEX").unwrap();
    assert_eq!(index["valueFrom"]["fieldRef"]["fieldPath"], "metadata.labels['apps.kubernetes.io/pod-index']");
    // The server in each pod but the first never answers.
    assert_eq!(server.get("readinessProbe"), None);
    assert_eq!(asked(&engine["readinessProbe"]), (5001, "/readyz"));
}

#[test]
fn kubelets_ask_the_supervisor_and_need_no_shell() {
    for (name, count, instance_type, gpus) in
        [("mistral-7b", 1, "Standard_NC24ads_A100_v4", "1"), ("llama-2-70b-chat", 2, "Standard_ND96asr_v4", "8")]
    {
        let (pod, _) = pod(name, count, instance_type, gpus);
        let engine = &pod["containers"][1];
        assert_eq!(asked(&engine["livenessProbe"]), (5001, "/livez"));
        assert_eq!(asked(&engine["startupProbe"]), (5001, "/livez"));
        assert_eq!(engine["ports"], json!([{"name": "supervisor", "containerPort": 5001, "protocol": "TCP"}]));
        assert!(!pod.to_string().contains("bash") && !pod.to_string().contains("\"exec\""), "{pod}");
    }
}

#[test]
fn the_program_comes_from_the_servers_image_and_nobody_else_writes_it() {
    let (pod, _) = pod("mistral-7b", 1, "Standard_NC24ads_A100_v4", "1");
    let [server, engine] = pod["containers"].as_array().unwrap().as_slice() else { panic!("{pod}") };
    let init = pod["initContainers"].as_array().unwrap().iter().find(|one| one["name"] == "supervisor").unwrap();
    assert_eq!(init["image"], server["image"]);
    assert_ne!(init["image"], engine["image"]);
    assert_eq!(words(&init["command"]), ["kaito"]);
    assert_eq!(words(&init["args"]), ["supervise", "--install", "/opt/kaito/kaito"]);
    assert_eq!(init["volumeMounts"], json!([{"name": "supervisor", "mountPath": "/opt/kaito"}]));
    let mounts = engine["volumeMounts"].as_array().unwrap();
    assert!(mounts.contains(&json!({"name": "supervisor", "mountPath": "/opt/kaito", "readOnly": true})), "{mounts:?}");
    assert!(!server["volumeMounts"].to_string().contains("supervisor"));
    assert!(pod["volumes"].as_array().unwrap().contains(&json!({"name": "supervisor", "emptyDir": {}})));
    // As the restricted Pod Security Standard has it.
    assert_eq!(init["securityContext"], engine["securityContext"]);
}

/// One GPU has several processes too.
#[test]
fn each_engine_has_shared_memory_for_its_gpus() {
    for (name, count, instance_type, gpus, limit) in [
        ("mistral-7b", 1, "Standard_NC24ads_A100_v4", "1", "2Gi"),
        ("falcon-40b", 1, "Standard_NC96ads_A100_v4", "4", "3Gi"),
        ("llama-2-13b", 2, "Standard_NC6s_v3", "1", "2Gi"),
        ("llama-2-70b-chat", 2, "Standard_ND96asr_v4", "8", "5Gi"),
    ] {
        let (pod, _) = pod(name, count, instance_type, gpus);
        let volume = pod["volumes"].as_array().unwrap().iter().find(|volume| volume["name"] == "shm").unwrap();
        assert_eq!(volume["emptyDir"], json!({"medium": "Memory", "sizeLimit": limit}), "{name}");
        let engine = &pod["containers"][1];
        let held = engine["resources"]["limits"]["nvidia.com/gpu"].as_str().unwrap().parse::<u32>().unwrap();
        assert_eq!(format!("{}Gi", held + 1), limit, "{name}");
        assert!(engine["volumeMounts"].to_string().contains("/dev/shm"), "{name}");
    }
}

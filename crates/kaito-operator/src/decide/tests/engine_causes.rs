//! Pods of an engine and the front before it: what is told of them.

use serde_json::{Value, json};

use super::{
    causes::{ended, running, waiting},
    fixtures::{condition, pod},
};
use crate::workspace::{ConditionType, WorkspaceState};

/// The state of a container, its last end, how often it was restarted, and whether it is ready.
type Told = (Value, Value, i32, bool);

/// A pod of the runtime vllm.
fn two_containers(server: Told, engine: Told, ready_since: &str) -> Value {
    let status = |name: &str, (state, last, restarts, ready): Told| {
        json!({
            "name": name, "image": format!("registry.example/{name}:1"), "imageID": "", "ready": ready, "started": ready,
            "restartCount": restarts, "state": state, "lastState": last,
        })
    };
    json!({
        "phase": "Running",
        "conditions": [
            {"type": "PodScheduled", "status": "True"},
            {"type": "Ready", "status": "False", "lastTransitionTime": ready_since},
        ],
        "containerStatuses": [status("server", server), status("engine", engine)],
    })
}

#[test]
fn what_an_engine_does_is_told_though_the_server_before_it_runs() {
    let since = |time: &str| json!({"running": {"startedAt": time}});
    let at = "2026-01-01T00:05:00Z";
    let serves = || (since("2026-01-01T00:02:00Z"), json!({}), 0, false);
    let words = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB";
    for (engine, reason, message) in [
        (
            (waiting("ContainerCreating", ""), json!({}), 0, false),
            "PodsStarting",
            "pod ws-1: node a fetches and starts image registry.example/engine:1".to_owned(),
        ),
        (
            (waiting("ErrImagePull", "not found"), json!({}), 0, false),
            "ImagePullError",
            "pod ws-1: image registry.example/engine:1: ErrImagePull: not found. Check the image's name and tag; a private \
             registry needs inference.preset.presetOptions.imagePullSecrets"
                .to_owned(),
        ),
        (
            (since(at), json!({}), 0, false),
            "ModelLoading",
            "pod ws-1: the model is loading since 2026-01-01T00:05:00Z; it may take 30m".to_owned(),
        ),
        (
            (waiting("CrashLoopBackOff", "back-off"), ended("Error", 1, words), 2, false),
            "GpuOutOfMemory",
            format!(
                "pod ws-1: container engine ended with exit status 1, was restarted 2 times: {words}. Use more or larger GPUs, or a \
                 shorter max-model-len or fewer max-num-seqs by inference.config, and see that nobody else uses these GPUs"
            ),
        ),
        (
            (waiting("CrashLoopBackOff", "back-off"), ended("Error", 1, "Traceback: no such thing"), 2, false),
            "ContainerCrashLoopBackOff",
            "pod ws-1: container engine ended with exit status 1, was restarted 2 times: Traceback: no such thing. See kubectl logs \
             --previous --container engine of the pod"
                .to_owned(),
        ),
        (
            // It loads again.
            (since(at), ended("OOMKilled", 137, ""), 1, false),
            "ContainerOOMKilled",
            "pod ws-1: container engine ran out of memory, was restarted once. Use a larger instance type, or a shorter \
             context by inference.config"
                .to_owned(),
        ),
        (
            // It was well, and is not any more.
            (since("2026-01-01T00:03:00Z"), json!({}), 0, true),
            "ServerUnhealthy",
            "pod ws-1: the engine does not answer: it has ended, loads again, or is stuck. The server's /healthz says which. See \
             kubectl logs of the pod"
                .to_owned(),
        ),
    ] {
        let status = two_containers(serves(), engine, "2026-01-01T00:04:00Z");
        let (workspace, _) = running("falcon-7b", 1, vec![pod("ws-1", Some("a"), status.clone())]);
        assert_eq!(
            condition(&workspace, ConditionType::InferenceReady),
            ("False", reason, message.as_str()),
            "{status}"
        );
    }
    // And the other way round: the engine is well, and the server crashes.
    let server = (waiting("CrashLoopBackOff", ""), ended("Error", 2, "error: no tokenizer"), 3, false);
    let status = two_containers(server, (since(at), json!({}), 0, true), "2026-01-01T00:04:00Z");
    let (workspace, _) = running("falcon-7b", 1, vec![pod("ws-1", Some("a"), status)]);
    let (_, reason, message) = condition(&workspace, ConditionType::InferenceReady);
    assert_eq!(reason, "ContainerCrashLoopBackOff");
    assert!(message.contains("container server ended with exit status 2") && message.contains("no tokenizer"));
}

/// The lines are those of the programs themselves; each stands behind what its supervisor says last, and others before that.
#[test]
fn an_engines_last_words_have_their_reason() {
    let since = |time: &str| json!({"running": {"startedAt": time}});
    for (words, reason, step) in [
        (
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
            "GpuOutOfMemory",
            "Use more or larger GPUs",
        ),
        (
            "ValueError: To serve at least one request with the models's max seq len (131072), (4.00 GiB KV cache is needed, which \
             is larger than the available KV cache memory (0.65 GiB)",
            "GpuMemoryTooSmall",
            "a shorter max-model-len",
        ),
        (
            "RuntimeError: The NVIDIA driver on your system is too old (found version 12020)",
            "GpuDriverUnsuitable",
            "Install a driver on the nodes",
        ),
        ("RuntimeError: No CUDA GPUs are available", "GpusMissing", "device plugin"),
        ("torch.AcceleratorError: CUDA error: uncorrectable ECC error encountered", "GpuLost", "Replace the node"),
        (
            "RuntimeError: unable to allocate shared memory(shm) for file </torch_7>",
            "SharedMemoryExhausted",
            "Delete the pod",
        ),
        (
            "ValueError: Model architectures ['LettersForCausalLM'] are not supported for now",
            "ModelUnsupported",
            "the runtime kaito",
        ),
        (
            "safetensors_rust.SafetensorError: Error while deserializing header: HeaderTooLarge",
            "WeightsUnreadable",
            "See that the weights are whole",
        ),
        ("vllm: error: unrecognized arguments: --no-such-flag", "FlagsRefused", "Correct the flag"),
        (
            "RuntimeError: [../third_party/gloo/gloo/transport/tcp/pair.cc:544] Connection closed by peer [192.0.2.2]:4711",
            "RankUnreachable",
            "nothing between the nodes keeps them apart",
        ),
        (
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8388608 bytes",
            "ContainerOOMKilled",
            "Use a larger instance type",
        ),
        ("RuntimeError: Engine core initialization failed", "ContainerCrashLoopBackOff", "See kubectl logs --previous"),
    ] {
        let said = format!(
            "ERROR Connection reset by peer\nCUDA out of memory, perhaps\nerror: the engine ended with exit status 1: {words}\n"
        );
        let engine = (waiting("CrashLoopBackOff", "back-off"), ended("Error", 1, &said), 2, false);
        let server = (since("2026-01-01T00:02:00Z"), json!({}), 0, true);
        let status = two_containers(server, engine, "2026-01-01T00:04:00Z");
        let (workspace, _) = running("falcon-7b", 1, vec![pod("ws-1", Some("a"), status)]);
        let (status, found, message) = condition(&workspace, ConditionType::InferenceReady);
        assert_eq!((status, found), ("False", reason), "{message}");
        assert!(message.contains(&format!(": error: the engine ended with exit status 1: {words}. ")), "{message}");
        assert!(message.contains(step) && !message.contains("perhaps"), "{message}");
        assert_eq!(workspace.status.unwrap().state, Some(WorkspaceState::NotReady));
    }
    // Of long words the beginning is quoted: it says what is wrong.
    let words = format!("torch.OutOfMemoryError: CUDA out of memory. {}", "GPU 0 has less. ".repeat(40));
    let said = format!("error: the engine ended with exit status 1: {words}");
    let engine = (waiting("CrashLoopBackOff", "back-off"), ended("Error", 1, &said), 2, false);
    let status = two_containers((since("2026-01-01T00:02:00Z"), json!({}), 0, true), engine, "2026-01-01T00:04:00Z");
    let (workspace, _) = running("falcon-7b", 1, vec![pod("ws-1", Some("a"), status)]);
    let (_, reason, message) = condition(&workspace, ConditionType::InferenceReady);
    let quoted: String = said.chars().take(300).collect();
    assert!(reason == "GpuOutOfMemory" && message.contains(&format!(": {quoted} [...]. Use more")), "{message}");
    // The server's own words are no engine's.
    let server = (waiting("CrashLoopBackOff", ""), ended("Error", 1, "CUDA out of memory"), 3, false);
    let engine = (since("2026-01-01T00:02:00Z"), json!({}), 0, true);
    let status = two_containers(server, engine, "2026-01-01T00:04:00Z");
    let (workspace, _) = running("falcon-7b", 1, vec![pod("ws-1", Some("a"), status)]);
    assert_eq!(condition(&workspace, ConditionType::InferenceReady).1, "ContainerCrashLoopBackOff");
}

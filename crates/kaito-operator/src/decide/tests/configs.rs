//! The effects of a ConfigMap with flags of the server.

use serde_json::{Value, json};

use super::fixtures::{condition, node, observed, on_gpus, options, preset, settle, with};
use crate::{
    decide::{Config, Observed},
    workspace::{ConditionType, Workspace},
};

/// A workspace on `count` nodes of a type, with the Kaito project's file.
fn with_file(name: &str, count: i32, (instance_type, gpus): (&str, u32), file: &str) -> (Workspace, Observed) {
    let mut workspace = preset(name, count);
    workspace.resource.instance_type = Some(instance_type.to_owned());
    workspace.inference.as_mut().unwrap().config = Some("params".to_owned());
    let nodes = (0..count).map(|number| {
        let node = node(&format!("n{number}"));
        let node = with(node, "/metadata/labels/node.kubernetes.io~1instance-type", json!(instance_type));
        with(node, "/status/allocatable", json!({"nvidia.com/gpu": gpus.to_string()}))
    });
    let mut observed = observed(nodes);
    observed.config = Config::Data([("inference_config.yaml".to_owned(), file.to_owned())].into());
    (workspace, observed)
}

/// The container that computes: the engine where there is one.
fn container(observed: &Observed) -> Value {
    containers(observed).as_array().unwrap().last().unwrap().clone()
}

fn containers(observed: &Observed) -> Value {
    let of_deployment = observed.deployment.as_ref().map(|it| it.spec.as_ref().unwrap().template.clone());
    let of_set = observed.stateful_set.as_ref().map(|it| it.spec.as_ref().unwrap().template.clone());
    serde_json::to_value(of_deployment.or(of_set).unwrap()).unwrap()["spec"]["containers"].clone()
}

const A100: (&str, u32) = ("Standard_NC96ads_A100_v4", 4);
const V100: (&str, u32) = ("Standard_NC6s_v3", 1);

/// The value that follows a flag.
fn value(arguments: &Value, flag: &str) -> Option<String> {
    let arguments: Vec<&str> = arguments.as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect();
    let flag = format!("--{flag}");
    assert!(
        arguments.iter().filter(|argument| argument.split('=').next() == Some(&flag)).count() <= 1,
        "{arguments:?}"
    );
    let place = arguments.iter().position(|argument| *argument == flag)?;
    Some(arguments[place + 1].to_owned())
}

#[test]
fn what_a_configuration_says_is_taken_where_it_fits() {
    for (name, count, nodes, section, tensor, pipeline, length, gpus) in [
        ("mistral-7b-instruct", 1, A100, "max-model-len: 4096", "1", None, "4096", "1"),
        ("mistral-7b-instruct", 1, A100, "tensor-parallel-size: 4", "4", None, "32768", "4"),
        (
            "mistral-7b-instruct",
            1,
            A100,
            "tensor-parallel-size: 2, pipeline-parallel-size: 2",
            "2",
            Some("2"),
            "32768",
            "4",
        ),
        ("llama-2-70b", 2, A100, "tensor-parallel-size: 4, max-model-len: 2048", "4", Some("2"), "2048", "4"),
        ("llama-2-70b", 2, A100, "tensor-parallel-size: 8, pipeline-parallel-size: 1", "8", Some("1"), "4096", "4"),
        ("llama-2-70b", 2, A100, "distributed-executor-backend: mp", "4", Some("2"), "4096", "4"),
        ("mistral-7b", 1, V100, "max-model-len: auto, gpu-memory-utilization: 0.98", "1", None, "256", "1"),
        ("mistral-7b", 1, V100, "max-model-len: 8k, quantization: fp8", "1", None, "8000", "1"),
        ("mistral-7b", 1, V100, "cpu-offload-gb: 8, max-model-len: 16384", "1", None, "16384", "1"),
    ] {
        let (workspace, mut observed) = with_file(name, count, nodes, &format!("vllm: {{{section}}}"));
        let mut workspace = on_gpus(workspace);
        settle(&mut workspace, &mut observed, &options());
        assert!(
            observed.deployment.is_some() || observed.stateful_set.is_some(),
            "{name} {section}: {:?}",
            condition(&workspace, ConditionType::InferenceReady)
        );
        let container = container(&observed);
        let flag = |flag: &str| value(&container["args"], flag);
        assert_eq!(flag("tensor-parallel-size").as_deref(), Some(tensor), "{section}");
        assert_eq!(flag("pipeline-parallel-size").as_deref(), pipeline, "{section}");
        let found = flag("max-model-len").unwrap();
        if section.contains("auto") {
            assert!(found.parse::<u64>().unwrap().is_multiple_of(length.parse().unwrap()), "{found}");
        } else {
            assert_eq!(found, length, "{section}");
        }
        assert_eq!(container["resources"]["limits"]["nvidia.com/gpu"], gpus, "{section}");
        assert_eq!(condition(&workspace, ConditionType::ConfigApplied).1, "FlagsApplied");
    }
}

#[test]
fn what_does_not_fit_is_said_with_numbers_and_nothing_is_started() {
    for (name, count, nodes, section, reason, parts) in [
        (
            "mistral-7b-instruct",
            1,
            A100,
            "tensor-parallel-size: 8",
            "ConfigDoesNotFit",
            &["tensor-parallel-size 8 need 8 GPUs of each node, but the nodes have 4"][..],
        ),
        ("falcon-7b", 1, A100, "tensor-parallel-size: 2", "ConfigDoesNotFit", &["71 attention heads", "1, 71 can"]),
        (
            "llama-2-70b",
            2,
            A100,
            "pipeline-parallel-size: 3, tensor-parallel-size: 1",
            "ConfigDoesNotFit",
            &["3 GPUs, which 2 pods"],
        ),
        (
            "llama-2-7b",
            1,
            A100,
            "max-model-len: 131072",
            "ConfigDoesNotFit",
            &["max-model-len is 131072", "made for 4096 tokens"],
        ),
        (
            "llama-2-13b",
            1,
            ("Standard_NC12s_v3", 2),
            "max-model-len: 4096",
            "ConfigDoesNotFit",
            &[
                "max-model-len is 4096, but beside 24.2 GiB of weights 2 GPUs of 16 GiB have memory for ",
                "Ask for fewer",
            ],
        ),
        (
            "mistral-7b",
            1,
            V100,
            "dtype: bfloat16",
            "ConfigDoesNotFit",
            &["dtype is bfloat16", "compute capability below 8.0"],
        ),
        (
            "llama-2-70b",
            2,
            A100,
            "distributed-executor-backend: ray",
            "ConfigDoesNotFit",
            &["distributed-executor-backend is another than mp, by which 2 pods serve llama-2-70b together"],
        ),
        (
            "falcon-7b",
            1,
            A100,
            "port: 80",
            "ConfigDoesNotFit",
            &["port is 80, but the workspace's Service leads to port 5000"],
        ),
        ("falcon-7b", 1, A100, "tensor-parallel-size: many", "ConfigInvalid", &["tensor-parallel-size is \"many\""]),
    ] {
        let (workspace, mut observed) = with_file(name, count, nodes, &format!("vllm: {{{section}}}"));
        let mut workspace = on_gpus(workspace);
        settle(&mut workspace, &mut observed, &options());
        let (status, actual, message) = condition(&workspace, ConditionType::InferenceReady);
        assert_eq!((status, actual), ("False", reason), "{section}: {message}");
        for part in parts {
            assert!(message.contains(part), "{section}: {message}");
        }
        assert!(observed.deployment.is_none() && observed.stateful_set.is_none(), "{section}");
    }
}

/// A LoRA adapter of rank 16 on every matrix of Llama 2 13B has 62,586,880 parameters. With two GPUs that share each layer, both hold
/// what is not cut up: 85,524,480 in all, of two bytes, and a token of the KV cache has 819,200 bytes.
#[test]
fn adapters_take_of_the_memory_for_the_kv_cache() {
    let tokens = |adapters: usize, flags: &str| -> f64 {
        let section = format!("vllm: {{max-model-len: 4096{flags}}}");
        let (workspace, mut observed) = with_file("llama-2-13b", 1, ("Standard_NC12s_v3", 2), &section);
        let mut workspace = on_gpus(workspace);
        let names = (0..adapters).map(|number| format!("- {{source: {{name: a{number}, image: 'i:1'}}}}\n"));
        workspace.inference.as_mut().unwrap().adapters =
            serde_saphyr::from_str(&names.collect::<String>()).unwrap_or_default();
        settle(&mut workspace, &mut observed, &options());
        let (_, reason, message) = condition(&workspace, ConditionType::InferenceReady);
        assert_eq!(reason, "ConfigDoesNotFit", "{message}");
        assert_eq!(message.contains("for adapters"), adapters > 0, "{message}");
        let (_, number) = message.split_once(" have memory for ").unwrap();
        number.split(' ').next().unwrap().parse().unwrap()
    };
    let without = tokens(0, "");
    for (adapters, flags, times) in [
        (1, "", 1.0),
        // One is on the GPUs at a time, whatever there is.
        (3, "", 1.0),
        (3, ", max-loras: 2", 2.0),
        (1, ", max-lora-rank: 64", 4.0),
        (2, ", max-loras: 2, max-lora-rank: 64", 8.0),
        (1, ", max-loras: none", 1.0),
    ] {
        let expected = times * 85_524_480.0 * 2.0 / 819_200.0;
        let found = without - tokens(adapters, flags);
        assert!((found - expected).abs() <= 1.0, "{adapters} {flags}: {found} for {expected}");
    }
}

/// What clients meet is the server in front, which must have the names and the queue that the user asks for.
#[test]
fn names_and_sequences_reach_the_server_in_front() {
    let section = "served-model-name: [poet, tutor], max-num-seqs: 8, data-parallel-size: 2";
    let (workspace, mut observed) = with_file("mistral-7b-instruct", 1, A100, &format!("vllm: {{{section}}}"));
    let mut workspace = on_gpus(workspace);
    settle(&mut workspace, &mut observed, &options());
    let containers = containers(&observed);
    let (server, engine) = (&containers[0]["args"], &containers[1]["args"]);
    assert_eq!(value(server, "served-model-name").as_deref(), Some("poet,tutor"));
    assert_eq!(value(server, "max-batch-size").as_deref(), Some("16"));
    // By this name alone the server asks for it.
    assert_eq!(value(server, "upstream-model"), value(engine, "served-model-name"));
    assert_eq!(value(engine, "served-model-name").as_deref(), Some("mistral-7b-instruct"));
    assert!(engine.as_array().unwrap().contains(&json!("--max-num-seqs=8")), "{engine}");
    assert_eq!(
        condition(&workspace, ConditionType::ConfigApplied),
        ("True", "FlagsApplied", "the server gets 3 flags from ConfigMap params")
    );
}

/// A mistake in the ConfigMap does not stop a model that serves.
#[test]
fn a_running_model_outlives_a_configuration_that_does_not_fit() {
    let (workspace, mut observed) = with_file("mistral-7b-instruct", 1, A100, "vllm: {max-model-len: 4096}");
    let mut workspace = on_gpus(workspace);
    settle(&mut workspace, &mut observed, &options());
    let before = observed.deployment.clone();
    observed.config =
        Config::Data([("inference_config.yaml".to_owned(), "vllm: {tensor-parallel-size: 64}".to_owned())].into());
    settle(&mut workspace, &mut observed, &options());
    assert_eq!(condition(&workspace, ConditionType::InferenceReady).1, "ConfigDoesNotFit");
    assert_eq!(observed.deployment, before);
}

#[test]
fn a_section_for_another_runtime_is_named_and_holds_up_nothing() {
    let (mut workspace, mut observed) =
        with_file("falcon-7b", 1, A100, "max_probe_steps: 6\nvllm: {tensor-parallel-size: 2}\n");
    settle(&mut workspace, &mut observed, &options());
    let (status, reason, message) = condition(&workspace, ConditionType::ConfigApplied);
    assert_eq!((status, reason), ("False", "FlagsIgnored"));
    for part in
        ["the section vllm", "this workspace's is kaito", "kaito.sh/runtime: vllm", "max_probe_steps", "0 flags"]
    {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(container(&observed)["command"], json!(["kaito"]));
    assert_ne!(condition(&workspace, ConditionType::WorkspaceReady).1, "FlagsIgnored");
    let mut workspace = on_gpus(workspace);
    workspace.metadata.generation = Some(2);
    observed.config = Config::Data([("inference_config.yaml".to_owned(), "vllm: {max-num-seqs: 8}".to_owned())].into());
    settle(&mut workspace, &mut observed, &options());
    let (status, reason, message) = condition(&workspace, ConditionType::ConfigApplied);
    assert_eq!((status, reason, message), ("True", "FlagsApplied", "the server gets 1 flag from ConfigMap params"));
}

//! `kaito plan`, `kaito instance-types` and `kaito validate` from outside, and docs/hardware.md, whose commands print what it
//! says they print.

use std::fs;

use kaito_testing::{
    files::repository,
    process::{output, output_with_input, text},
};
use serde_json::Value;

use crate::{
    documents::{blocks, read},
    program::{kaito, path},
};

/// What a run printed, with its exit status where that is not 0.
fn printed(args: &[&str]) -> String {
    let output = output(&mut kaito(args));
    let status = match output.status.code() {
        Some(0) => String::new(),
        code => format!("[exit status {}]\n", code.unwrap()),
    };
    format!("{}{}{status}", text(&output.stdout), text(&output.stderr))
}

#[test]
fn plans_of_one_instance_type() {
    for (name, args) in [
        ("fits", &["mistral-7b-instruct", "--instance-type", "Standard_NC12s_v3"][..]),
        ("ranks over nodes", &["llama2_70b", "--instance-type", "Standard_NC96ads_A100_v4", "--count", "4"]),
        ("layers over GPUs", &["falcon-40b", "--instance-type", "g5.12xlarge", "--context", "1024", "--batch", "8"]),
        ("adapters", &["llama-2-7b", "--instance-type", "g4dn.xlarge", "--adapters", "3"]),
        ("too little", &["llama-2-70b", "--instance-type", "Standard_NC24s_v3", "--count", "2"]),
        ("too long", &["phi-3-mini-128k-instruct", "--instance-type", "g6.xlarge", "--context", "131072"]),
        (
            "narrow",
            &["llama-2-7b", "--instance-type", "Standard_NV12ads_A10_v5", "--dtype", "int4", "--kv-dtype", "fp8"],
        ),
    ] {
        insta::assert_snapshot!(format!("plan {name}"), printed(&[&["plan"], args].concat()));
    }
}

/// What computes, and why: vLLM's two builds, several nodes, adapters, and GPUs that do not suffice.
#[test]
fn a_plan_says_which_runtime_the_nodes_get() {
    let directory = tempfile::tempdir().unwrap();
    let types = directory.path().join("types.yaml");
    fs::write(
        &types,
        "- {name: amd-8, gpus: 8, gpuMemory: 192Gi, gpuVendor: amd}\n- {name: amd-1, gpus: 1, gpuMemory: 8Gi, gpuVendor: amd}\n",
    )
    .unwrap();
    let a100 = "Standard_NC24ads_A100_v4";
    for (preset, of, count, adapters, served_by, vendor, ranks) in [
        ("mistral-7b", a100, "1", "0", "vllm, since its nodes have GPUs", Some("nvidia"), Some(1)),
        ("mistral-7b", a100, "2", "0", "vllm, since its nodes have GPUs", Some("nvidia"), Some(1)),
        ("mistral-7b", "amd-8", "1", "0", "vllm (its image for ROCm), since its nodes have GPUs", Some("amd"), Some(1)),
        ("mistral-7b", "amd-1", "1", "0", "kaito, since its GPUs have too little memory for vLLM", None, None),
        (
            "llama-2-70b",
            "Standard_NC96ads_A100_v4",
            "2",
            "0",
            "vllm, since its nodes have GPUs, and 2 of them serve one model together",
            Some("nvidia"),
            Some(2),
        ),
        ("llama-2-70b", "p4d.24xlarge", "1", "0", "vllm, since its nodes have GPUs", Some("nvidia"), Some(1)),
        ("mistral-7b", a100, "1", "2", "vllm, since its nodes have GPUs", Some("nvidia"), Some(1)),
        // vLLM applies none to Falcon.
        ("falcon-7b", a100, "1", "1", "kaito, since vLLM does not apply its adapters as it asks for them", None, None),
    ] {
        let args = ["plan", preset, "--instance-type", of, "--count", count, "--adapters", adapters];
        let args = [&args[..], &["--instance-types", types.to_str().unwrap()]].concat();
        let text = printed(&args);
        let row = text.lines().find_map(|line| line.strip_prefix("served by ")).map(str::trim);
        assert_eq!(row, Some(served_by), "{text}");
        let json: Value =
            serde_json::from_slice(&output(&mut kaito(&[&args[..], &["--json"]].concat())).stdout).unwrap();
        let json = &json["served_by"];
        assert!(served_by.starts_with(json["runtime"].as_str().unwrap()), "{json}");
        assert_eq!((json["gpu_vendor"].as_str(), json["ranks"].as_u64()), (vendor, ranks), "{json}");
    }
}

#[test]
fn plans_of_all_instance_types() {
    for (name, args) in [
        ("google", &["llama-2-7b", "--cloud", "google", "--context", "4096", "--batch", "4"][..]),
        ("one node", &["llama-2-70b-chat", "--count", "1", "--cloud", "azure"]),
        ("nowhere", &["llama-2-70b", "--dtype", "f32", "--batch", "1000", "--context", "4096", "--cloud", "google"]),
    ] {
        insta::assert_snapshot!(format!("plans {name}"), printed(&[&["plan"], args].concat()));
    }
}

#[test]
fn plans_as_json() {
    let json = |args: &[&str]| -> Value { serde_json::from_slice(&output(&mut kaito(args)).stdout).unwrap() };
    let one = json(&["plan", "llama-2-7b", "--instance-type", "g4dn.xlarge", "--context", "4096", "--json"]);
    assert_eq!(one["fits"], false);
    assert_eq!(one["per_gpu"]["weights"], 13_476_831_232_u64);
    assert_eq!(one["per_gpu"]["kv_cache"], 2_u64 << 30);
    assert_eq!(one["instance_type"]["gpu"]["memory"], 16_u64 << 30);
    assert_eq!(one["shortfalls"][0]["kind"], "usable_gpu_memory");
    assert!(one["problems"][0].as_str().unwrap().starts_with("Insufficient per GPU memory: "), "{one}");
    assert_eq!(one["enough"][0]["nodes"], 1);

    let all = json(&["plan", "llama-2-7b", "--json"]);
    let all = all.as_array().unwrap();
    assert!(all.len() > 50 && all.iter().all(|plan| plan["fits"] == true), "{}", all.len());
    assert_eq!(all[0]["instance_type"]["gpu_memory"], Value::Null);

    let types = json(&["instance-types", "--json"]);
    assert_eq!(types.as_array().unwrap().len(), 92);
    let one = json(&["instance-types", "p5.48xlarge", "--json"]);
    assert!(types.as_array().unwrap().contains(&one));
    assert_eq!(
        (&one["gpu_memory"], &one["gpu"]["compute_capability"]),
        (&Value::from(640_u64 << 30), &Value::from("9.0"))
    );
}

#[test]
fn instance_types() {
    insta::assert_snapshot!("instance types", printed(&["instance-types"]));
    insta::assert_snapshot!("instance type", printed(&["instance-types", "Standard_NC24ads_A100_v4"]));
    insta::assert_snapshot!("instance type small", printed(&["instance-types", "Standard_NV6ads_A10_v5"]));
}

#[test]
fn failures_say_what_is_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let racks = directory.path().join("racks.yaml");
    fs::write(&racks, "- {name: rack-7, gpus: 0, gpuMemory: 24Gi}").unwrap();
    let (empty, racks) = (directory.path().join("empty"), racks.to_str().unwrap());
    fs::create_dir(&empty).unwrap();
    let empty = empty.to_str().unwrap();
    for (args, status, parts) in [
        (&["plan"][..], 2, &["<PRESET>"][..]),
        (&["plan", "flacon-7b"], 1, &["did you mean falcon-7b?", "kaito presets"]),
        (
            &["plan", "falcon-7b", "--instance-type", "G5.xlarge"],
            1,
            &["did you mean g5.xlarge?", "kaito instance-types"],
        ),
        (&["plan", "falcon-7b", "--context", "4096"], 1, &["a context of 4096 tokens", "from 1 to 2048"]),
        (&["plan", "falcon-7b", "--batch", "0"], 1, &["a batch of 0 sequences"]),
        (&["plan", "falcon-7b", "--count", "0"], 2, &["--count"]),
        (&["plan", "falcon-7b", "--adapters", "257"], 2, &["--adapters", "256"]),
        (&["plan", "falcon-7b", "--dtype", "int2"], 2, &["int2", "int4"]),
        (&["plan", "falcon-7b", "--instance-types", racks], 1, &[racks, "gpus is 0"]),
        (&["plan", "falcon-7b", "--instance-types", "/no/such/file"], 1, &["/no/such/file"]),
        (&["instance-types", "nothing"], 1, &["there is no instance type \"nothing\""]),
        (&["validate"], 2, &["--filename"]),
        (&["validate", "-f", "/no/such/file"], 1, &["cannot read /no/such/file"]),
        (&["validate", "-f", empty], 1, &["there is no .yaml, .yml or .json file", empty]),
    ] {
        let output = output(&mut kaito(args));
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{args:?}: {message}");
        assert!(message.starts_with("error: "), "{args:?}: {message}");
        for part in parts {
            assert!(message.contains(part), "{args:?} lacks {part:?}: {message}");
        }
    }
}

const GOOD: &str = "apiVersion: kaito.sh/v1beta1\nkind: Workspace\nmetadata: {name: good}\nresource:\n  instanceType: \
                    rack-7\n  labelSelector: {matchLabels: {apps: a}}\ninference: {preset: {name: falcon-7b}}\n";

#[test]
fn manifests_are_validated() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = directory.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("good.yaml", GOOD);
    write("readme.txt", "not a manifest");
    let bad = GOOD.replace("rack-7", "g4dn.xlarge").replace("falcon-7b", "llama-2-70b").replace("metadata", "metdata");
    write("more/bad.yml", &format!("# two\n{bad}---\napiVersion: v1\nkind: Service\nmetadata: {{name: web}}\n"));
    write("more/broken.json", "{\"kind\": \"Workspace\",\n \"metadata\": {\n");
    write("types.yaml", "- {name: rack-7, gpus: 1, gpuMemory: 24Gi}\n");
    let run = |args: &[&str], input: &str| {
        let mut command = kaito(&[&["validate"], args].concat());
        let output = output_with_input(command.current_dir(directory.path()), input);
        (output.status.code().unwrap(), format!("{}{}", text(&output.stdout), text(&output.stderr)))
    };
    let (status, report) = run(&["-f", "good.yaml", "more"], "");
    assert_eq!(status, 1);
    insta::assert_snapshot!("validate", report);

    assert_eq!(
        run(&["-f", "good.yaml", "--instance-types", "types.yaml"], ""),
        (0, "good.yaml:1: Workspace good: valid\n1 valid, 0 refused\n".to_owned())
    );
    assert_eq!(
        run(&["-f", "-", "--filename", "good.yaml", "--instance-types", "types.yaml"], &GOOD.replace("good", "piped")),
        (0, "-:1: Workspace piped: valid\ngood.yaml:1: Workspace good: valid\n2 valid, 0 refused\n".to_owned())
    );
    let (status, report) = run(&["-f", "-"], "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\n");
    assert_eq!(status, 1);
    assert!(report.contains("Pod p: skipped") && report.contains("there is no workspace"), "{report}");

    let (status, json) = run(&["-f", "more", "--json"], "");
    assert_eq!(status, 1);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json.as_array().unwrap().len(), 3);
    assert_eq!(json[0]["file"], "more/bad.yml");
    assert_eq!((&json[0]["line"], &json[0]["outcome"]), (&Value::from(2), &Value::from("refused")));
    assert_eq!(json[0]["errors"][0]["path"], "metdata");
    assert_eq!(json[1]["outcome"], "skipped");
}

/// The examples apply as they are.
#[test]
fn the_examples_are_valid() {
    let output = output(kaito(&["validate", "--json", "-f", "examples"]).current_dir(repository()));
    let checked: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(output.status.success(), "{checked:#}");
    let valid = checked.as_array().unwrap().iter().filter(|one| one["outcome"] == "valid").count();
    assert!(valid >= 14, "{valid}");
}

/// Files of the documentation are written, its commands run; where a block of text follows, that is what is printed.
#[test]
fn the_documentation_keeps_its_word() {
    let markdown = read("docs/hardware.md");
    let directory = tempfile::tempdir().unwrap();
    let path = path();
    let blocks = blocks(&markdown);
    let mut run = 0;
    for (index, (language, block)) in blocks.iter().enumerate() {
        if *language == "yaml" {
            let name = block.lines().next().unwrap().strip_prefix("# ").unwrap();
            fs::write(directory.path().join(name), block).unwrap();
        }
        if *language != "sh" {
            continue;
        }
        let expected = blocks.get(index + 1).filter(|(language, _)| *language == "text").map(|(_, text)| text);
        for line in block.lines() {
            run += 1;
            let mut command = std::process::Command::new("sh");
            command.args(["-c", line]).env_clear().env("PATH", &path).current_dir(directory.path());
            let output = output(&mut command);
            let printed = format!("{}{}", text(&output.stdout), text(&output.stderr));
            match expected {
                Some(expected) => assert_eq!(printed.trim_end(), expected.trim_end(), "{line}"),
                None => assert!(output.status.success(), "{line}: {printed}"),
            }
        }
    }
    assert!(run >= 8, "only {run} commands were found");
}

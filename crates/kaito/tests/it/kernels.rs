//! `--kernels` and `--compute`: what computes, what it says of that, and what is refused.

use kaito_testing::process::{Serving, output, output_with_input, text};
use serde_json::Value;

use crate::program::kaito;

const GGUF: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/gguf/fixtures/models/llama-k.gguf");

/// What a chat of one short answer says where it fails.
fn refusal(arguments: &[&str]) -> String {
    let output = output_with_input(&mut kaito(&[&["chat", "--max-new-tokens", "1"], arguments].concat()), "Hi\n");
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stderr)
}

fn instruction_set(kernels: &str) -> Value {
    let devices = output(kaito(&["devices", "--json"]).env("KAITO_KERNELS", kernels));
    let devices: Value = serde_json::from_slice(&devices.stdout).unwrap();
    devices[0]["instruction_set"].clone()
}

#[test]
fn a_level_that_this_machine_lacks_is_refused() {
    let foreign = if cfg!(target_arch = "aarch64") { "avx2" } else { "neon" };
    let refusal = refusal(&["--kernels", foreign]);
    assert!(refusal.contains(&format!("this machine cannot run {foreign} kernels, only ")), "{refusal}");
    assert!(refusal.trim_end().ends_with("portable"), "{refusal}");
    assert_eq!(instruction_set("portable"), "portable");
    for (kernels, part) in [(foreign, "this machine cannot run"), ("sse9", "no kernels are called \"sse9\"")] {
        let output = output(kaito(&["devices"]).env("KAITO_KERNELS", kernels));
        let error = text(&output.stderr);
        assert!(!output.status.success() && error.contains("KAITO_KERNELS") && error.contains(part), "{error}");
    }
}

#[test]
fn the_server_says_how_it_computes() {
    for (arguments, activations, kernels) in [
        (&["--kernels", "portable", "--compute", "bf16"][..], "bf16", Some("portable")),
        (&["--kernels", "portable", "--dtype", "f32"], "f32", Some("portable")),
        (&["--compute", "exact"], "f32", None),
        (&[GGUF, "--kernels", "portable"], "f32", Some("portable")),
        (&[GGUF, "--kernels", "portable", "--compute", "int8"], "int8", Some("portable")),
        (&[GGUF, "--compute", "exact"], "f32", None),
    ] {
        let kernels = kernels.map(Value::from).unwrap_or_else(|| {
            let devices = output(&mut kaito(&["devices", "--json"]));
            serde_json::from_slice::<Value>(&devices.stdout).unwrap()[0]["instruction_set"].clone()
        });
        let kernels = kernels.as_str().unwrap();
        let serving = Serving::start(&mut kaito(&[&["serve", "--port", "0"], arguments].concat()));
        let line = format!("arithmetic  activations in {activations}, {kernels} kernels");
        assert!(serving.summary.contains(&line), "{line}: {}", serving.summary);
        let body = r#"{"prompt":"What is a workspace?","max_new_tokens":4}"#;
        assert_eq!(serving.post("/chat", body).0, 200);
        assert!(serving.terminate().success());
    }
}

#[test]
fn roundings_that_do_not_fit_the_weights_are_refused() {
    for (arguments, part) in [
        (&["--dtype", "f32", "--compute", "bf16"][..], "products with weights in f32 are always exact"),
        (&["--compute", "int8"], "int8 needs weights in the blocks of a GGUF file"),
        (&[GGUF, "--compute", "bf16"], "are exact or in int8, not in bf16"),
    ] {
        let refusal = refusal(arguments);
        assert!(refusal.contains(part), "{refusal}");
    }
}

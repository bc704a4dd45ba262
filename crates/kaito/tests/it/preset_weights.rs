//! Weights of the true shape of every preset, as files without contents, pass for that preset and for no other.

#[path = "../../../random-checkpoint/src/plan.rs"]
#[allow(dead_code, reason = "the values of tensors don't matter here")]
mod plan;

use std::{
    fs::{self, File},
    io::Write,
};

use kaito_engine::{
    KvDType, devices,
    testing::{CPU_PAGE_SIZE, STEP_SCORES, bytes_per_token},
};
use kaito_image::{Expected, Model};
use kaito_model::family;
use kaito_presets::{Cut, DType, FURTHER_LOGITS_ON_CPUS, PAGE_TOKENS, PRESETS, Precision, Preset, estimate};
use kaito_testing::files::tiny_model;
use serde_json::{Map, json};

/// A model's directory whose file of weights is nothing but a header and a hole.
fn hollow(preset: &Preset) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let mut header = Map::new();
    let mut end = 0;
    let dtype = if preset.dtype == DType::F16 { "F16" } else { "BF16" };
    for tensor in plan::hugging_face(&preset.shape) {
        let start = end;
        end += (tensor.elements() * preset.dtype.size()) as u64;
        header.insert(tensor.name, json!({ "dtype": dtype, "shape": tensor.shape, "data_offsets": [start, end] }));
    }
    let header = serde_json::to_vec(&header).unwrap();
    let mut file = File::create(at.join("model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(&header).unwrap();
    file.set_len(8 + header.len() as u64 + end).unwrap();
    fs::write(at.join("config.json"), preset.config_json().to_string()).unwrap();
    let fixture = tiny_model();
    for name in ["tokenizer.json", "tokenizer.model", "tokenizer_config.json"] {
        if let Ok(content) = fs::read(fixture.join(name)) {
            fs::write(at.join(name), content).unwrap();
        }
    }
    directory
}

#[test]
fn a_presets_own_weights_pass_and_those_of_others_do_not() {
    for preset in PRESETS {
        let directory = hollow(preset);
        let model = Model::check(directory.path(), &Expected::Preset(preset)).unwrap();
        assert_eq!(model.parameters, preset.shape.parameters(), "{}", preset.name);
        assert_eq!(model.dtype, preset.dtype.to_string(), "{}", preset.name);
        // A chat model has the shape of the one that it was tuned from: no number tells them apart.
        let other = PRESETS.iter().find(|other| other.shape.parameters() != preset.shape.parameters()).unwrap();
        let error = Model::check(directory.path(), &Expected::Preset(other)).unwrap_err().to_string();
        let parts = [format!("does not hold {}", other.name), "it looks like".to_owned(), preset.name.to_owned()];
        for part in parts {
            assert!(error.contains(&part), "{}: {error}", preset.name);
        }
    }
}

/// The planner counts for GPUs from a preset's shape, the server from the file that it has loaded.
#[test]
fn the_planner_counts_the_rows_of_logits_of_the_server() {
    let (cpus, _) = &devices()[0];
    assert_eq!(FURTHER_LOGITS_ON_CPUS, (cpus.step_budget.drafts + STEP_SCORES) as u64);
}

#[test]
fn the_planner_and_the_server_count_the_same_kv_cache() {
    assert_eq!(CPU_PAGE_SIZE as u64, PAGE_TOKENS);
    for preset in PRESETS {
        let (config, _weights) = family::load(hollow(preset).path()).unwrap();
        for (server, planner) in [(KvDType::F32, Precision::F32), (KvDType::Bf16, Precision::Bf16)] {
            let tokens = 2048;
            let planned = estimate(&preset.shape, preset.dtype.into(), planner, tokens, 1, Cut::Layers(1));
            let served = bytes_per_token(&config, server) * tokens;
            assert_eq!(served, planned.kv_cache, "{} in {planner}", preset.name);
        }
    }
}

//! Adapters, on the tiny models of the parity fixtures: what PEFT answers with them, alone, combined, and in one batch.
//!
//! `tests/parity/adapters.py` makes the adapters and asks PEFT.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "adapters/decoded.rs"]
mod decoded;
#[path = "adapters/running.rs"]
mod running;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use kaito_model::{adapter::AdapterWeights, config::ModelConfig};

/// Every model that has adapters, of all families and layouts.
const MODELS: [&str; 8] = [
    "falcon-40b-type-bf16",
    "falcon-7b-type",
    "falcon-rw-type",
    "llama-grouped-sharded",
    "meta-llama-70b-type-2-shards",
    "meta-llama-7b-type",
    "mistral-window",
    "phi3-window",
];

/// How strongly each adapter counts in the combination of both, and the first one where it is weaker.
const STRENGTHS: [f32; 2] = [0.75, 1.0];

/// What an answer can be made with.
const VARIANTS: [&str; 5] = ["none", "one", "two", "weaker", "both"];

/// A prompt and what PEFT answers with each adapter.
#[derive(serde::Deserialize)]
struct Case {
    prompt: Vec<u32>,
    answers: std::collections::BTreeMap<String, Answer>,
}

#[derive(serde::Deserialize)]
struct Answer {
    /// The likeliest tokens.
    tokens: Vec<u32>,
    /// Every fourth of the logits behind the prompt.
    logits: Vec<f32>,
}

fn parity(part: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity").join(part)
}

fn model(name: &str) -> PathBuf {
    parity("fixtures").join(name)
}

fn adapter(name: &str, adapter: &str) -> PathBuf {
    parity("adapters").join(name).join(adapter)
}

fn cases(name: &str) -> Vec<Case> {
    serde_json::from_slice(&fs::read(parity("adapters").join(name).join("cases.json")).unwrap()).unwrap()
}

/// What a variant adds; nothing for the model alone.
fn weights(name: &str, variant: &str, config: &ModelConfig) -> Option<AdapterWeights> {
    let open = |part: &str| AdapterWeights::open(&adapter(name, part), config).unwrap();
    match variant {
        "none" => None,
        "weaker" => Some(open("one").scaled(STRENGTHS[0])),
        "both" => {
            let mut both = open("one").scaled(STRENGTHS[0]);
            both.add(open("two").scaled(STRENGTHS[1]));
            Some(both)
        }
        alone => Some(open(alone)),
    }
}

#[test]
fn every_adapter_is_checked() {
    let entries = parity("adapters").read_dir().unwrap();
    let found: BTreeSet<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(found, MODELS.map(str::to_owned).into());
    for name in MODELS {
        for case in cases(name) {
            assert_eq!(case.answers.len(), VARIANTS.len());
        }
    }
}

//! Checkpoints and configurations as various programs write them: each is read as transformers reads it, or refused by name.
//!
//! `fixtures/variants/make.py` asks transformers. Logits are compared, so that nothing small goes unseen.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "variants/changes.rs"]
mod changes;
#[path = "variants/refused.rs"]
mod refused;
#[path = "variants/safetensors_file.rs"]
mod safetensors_file;
#[path = "variants/same_model.rs"]
mod same_model;

use std::{
    fs,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::Arc,
};

use changes::{copy_of, edit, edit_config};
use kaito_engine::{
    DeviceErrorKind,
    testing::{CpuOperations, Decoder, Executor, ExecutorLimits, Packed, RopeTable, Span, StepInput, VariantKey},
};
use kaito_kernels::ThreadPool;
use kaito_model::{checkpoint::CheckpointError, config::ModelConfig, family, weights::ModelWeights};
use serde_json::{Map, Value, json};

/// Rounding of f32 between two orders of summation, for logits of about 5 after 600 keys.
const TOLERANCE: f32 = 1e-4;
const LENGTH: usize = 20;

#[derive(serde::Deserialize)]
struct Case {
    name: String,
    model: String,
    set: Map<String, Value>,
    drop: Vec<String>,
    length: usize,
    logits: Vec<f32>,
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/variants").join(name)
}

fn cases() -> Vec<Case> {
    serde_json::from_slice(&fs::read(fixture("cases.json")).unwrap()).unwrap()
}

/// The logits after a prompt, computed in one step.
fn logits(dir: &Path, length: usize) -> Result<Vec<f32>, CheckpointError> {
    let (config, weights) = family::load(dir)?;
    Ok(logits_of(config, weights, length))
}

fn logits_of(config: ModelConfig, weights: ModelWeights, length: usize) -> Vec<f32> {
    let (mut decoder, step) = prepared(config, weights, length, None);
    let ticket = decoder.submit(step).unwrap();
    decoder.collect(ticket).unwrap().logits().to_vec()
}

/// A model, and the step that computes a prompt.
fn prepared(
    config: ModelConfig,
    weights: ModelWeights,
    length: usize,
    adapter: Option<u32>,
) -> (Decoder<CpuOperations>, StepInput) {
    assert!(length <= config.max_position_embeddings);
    let tokens: Vec<u32> = (0..length).map(|i| ((7 * i + 3) % config.vocab_size) as u32).collect();
    let long = RopeTable::of(&config).and_then(|rope| rope.long_above()).is_some_and(|above| length > above);
    let variant = VariantKey { long, adapter, ..VariantKey::default() };
    let pages = length.div_ceil(16);
    let limits = ExecutorLimits {
        pages,
        page_size: 16,
        step_tokens: length,
        step_logits: 1,
        sequences: 1,
        sequence_pages: pages,
    };
    let operations = CpuOperations::new(Arc::new(ThreadPool::new(NonZeroUsize::MIN)), Packed::F32);
    let decoder = Decoder::new(operations, config, weights, limits).unwrap();
    let pages: Vec<u32> = (0..pages as u32).collect();
    let mut step = StepInput::with_room_for(&limits);
    step.push(&Span { tokens: &tokens, draft: &[], start: 0, pages: &pages, variant, logits: 1, states: false });
    (decoder, step)
}

fn difference(one: &[f32], other: &[f32]) -> f32 {
    assert_eq!(one.len(), other.len());
    one.iter().zip(other).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn an_adapter_that_cannot_be_applied_is_refused_and_the_next_step_computed() {
    let (config, weights) = family::load(&fixture("llama")).unwrap();
    let (mut decoder, step) = prepared(config.clone(), weights.clone(), 3, Some(7));
    let error = decoder.submit(step).unwrap_err();
    assert_eq!(error.kind, DeviceErrorKind::Unsupported);
    assert!(error.to_string().contains("adapter 7"), "{error}");
    let (_, step) = prepared(config, weights, 3, None);
    let ticket = decoder.submit(step).unwrap();
    assert!(decoder.collect(ticket).unwrap().logits().iter().all(|logit| logit.is_finite()));
}

#[test]
fn configurations_mean_what_they_mean_to_the_reference() {
    let mut wrong = Vec::new();
    for case in cases() {
        let dir = copy_of(&case.model);
        edit_config(dir.path(), |config| {
            config.extend(case.set.clone());
            config.retain(|key, _| !case.drop.contains(key));
        });
        match logits(dir.path(), case.length) {
            Ok(found) => {
                let difference = difference(&found, &case.logits);
                if difference > TOLERANCE {
                    wrong.push(format!("{}: the logits are off by {difference}", case.name));
                }
            }
            Err(error) => wrong.push(format!("{}: {error}", case.name)),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Beyond the length that it says, the base of dynamic positions grows: the model ends there.
#[test]
fn dynamic_positions_end_at_the_trained_length() {
    let dir = copy_of("llama");
    let fields = json!({ "rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 48 });
    edit_config(dir.path(), |config| drop(config.insert("rope_parameters".into(), fields)));
    assert_eq!(family::load(dir.path()).unwrap().0.max_position_embeddings, 48);
    let plain = cases().into_iter().find(|case| case.name == "llama").unwrap();
    assert!(difference(&logits(dir.path(), LENGTH).unwrap(), &plain.logits) <= TOLERANCE);
}

/// A factor of the scores is a factor of the queries: with a power of two, to the bit.
#[test]
fn the_specification_scales_the_scores() {
    let dir = copy_of("llama");
    let (mut config, weights) = family::load(dir.path()).unwrap();
    config.layer.attention.scale *= 4.0;
    let scaled = logits_of(config, weights, LENGTH);
    let is_query = |name: &str| name.ends_with("q_proj.weight");
    edit(dir.path(), |tensors| {
        for tensor in tensors.0.iter_mut().filter(|tensor| is_query(&tensor.name)) {
            assert_eq!(tensor.dtype, "BF16");
            // The upper half of an f32.
            let times_four = |bytes: &[u8; 2]| {
                let [_, _, upper @ ..] = (4.0 * f32::from_le_bytes([0, 0, bytes[0], bytes[1]])).to_le_bytes();
                upper
            };
            tensor.bytes = tensor.bytes.as_chunks().0.iter().flat_map(times_four).collect();
        }
    });
    assert_eq!(scaled, logits(dir.path(), LENGTH).unwrap());
    let plain = cases().into_iter().find(|case| case.name == "llama").unwrap();
    assert!(difference(&scaled, &plain.logits) > TOLERANCE);
}

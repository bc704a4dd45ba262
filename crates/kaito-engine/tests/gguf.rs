//! Models in GGUF files that the Python package `gguf` wrote (`tests/gguf/make.py`): logits of the reference, and text.
#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test they are failures of the test")]

use std::{
    fs,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::Arc,
};

use kaito_engine::{
    Compute, ComputeChoice, DType, GenerateOptions, LanguageModel, LoadOptions, Quantization, Request, StreamEvent,
    testing::{CpuOperations, Decoder, Executor, ExecutorLimits, Packed, RopeTable, Span, StepInput, VariantKey},
};
use kaito_kernels::ThreadPool;
use kaito_model::{
    config::{LinearKind, ModelConfig},
    family,
    weights::{ModelWeights, Weight},
};
use serde_json::json;

/// Rounding of f32 beside a reference that computes in 32 or 64 bits.
const TOLERANCE: f32 = 1e-4;

#[derive(serde::Deserialize)]
struct Case {
    file: String,
    types: String,
    length: usize,
    logits: Vec<f32>,
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/gguf/fixtures/models").join(name)
}

fn cases() -> Vec<Case> {
    serde_json::from_slice(&fs::read(fixture("models.json")).unwrap()).unwrap()
}

/// Token `i` of a prompt, as in `make.py`.
fn token(i: usize, config: &ModelConfig) -> u32 {
    ((7 * i + 3) % config.vocab_size) as u32
}

/// The logits after a prompt of `length` tokens whose last `alone` tokens are computed one by one.
fn logits(config: &ModelConfig, weights: &ModelWeights, length: usize, alone: usize, threads: usize) -> Vec<f32> {
    logits_of(Packed::F32, config, weights, length, alone, threads)
}

/// The same with weights that were packed like this.
fn logits_of(
    packed: Packed,
    config: &ModelConfig,
    weights: &ModelWeights,
    length: usize,
    alone: usize,
    threads: usize,
) -> Vec<f32> {
    let long = RopeTable::of(config).and_then(|rope| rope.long_above()).is_some_and(|above| length > above);
    let variant = VariantKey { long, ..VariantKey::default() };
    let count = length.div_ceil(16);
    let limits = ExecutorLimits {
        pages: count,
        page_size: 16,
        step_tokens: length,
        step_logits: 1,
        sequences: 1,
        sequence_pages: count,
    };
    let threads = Arc::new(ThreadPool::new(NonZeroUsize::new(threads).unwrap()));
    let operations = CpuOperations::new(threads, packed);
    let mut decoder = Decoder::new(operations, config.clone(), weights.clone(), limits).unwrap();
    let pages: Vec<u32> = (0..count as u32).collect();
    let tokens: Vec<u32> = (0..length).map(|i| token(i, config)).collect();
    let mut start = 0;
    let mut found = Vec::new();
    for end in length - alone..=length {
        if end == start {
            continue;
        }
        let mut step = StepInput::with_room_for(&limits);
        let tokens = &tokens[start..end];
        step.push(&Span { tokens, draft: &[], start, pages: &pages, variant, logits: 1, states: false });
        let ticket = decoder.submit(step).unwrap();
        found = decoder.collect(ticket).unwrap().logits().to_vec();
        start = end;
    }
    found
}

#[test]
fn every_architecture_and_every_type_gives_the_logits_of_the_reference() {
    let mut wrong = Vec::new();
    for case in cases() {
        let (config, weights) = family::load(&fixture(&case.file)).unwrap();
        let types: Vec<String> = weights.precisions().into_iter().map(|name| name.to_uppercase()).collect();
        assert_eq!(types.join(", "), case.types, "{}", case.file);
        let found = logits(&config, &weights, case.length, 0, 1);
        let off = found.iter().zip(&case.logits).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        if found.len() != case.logits.len() || off.is_nan() || off > TOLERANCE {
            wrong.push(format!("{}: the logits are off by {off}", case.file));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The same weights in f32, with memory of their own.
fn dequantized(weights: &ModelWeights) -> ModelWeights {
    let pool = ThreadPool::new(NonZeroUsize::MIN);
    let tied = weights.is_tied();
    let mut plain = weights.clone();
    for (_, linear) in plain.linears_mut() {
        for part in &mut linear.parts {
            if let Weight::Blocks(blocks) = &part.weight {
                part.weight = blocks.dequantized(DType::F32, &pool).unwrap().into();
            }
        }
    }
    if tied {
        plain.head = plain.embedding.clone();
    }
    plain
}

#[test]
fn bits_are_those_of_the_dequantised_weights_whatever_is_computed_together() {
    for name in ["llama-k.gguf", "llama-q4_0.gguf", "llama-q5_1.gguf", "phi3-q8_0.gguf", "falcon-40b.gguf"] {
        let (config, weights) = family::load(&fixture(name)).unwrap();
        assert!(!weights.block_formats().is_empty(), "{name}");
        let expected = logits(&config, &dequantized(&weights), 20, 0, 1);
        for (alone, threads) in [(0, 1), (0, 2), (3, 1), (20, 2)] {
            assert_eq!(
                logits(&config, &weights, 20, alone, threads),
                expected,
                "{name}: {alone} alone, {threads} threads"
            );
        }
    }
}

/// The same weights, those of products repacked for integers.
fn repacked(weights: &ModelWeights) -> ModelWeights {
    let pool = ThreadPool::new(NonZeroUsize::MIN);
    let mut repacked = weights.clone();
    for (kind, linear) in repacked.linears_mut() {
        for part in linear.parts.iter_mut().filter(|_| kind != LinearKind::Embedding) {
            if let Weight::Blocks(blocks) = &part.weight {
                part.weight = Weight::Quantized(blocks.repacked(&pool).unwrap());
            }
        }
    }
    repacked
}

#[test]
fn in_int8_bits_do_not_depend_on_what_is_computed_together_and_logits_are_off_by_little() {
    let packed = Packed { compute: Compute::Int8, ..Packed::F32 };
    for case in cases().iter().filter(|case| !case.types.is_empty()) {
        let (config, weights) = family::load(&fixture(&case.file)).unwrap();
        if weights.block_formats().is_empty() {
            continue;
        }
        let repacked = repacked(&weights);
        assert_eq!(repacked.block_formats(), weights.block_formats(), "{}", case.file);
        let expected = logits_of(packed, &config, &repacked, case.length, 0, 1);
        for (alone, threads) in [(0, 2), (3, 1), (case.length, 2)] {
            let found = logits_of(packed, &config, &repacked, case.length, alone, threads);
            assert_eq!(found, expected, "{}: {alone} alone, {threads} threads", case.file);
        }
        // Half a percent for each of some nine products behind each other: 1.5%, if their errors are independent. Twice that is allowed.
        let size = (case.logits.iter().map(|x| x * x).sum::<f32>() / case.logits.len() as f32).sqrt();
        let errors = expected.iter().zip(&case.logits).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
        let error = (errors / case.logits.len() as f32).sqrt() / size;
        assert!((1e-4..0.03).contains(&error), "{}: logits are off by {error} of their size", case.file);
    }
}

fn load(path: &Path, options: LoadOptions) -> Result<LanguageModel, String> {
    let options = LoadOptions { kv_cache_memory: Some(1 << 20), threads: NonZeroUsize::new(1), ..options };
    LanguageModel::load(path, &options, &|_| {}).map_err(|error| error.to_string())
}

#[tokio::test]
async fn a_file_or_the_directory_around_it_serves_text() {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(fixture("llama-k.gguf"), folder.path().join("m.gguf")).unwrap();
    let mut texts = Vec::new();
    for (path, compute, activations) in [
        (folder.path().to_owned(), ComputeChoice::Exact, "f32"),
        (folder.path().join("m.gguf"), ComputeChoice::Exact, "f32"),
        (folder.path().join("m.gguf"), ComputeChoice::Int8, "int8"),
    ] {
        let model = load(&path, LoadOptions { compute, ..LoadOptions::default() }).unwrap();
        let info = model.info();
        assert_eq!((info.precision().as_str(), info.activations()), ("Q4_K", activations));
        assert_eq!(info.precisions(), "Q4_K, Q3_K, Q5_K, Q2_K, Q6_K, Q8_0");
        let bytes: u64 = fs::metadata(folder.path().join("m.gguf")).unwrap().len();
        if compute == ComputeChoice::Exact {
            assert!(info.weights_bytes < bytes, "{} of {bytes}: the weights stay as they are", info.weights_bytes);
        }
        let options = json!({"do_sample": false, "max_new_tokens": 8});
        let options = GenerateOptions::from_json(options.as_object().unwrap()).unwrap();
        let mut stream = model.generate(Request { prompt: "a b c".into(), options, ..Request::default() }).unwrap();
        while let Some(event) = stream.next().await {
            if let StreamEvent::Finished(output) = event.unwrap() {
                texts.push(output.sequences[0].tokens.clone());
            }
        }
    }
    assert!(texts.len() == 3 && !texts[0].is_empty() && texts[0] == texts[1], "{texts:?}");
    assert!(!texts[2].is_empty());
}

#[test]
fn weights_may_get_other_types_while_they_load() {
    let path = fixture("llama-k.gguf");
    let exact = LoadOptions { compute: ComputeChoice::Exact, ..LoadOptions::default() };
    let plain = load(&path, exact).unwrap().info().clone();
    let int8 = load(&path, LoadOptions { compute: ComputeChoice::Int8, ..LoadOptions::default() }).unwrap();
    assert_eq!((int8.info().precisions(), int8.info().parameters), (plain.precisions(), plain.parameters));
    let options = LoadOptions { dtype: Some(DType::F32), ..LoadOptions::default() };
    assert_eq!(load(&path, options).unwrap().info().activations(), "f32");
    for (compute, dtype, refusal) in [
        (ComputeChoice::Bf16, None, "exact or in int8, not in bf16"),
        (ComputeChoice::Int8, Some(DType::F32), "int8 needs weights in the blocks of a GGUF file"),
    ] {
        let error = load(&path, LoadOptions { compute, dtype, ..LoadOptions::default() }).err().unwrap();
        assert!(error.contains(refusal), "{error}");
    }
    let narrow =
        load(&path, LoadOptions { dtype: Some(DType::Bf16), ..LoadOptions::default() }).unwrap().info().clone();
    assert_eq!((narrow.precisions().as_str(), narrow.parameters), ("bf16", plain.parameters));
    assert!(narrow.weights_bytes > 2 * plain.weights_bytes);
    for quantization in [Quantization::Int8, Quantization::Int4] {
        let options = LoadOptions { quantize: Some(quantization), ..LoadOptions::default() };
        let info = load(&path, options).unwrap().info().clone();
        assert_eq!((info.precisions(), info.parameters), (quantization.to_string(), plain.parameters));
    }
}

#[test]
fn a_part_that_is_missing_is_named() {
    let folder = tempfile::tempdir().unwrap();
    for part in [1, 3] {
        let name = format!("llama-split-{part:05}-of-00003.gguf");
        fs::copy(fixture(&name), folder.path().join(name)).unwrap();
    }
    let error = load(folder.path(), LoadOptions::default()).err().unwrap();
    assert!(error.contains("llama-split-00002-of-00003.gguf is missing, one of the 3 parts"), "{error}");
    let second = folder.path().join("llama-split-00002-of-00003.gguf");
    fs::copy(fixture("llama-split-00003-of-00003.gguf"), second).unwrap();
    let error = load(folder.path(), LoadOptions::default()).err().unwrap();
    assert!(error.contains("split.no is 2, but by its name and those beside it, it should be 1"), "{error}");
}

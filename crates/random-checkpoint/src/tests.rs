#![allow(clippy::unwrap_used)]

use std::{fs, path::Path};

use indicatif::ProgressBar;
use kaito_image::{Expected, Model};
use kaito_model::{
    family,
    tokenizer::{DecodeOptions, Special, Tokenizer},
};
use kaito_presets::{DType, PRESETS, Preset, Shape};

use crate::{Format, Job, meta, plan, torch};

/// The preset's kind of model, small: few and narrow heads, but the vocabulary and the factors of the true one.
fn small(preset: &Preset) -> Preset {
    let shape = preset.shape;
    let ranks = preset.workload.ranks as usize;
    let group = (shape.num_heads / shape.num_kv_heads).min(4);
    let num_kv_heads = if shape.num_kv_heads == 1 { 1 } else { 2 * ranks };
    let head_dim = if shape.rope.long.is_some() { shape.head_dim } else { 16 };
    let hidden_size = group * num_kv_heads * head_dim;
    let intermediate_size = match (shape.family.model_type, ranks) {
        // Falcon's files leave it to be assumed; Meta's give a rule, that of 70B with a multiplier.
        ("falcon", _) => 4 * hidden_size,
        ("llama", 8) => 4096,
        _ => (8 * hidden_size / 3).next_multiple_of(256),
    };
    let num_heads = group * num_kv_heads;
    let shape = Shape { hidden_size, num_layers: 2, num_heads, num_kv_heads, head_dim, intermediate_size, ..shape };
    Preset { shape, ..*preset }
}

fn write(preset: &Preset, dir: &Path, format: Format, seed: u64) {
    let progress = ProgressBar::hidden();
    Job { preset, dir, seed, progress: &progress }.write(format).unwrap();
    assert_eq!(progress.position(), progress.length().unwrap());
}

#[test]
fn every_preset_loads_in_its_published_layout() {
    for preset in PRESETS {
        let small = small(preset);
        let dir = tempfile::tempdir().unwrap();
        write(&small, dir.path(), Format::Safetensors, 1);
        let (config, weights) = family::load(dir.path()).unwrap();
        let shape = small.shape;
        assert_eq!(
            (config.hidden_size, config.num_layers, config.vocab_size, config.layer),
            (shape.hidden_size, shape.num_layers, shape.vocab_size, shape.layer()),
            "{}",
            preset.name
        );
        assert_eq!(weights.layers.len(), 2);
        // Vocabularies differ by family; opening one takes seconds without optimisation.
        if ["llama-2-7b", "falcon-7b", "phi-3-mini-4k-instruct"].contains(&preset.name) {
            check_tokenizer(dir.path(), &shape);
        }
    }
}

#[test]
fn metas_layout_loads_in_as_many_shards_as_published() {
    for (name, ranks) in [("llama-2-7b", 1), ("llama-2-13b-chat", 2), ("llama-2-70b", 8)] {
        let small = small(kaito_presets::find(name).unwrap());
        let dir = tempfile::tempdir().unwrap();
        write(&small, dir.path(), Format::Meta, 1);
        let (config, weights) = family::load(dir.path()).unwrap();
        assert_eq!(config.layer.mlp.width, small.shape.intermediate_size, "{name}");
        assert_eq!(weights.embedding.parts.len(), ranks, "{name}");
        assert_eq!(weights.final_norm.weight.len(), small.shape.hidden_size, "{name}");
        let [first, .., last] = weights.layers[0].qkv.parts.as_slice() else { unreachable!() };
        assert_ne!(first.weight.plain().unwrap().to_f32()[..8], last.weight.plain().unwrap().to_f32()[..8], "{name}");
        if ranks == 1 {
            check_tokenizer(dir.path(), &small.shape);
        }
    }
}

/// Meta's files say less than the hub's: neither the context nor the vocabulary.
#[test]
fn metas_layout_passes_for_its_preset_in_its_true_size() {
    for (name, weights) in [("llama-2-7b", 1), ("llama-2-13b-chat", 2), ("llama-2-70b", 8)] {
        let preset = kaito_presets::find(name).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let job = Job { preset, dir: dir.path(), seed: 0, progress: &ProgressBar::hidden() };
        meta::write_beside(&job).unwrap();
        for rank in 0..weights {
            let tensors = plan::meta(&preset.shape, weights);
            let size = |tensor: &plan::Planned| (tensor.elements() * preset.dtype.size()) as u64;
            let stem = format!("consolidated.{rank:02}");
            torch::write_with(&job, &stem, &tensors, |out, tensor| out.leave_hole(size(tensor))).unwrap();
        }
        let model = Model::check(dir.path(), &Expected::Preset(preset)).unwrap();
        assert_eq!(model.parameters, preset.shape.parameters(), "{name}");
        assert_eq!((model.weights.len(), model.dtype), (weights, preset.dtype.to_string()), "{name}");
        let companions: Vec<_> = model.companions.iter().map(|file| file.name.as_str()).collect();
        assert_eq!(companions, ["params.json", "tokenizer.model"], "{name}");
    }
}

fn check_tokenizer(dir: &Path, shape: &Shape) {
    let tokenizer = Tokenizer::open(dir).unwrap();
    assert_eq!(tokenizer.vocab_size(), shape.vocab_size);
    assert_eq!(tokenizer.bos_token_id(), Some(shape.bos_token_id));
    assert_eq!(tokenizer.eos_token_id(), shape.eos_token_ids.first().copied());
    let text = "Hello world, caf\u{e9} \u{1f600}!";
    let ids = tokenizer.encode(text, Special::Skip).unwrap();
    assert!(ids.len() < text.len(), "no piece was merged: {ids:?}");
    let options = DecodeOptions { skip_special_tokens: true, clean_up_tokenization_spaces: false };
    assert_eq!(tokenizer.decode(&ids, options), text);
}

/// Matrices have variance 1 / columns, so that what they map keeps its size; norms lie around 1.
#[test]
fn elements_have_the_planned_spread_in_every_type() {
    let preset = small(kaito_presets::find("llama-2-7b").unwrap());
    let mut all = Vec::new();
    for dtype in [DType::F32, DType::Bf16, DType::F16] {
        let dir = tempfile::tempdir().unwrap();
        write(&Preset { dtype, ..preset }, dir.path(), Format::Safetensors, 7);
        let (_, weights) = family::load(dir.path()).unwrap();
        let matrix = weights.head.parts[0].weight.plain().unwrap().to_f32();
        let variance = matrix.iter().map(|w| f64::from(w * w)).sum::<f64>() / matrix.len() as f64;
        let expected = 1.0 / preset.shape.hidden_size as f64;
        assert!((variance / expected - 1.0).abs() < 0.01, "{dtype}: {variance}, expected {expected}");
        assert!(weights.layers[1].attention_norm.weight.iter().all(|w| (0.89..1.11).contains(w)));
        all.push(matrix);
    }
    // One seed draws the same numbers whatever the type: they differ by rounding alone.
    let [exact, bf16, f16] = all.try_into().unwrap();
    let differs = |other: &[f32], bits: i32| {
        exact.iter().zip(other).any(|(a, b)| (a - b).abs() > a.abs() * 2f32.powi(-bits) + 1e-7)
    };
    assert!(!differs(&bf16, 8) && !differs(&f16, 11));
}

#[test]
fn a_seed_gives_the_same_files_and_another_seed_others() {
    let preset = small(kaito_presets::find("mistral-7b").unwrap());
    let write = |seed| {
        let dir = tempfile::tempdir().unwrap();
        write(&preset, dir.path(), Format::Safetensors, seed);
        fs::read(dir.path().join("model.safetensors")).unwrap()
    };
    assert_eq!(write(3), write(3));
    assert_ne!(write(3), write(4));
}

/// A true shape's files: as many elements as published, and no shard of more than 5 GB.
#[test]
fn plans_have_the_published_number_of_parameters() {
    for preset in PRESETS {
        let planned: usize = plan::hugging_face(&preset.shape).iter().map(plan::Planned::elements).sum();
        assert_eq!(planned as u64, preset.shape.parameters(), "{}", preset.name);
    }
}

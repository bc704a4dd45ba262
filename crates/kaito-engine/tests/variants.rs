//! Checkpoints and configurations as various programs write them: each is read as transformers reads it, or refused by name.
//!
//! `fixtures/variants/make.py` asks transformers. Logits are compared, so that nothing small goes unseen.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "variants/safetensors_file.rs"]
mod safetensors_file;

use std::{
    fs,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::Arc,
};

use kaito_engine::{
    KvDType,
    decoder::Decoder,
    device::{DeviceErrorKind, cpu::CpuOperations},
    executor::{Executor, ExecutorLimits, Span, StepInput},
    kv_cache::VariantKey,
    rope::RopeTable,
};
use kaito_kernels::ThreadPool;
use kaito_model::{checkpoint::CheckpointError, config::ModelConfig, family, weights::ModelWeights};
use safetensors_file::{Entry, Tensors};
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

/// A copy of a model, to be changed.
fn copy_of(model: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture(model)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    dir
}

fn edit_config(dir: &Path, edit: impl FnOnce(&mut Map<String, Value>)) {
    let path = dir.join("config.json");
    let mut config: Map<String, Value> = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut config);
    fs::write(path, serde_json::to_vec(&config).unwrap()).unwrap();
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
    let variant = VariantKey { long, adapter };
    let pages = length.div_ceil(16);
    let limits = ExecutorLimits {
        pages,
        page_size: 16,
        step_tokens: length,
        step_logits: 1,
        sequences: 1,
        sequence_pages: pages,
    };
    let operations = CpuOperations::new(Arc::new(ThreadPool::new(NonZeroUsize::MIN)), KvDType::F32);
    let decoder = Decoder::new(operations, config, weights, limits).unwrap();
    let pages: Vec<u32> = (0..pages as u32).collect();
    let mut step = StepInput::with_room_for(&limits);
    step.push(&Span { tokens: &tokens, draft: &[], start: 0, pages: &pages, variant, logits: 1 });
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

/// A change to the weights or files of a model that changes nothing of what it computes.
struct SameModel {
    name: &'static str,
    /// The case that it is to equal.
    model: &'static str,
    change: fn(&Path),
}

fn edit(dir: &Path, edit: impl FnOnce(&mut Tensors)) {
    let path = dir.join("model.safetensors");
    let mut tensors = Tensors::read(&path);
    edit(&mut tensors);
    tensors.write(&path);
}

fn renamed(dir: &Path, rename: impl Fn(&str) -> String) {
    edit(dir, |tensors| tensors.0.iter_mut().for_each(|tensor| tensor.name = rename(&tensor.name)));
}

/// Adds another name of the embedding.
fn with_head(tensors: &mut Tensors, embedding: &str, head: &str) {
    let mut tensor = tensors.get(embedding).clone();
    tensor.name = head.to_owned();
    tensors.0.push(tensor);
}

/// Cuts the weights into two shards, the first with the tensors that `first` says, and returns the index.
fn shard(dir: &Path, first: impl Fn(&str) -> bool) -> Value {
    let tensors = Tensors::read(&dir.join("model.safetensors"));
    fs::remove_file(dir.join("model.safetensors")).unwrap();
    let (one, two): (Vec<Entry>, Vec<Entry>) = tensors.0.into_iter().partition(|tensor| first(&tensor.name));
    let mut map = Map::new();
    for (file, entries) in [(ONE, one), (TWO, two)] {
        map.extend(entries.iter().map(|entry| (entry.name.clone(), json!(file))));
        Tensors(entries).write(&dir.join(file));
    }
    json!({ "metadata": { "total_size": 1 }, "weight_map": map })
}

fn write_index(dir: &Path, index: &Value) {
    fs::write(dir.join(INDEX), serde_json::to_vec(index).unwrap()).unwrap();
}

fn replace_in(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{text} has no {from}");
    fs::write(path, text.replacen(from, to, 1)).unwrap();
}

const INDEX: &str = "model.safetensors.index.json";
const ONE: &str = "model-00001-of-00002.safetensors";
const TWO: &str = "model-00002-of-00002.safetensors";
const LLAMA_EMBEDDING: &str = "model.embed_tokens.weight";
const FALCON_EMBEDDING: &str = "transformer.word_embeddings.weight";
const NORM: &str = "model.norm.weight";

const SAME: &[SameModel] = &[
    SameModel {
        name: "tied, both names stored",
        model: "llama-tied",
        change: |dir| edit(dir, |tensors| with_head(tensors, LLAMA_EMBEDDING, "lm_head.weight")),
    },
    SameModel {
        name: "tied, the head's name alone",
        model: "llama-tied",
        change: |dir| renamed(dir, |name| name.replace(LLAMA_EMBEDDING, "lm_head.weight")),
    },
    SameModel {
        name: "tied by default, both names stored",
        model: "falcon",
        change: |dir| edit(dir, |tensors| with_head(tensors, FALCON_EMBEDDING, "lm_head.weight")),
    },
    SameModel {
        name: "tied by default, the head's name alone",
        model: "falcon",
        change: |dir| renamed(dir, |name| name.replace(FALCON_EMBEDDING, "lm_head.weight")),
    },
    SameModel {
        name: "a tied model saved without its head",
        model: "llama-tied",
        change: |dir| {
            renamed(dir, |name| name.replacen("model.", "", 1));
            edit_config(dir, |config| drop(config.insert("architectures".into(), json!(["LlamaModel"]))));
        },
    },
    SameModel { name: "no prefix", model: "llama", change: |dir| renamed(dir, |name| name.replacen("model.", "", 1)) },
    SameModel {
        name: "no prefix, tied by default, the head's name alone",
        model: "falcon",
        change: |dir| {
            renamed(dir, |name| name.replace(FALCON_EMBEDDING, "lm_head.weight").replacen("transformer.", "", 1));
        },
    },
    SameModel {
        name: "a wrapper's prefix",
        model: "llama",
        change: |dir| renamed(dir, |name| format!("module.{name}")),
    },
    SameModel {
        name: "a compiled model's prefix, tied",
        model: "falcon",
        change: |dir| renamed(dir, |name| format!("_orig_mod.{name}")),
    },
    SameModel {
        name: "a doubled prefix",
        model: "llama",
        change: |dir| renamed(dir, |name| name.replacen("model.", "model.model.", 1)),
    },
    SameModel {
        name: "buffers, and parameters that nobody needs",
        model: "llama",
        change: |dir| {
            edit(dir, |tensors| {
                for name in [
                    "model.layers.0.self_attn.rotary_emb.inv_freq",
                    "model.layers.7.mlp.up_proj.weight",
                    "lm_head.bias",
                ] {
                    tensors.0.push(Entry::zeros(name, "F32", &[4]));
                }
                tensors.0.push(Entry::zeros("quantised", "F8_E4M3", &[3, 2]));
                tensors.0.push(Entry::zeros("exponents", "F8_E8M0", &[3]));
                tensors.0.push(Entry::zeros("empty", "F16", &[0, 3]));
                tensors.0.push(Entry::zeros("also empty", "BF16", &[2, 0]));
                tensors.0.push(Entry::zeros("scalar", "I64", &[]));
            });
        },
    },
    SameModel { name: "no metadata in the header", model: "llama", change: |dir| edit(dir, |_| ()) },
    SameModel {
        name: "index: lists a buffer that no file holds",
        model: "llama",
        change: |dir| {
            let mut index = shard(dir, |name| name.contains("layers.0"));
            index["weight_map"]["model.layers.0.self_attn.rotary_emb.inv_freq"] = json!(ONE);
            write_index(dir, &index);
        },
    },
    SameModel {
        name: "index: places tensors in the wrong file",
        model: "llama",
        change: |dir| {
            let mut index = shard(dir, |name| name.contains("layers.0"));
            index["weight_map"][NORM] = json!(ONE);
            index["weight_map"]["model.layers.0.mlp.up_proj.weight"] = json!(TWO);
            write_index(dir, &index);
        },
    },
    SameModel {
        name: "index: does not list a tensor",
        model: "llama",
        change: |dir| {
            let mut index = shard(dir, |name| name.contains("layers.0"));
            index["weight_map"].as_object_mut().unwrap().remove(NORM);
            write_index(dir, &index);
        },
    },
    SameModel {
        name: "index: a tensor in two files, the first counts",
        model: "llama",
        change: |dir| {
            let index = shard(dir, |name| name == NORM);
            let mut two = Tensors::read(&dir.join(TWO));
            two.0.push(Entry::zeros(NORM, "F32", &[99]));
            two.write(&dir.join(TWO));
            write_index(dir, &index);
        },
    },
    SameModel {
        name: "index: a tensor in two files, the second counts",
        model: "llama",
        change: |dir| {
            let index = shard(dir, |name| name != NORM);
            let mut one = Tensors::read(&dir.join(ONE));
            one.0.push(Entry::zeros(NORM, "BF16", &[32]));
            one.write(&dir.join(ONE));
            write_index(dir, &index);
        },
    },
    SameModel {
        name: "index: an equal tensor in two files, and it lists neither",
        model: "llama",
        change: |dir| {
            let mut index = shard(dir, |name| name != NORM);
            let mut one = Tensors::read(&dir.join(ONE));
            one.0.push(Tensors::read(&dir.join(TWO)).get(NORM).clone());
            one.write(&dir.join(ONE));
            index["weight_map"]["of another model"] = json!(TWO);
            index["weight_map"].as_object_mut().unwrap().remove(NORM);
            write_index(dir, &index);
        },
    },
    SameModel {
        name: "index: numbers that JSON has not, and a path with a dot",
        model: "llama",
        change: |dir| {
            write_index(dir, &shard(dir, |name| name == NORM));
            replace_in(&dir.join(INDEX), "\"total_size\":1", "\"total_size\":NaN,\"more\":[-Infinity]");
            replace_in(&dir.join(INDEX), ONE, &format!("./{ONE}"));
        },
    },
    SameModel {
        name: "a stale index and PyTorch's file beside the weights",
        model: "llama",
        change: |dir| {
            write_index(dir, &json!({ "weight_map": { NORM: "gone.safetensors" } }));
            fs::write(dir.join("pytorch_model.bin"), "damaged").unwrap();
        },
    },
    SameModel {
        name: "config.json: numbers that JSON has not, and text with their names",
        model: "llama",
        change: |dir| {
            let more =
                "{\"range\": [0.0, Infinity], \"a\": {\"b\": -Infinity}, \"NaN\": \"a \\\"NaN, Infinity\", \"c\":NaN,";
            replace_in(&dir.join("config.json"), "{", more);
        },
    },
];

#[test]
fn what_a_program_that_saves_drops_or_moves_is_found() {
    let cases = cases();
    let mut wrong = Vec::new();
    for SameModel { name, model, change } in SAME {
        let Case { model, logits: expected, .. } = cases.iter().find(|case| case.name == *model).unwrap();
        let dir = copy_of(model);
        change(dir.path());
        match logits(dir.path(), LENGTH) {
            Ok(found) if difference(&found, expected) <= TOLERANCE => {}
            Ok(found) => wrong.push(format!("{name}: off by {}", difference(&found, expected))),
            Err(error) => wrong.push(format!("{name}: {error}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Fields that would change the tokens: config.json's new fields, and what of the message says which one it is.
fn refused() -> Vec<(&'static str, Value, &'static str)> {
    let layers = json!({ "full_attention": { "rope_theta": 1e4 }, "sliding_attention": { "rope_theta": 1e3 } });
    let linear = json!({ "rope_type": "linear", "factor": 2.0 });
    vec![
        ("llama", json!({ "rope_parameters": layers }), "rope_parameters.full_attention is"),
        (
            "llama",
            json!({ "rope_theta": 1e4, "rope_parameters": { "rope_theta": 5e5 } }),
            "rope_parameters.rope_theta is 500000.0, expected what rope_theta beside it says, 10000.0",
        ),
        (
            "llama",
            json!({ "rope_scaling": { "type": "linear", "factor": 4.0 }, "rope_parameters": linear }),
            "rope_parameters.factor is 2.0, expected what rope_scaling.factor says, 4.0",
        ),
        (
            "llama",
            json!({ "rope_scaling": { "type": "linear", "rope_type": "dynamic", "factor": 4.0 } }),
            "rope_scaling.rope_type is \"dynamic\", expected what rope_scaling.type says, \"linear\"",
        ),
        (
            "llama",
            json!({ "rope_scaling": { "factor": 4.0 } }),
            "rope_scaling.rope_type is missing, expected default or linear or dynamic or llama3 or yarn",
        ),
        ("llama", json!({ "rope_scaling": { "type": "mrope", "factor": 4.0 } }), "rope_scaling.type is \"mrope\""),
        (
            "llama",
            json!({ "rope_scaling": { "type": "default", "mrope_section": [1, 2] } }),
            "rope_scaling.mrope_section is [1,2]",
        ),
        (
            "llama",
            json!({ "rope_parameters": { "rope_type": "longrope", "factor": 2.0 } }),
            "rope_parameters.rope_type is \"longrope\"",
        ),
        (
            "llama",
            json!({ "rope_parameters": { "rope_type": "yarn", "factor": 2.0, "mscale": 1.0 } }),
            "rope_parameters.mscale is 1.0",
        ),
        (
            "llama",
            json!({ "rope_parameters": { "rope_type": "yarn", "factor": 2.0, "truncate": false } }),
            "rope_parameters.truncate is false",
        ),
        (
            "llama",
            json!({ "rope_parameters": { "rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32 } }),
            "rope_parameters.original_max_position_embeddings is 32, expected max_position_embeddings, 64",
        ),
        (
            "llama",
            json!({ "rope_scaling": { "rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0 } }),
            "rope_scaling.original_max_position_embeddings is missing",
        ),
        (
            "llama",
            json!({ "rope_scaling": { "rope_type": "llama3", "factor": 2.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32 } }),
            "rope_scaling.high_freq_factor is 4.0, expected a number above",
        ),
        ("llama", json!({ "rope_scaling": { "type": "dynamic" } }), "rope_scaling.factor is missing"),
        ("llama", json!({ "partial_rotary_factor": 0.5 }), "partial_rotary_factor is 0.5, expected 1"),
        (
            "phi3",
            json!({ "rope_parameters": { "partial_rotary_factor": 0.75 } }),
            "rope_parameters.partial_rotary_factor is 0.75",
        ),
        ("mistral", json!({ "rope_parameters": linear }), "rope_parameters.rope_type is \"linear\", expected default"),
        (
            "falcon-rw",
            json!({ "rope_scaling": linear }),
            "rope_scaling.rope_type is \"linear\", expected default: alibi is true",
        ),
        (
            "llama",
            json!({ "model_type": "mistral" }),
            "model_type is \"mistral\", expected llama, as the architecture is LlamaForCausalLM",
        ),
        ("llama", json!({ "dtype": "float16" }), "dtype is \"float16\", expected what torch_dtype says, bfloat16"),
        ("llama", json!({ "quantization_config": { "quant_method": "gptq", "bits": 4 } }), "quantization_config is"),
        ("llama", json!({ "hidden_act": "gelu" }), "hidden_act is \"gelu\""),
        ("falcon", json!({ "activation": "relu" }), "activation is \"relu\""),
        ("mistral", json!({ "attention_bias": true }), "attention_bias is true"),
        ("phi3", json!({ "mlp_bias": true }), "mlp_bias is true"),
        ("llama", json!({ "attention_bias": true }), "holds no tensor model.layers.0.self_attn.q_proj.bias"),
        ("llama", json!({ "qk_norm": true }), "qk_norm is true"),
        ("llama", json!({ "logit_scale": 0.5 }), "logit_scale is 0.5, expected 1.0 or none"),
        ("llama", json!({ "layer_types": ["full_attention", "sliding_attention"] }), "layer_types is"),
        (
            "mistral",
            json!({ "sliding_window": 5, "layer_types": ["full_attention", "sliding_attention"] }),
            "layer_types is",
        ),
        ("mistral", json!({ "sliding_window": 5, "use_sliding_window": false }), "use_sliding_window is false"),
        ("llama", json!({ "sliding_window": 5, "use_sliding_window": true }), "use_sliding_window is true"),
        ("falcon-rw", json!({ "num_kv_heads": 2 }), "num_kv_heads is 2, expected 6"),
        ("falcon", json!({ "head_dim": 8 }), "head_dim is 8, expected 16"),
        ("falcon", json!({ "n_embed": 96 }), "hidden_size is 48, expected what n_embed says, 96"),
        (
            "falcon",
            json!({ "apply_residual_connection_post_layernorm": true }),
            "apply_residual_connection_post_layernorm is true",
        ),
        // Null is false: the head is a matrix of its own then, which this file does not hold.
        ("falcon", json!({ "tie_word_embeddings": null }), "holds no tensor lm_head.weight"),
        ("llama-tied", json!({ "tie_word_embeddings": null }), "holds no tensor lm_head.weight"),
    ]
}

#[test]
fn fields_that_would_change_the_tokens_are_refused_by_name() {
    let mut wrong = Vec::new();
    for (model, fields, expected) in refused() {
        let dir = copy_of(model);
        edit_config(dir.path(), |config| config.extend(fields.as_object().unwrap().clone()));
        match family::load(dir.path()) {
            Ok(_) => wrong.push(format!("{model} with {fields} was loaded")),
            Err(error) if error.to_string().contains(expected) => {}
            Err(error) => wrong.push(format!("{model} with {fields}: {error}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn numbers_that_json_has_not_are_refused_where_they_count() {
    for (key, number) in [
        ("rope_theta", "Infinity"),
        ("vocab_size", "NaN"),
        ("rms_norm_eps", "-Infinity"),
        ("tie_word_embeddings", "NaN"),
    ] {
        let dir = copy_of("llama");
        edit_config(dir.path(), |config| drop(config.remove(key)));
        replace_in(&dir.path().join("config.json"), "{", &format!("{{\"{key}\":{number},"));
        let error = family::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("{key} is {number}, expected ")), "{error}");
    }
}

#[test]
fn matrices_that_cannot_be_told_apart_or_found_are_refused_by_name() {
    type Change = fn(&Path);
    let cases: [(&str, Change, &str); 6] = [
        (
            "llama-tied",
            |dir| {
                edit(dir, |tensors| {
                    with_head(tensors, LLAMA_EMBEDDING, "lm_head.weight");
                    tensors.0.last_mut().unwrap().bytes[0] ^= 1;
                });
            },
            "lm_head differs from model.embed_tokens, but tie_word_embeddings says that they are one matrix",
        ),
        (
            "falcon",
            |dir| {
                edit(dir, |tensors| {
                    with_head(tensors, FALCON_EMBEDDING, "lm_head.weight");
                    tensors.0.last_mut().unwrap().bytes[7] ^= 1;
                });
            },
            "lm_head differs from transformer.word_embeddings",
        ),
        (
            "llama",
            |dir| {
                let mut index = shard(dir, |name| name != NORM);
                let mut one = Tensors::read(&dir.join(ONE));
                one.0.push(Entry::zeros(NORM, "BF16", &[32]));
                one.write(&dir.join(ONE));
                index["weight_map"]["of another model"] = json!(TWO);
                index["weight_map"].as_object_mut().unwrap().remove(NORM);
                write_index(dir, &index);
            },
            "tensor model.norm.weight is in both",
        ),
        (
            "llama",
            |dir| {
                write_index(dir, &shard(dir, |name| name == NORM));
                let mut two = Tensors::read(&dir.join(TWO));
                two.0.retain(|tensor| tensor.name != "lm_head.weight");
                two.write(&dir.join(TWO));
            },
            "model.safetensors.index.json places tensor lm_head.weight in model-00002-of-00002.safetensors, but no file that it \
             lists holds it",
        ),
        (
            "llama",
            |dir| edit(dir, |tensors| tensors.get_mut("lm_head.weight").set_type("F8_E4M3", 1)),
            "tensor lm_head.weight has element type F8_E4M3, expected F32, BF16 or F16",
        ),
        (
            "llama",
            |dir| edit(dir, |tensors| tensors.0.retain(|tensor| tensor.name != "lm_head.weight")),
            "holds no tensor lm_head.weight",
        ),
    ];
    for (model, change, expected) in cases {
        let dir = copy_of(model);
        change(dir.path());
        let error = family::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
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

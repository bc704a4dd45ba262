//! Models in GGUF files: the metadata of an architecture, translated as the other families translate a config.json.
//!
//! The keys of an architecture begin with its name, which errors show. What llama.cpp changes when it converts a model is this:
//! rows of queries and keys of `llama` are ordered for the rotation of neighbours, as Meta's are, and Falcon's groups of queries, a key
//! and a value become blocks. Both are said in the configuration, so the weights stay as they are.

use std::path::Path;

use serde_json::{Map, Value as Json};

use super::{
    Description,
    config_file::{ConfigFile, limits},
    tensor_names::TensorNames,
};
use crate::{
    checkpoint::{
        CheckpointError, TensorSet,
        gguf::{GgufModel, Metadata, Value},
        shorten,
    },
    config::{
        AttentionSpec, DialogFormat, LayerSpec, Mlp, MlpSpec, ModelConfig, Norm, Positions, Residual, Rope,
        RopePairing, RopeScaling,
    },
    weights::ModelWeights,
};

/// An architecture.
struct Architecture {
    /// The value of `general.architecture`, the prefix of its keys, and our name of the family.
    name: &'static str,
    names: TensorNames,
    mlp: Mlp,
    /// The key of the epsilon of its normalisations, which says what they are.
    epsilon: &'static str,
    pairing: RopePairing,
    dialog_format: Option<DialogFormat>,
}

const LLAMA: Architecture = Architecture {
    name: "llama",
    names: NAMES,
    mlp: Mlp::SwiGlu,
    epsilon: RMS_EPSILON,
    pairing: RopePairing::Interleaved,
    dialog_format: Some(DialogFormat::Llama2),
};

const ARCHITECTURES: [Architecture; 3] = [
    LLAMA,
    Architecture { name: "falcon", names: FUSED, mlp: Mlp::Gelu, epsilon: LAYER_EPSILON, ..HALVES },
    Architecture { name: "phi3", names: FUSED, ..HALVES },
];

const HALVES: Architecture = Architecture { pairing: RopePairing::Halves, dialog_format: None, ..LLAMA };

const RMS_EPSILON: &str = "attention.layer_norm_rms_epsilon";
const LAYER_EPSILON: &str = "attention.layer_norm_epsilon";

const NAMES: TensorNames = TensorNames {
    base: "",
    embedding: "token_embd",
    layers: "blk.",
    attention_norm: "attn_norm",
    query_key_norms: ["attn_q_norm", "attn_k_norm"],
    mlp_norm: "ffn_norm",
    qkv: &["attn_q", "attn_k", "attn_v"],
    attention_output: "attn_output",
    mlp_in: &["ffn_gate", "ffn_up"],
    mlp_out: "ffn_down",
    final_norm: "output_norm",
    head: "output",
};
/// Phi-3's gate and up are both in `ffn_up`; Falcon has no gate.
const FUSED: TensorNames = TensorNames { qkv: &["attn_qkv"], mlp_in: &["ffn_up"], ..NAMES };

/// The second norm of a layer of Falcon 40B, that of attention. The first is that of the MLP then.
const SECOND_NORM: &str = "attn_norm_2";

/// Keys that change what a model computes and that none of these architectures has here, each with the number that changes nothing.
const FOREIGN: &[(&str, f64)] = &[
    ("expert_count", 0.0),
    ("logit_scale", 1.0),
    ("embedding_scale", 1.0),
    ("residual_scale", 1.0),
    ("attention.scale", 0.0),
    ("attention.clamp_kqv", 0.0),
    ("attention.max_alibi_bias", 0.0),
    ("attn_logit_softcapping", 0.0),
    ("final_logit_softcapping", 0.0),
    ("rope.scaling.yarn_log_multiplier", 0.0),
];

/// Reads a model.
pub(super) fn load(model: &GgufModel) -> Result<(ModelConfig, ModelWeights), CheckpointError> {
    let Description { config, names, tied } = describe(model.path(), &model.metadata()?, &model.tensors)?;
    let weights = names.collect(&config, tied, &model.tensors)?;
    model.tensors.log_unused();
    Ok((config, weights))
}

fn describe(path: &Path, metadata: &Metadata, tensors: &TensorSet) -> Result<Description, CheckpointError> {
    let general = fields(path, metadata, "general.");
    if !matches!(metadata.text("general.type"), None | Some("model")) {
        return Err(general.wrong(&["type"], "model: adapters, projectors and the like are no models"));
    }
    let name = metadata.text("general.architecture").unwrap_or("missing");
    let architecture = ARCHITECTURES.iter().find(|architecture| architecture.name == name);
    let architecture = architecture.ok_or_else(|| CheckpointError::UnknownArchitecture {
        path: path.to_owned(),
        found: shorten(name),
        supported: ARCHITECTURES.map(|architecture| architecture.name).join(", "),
    })?;
    let file = fields(path, metadata, &format!("{name}."));
    for &(key, neutral) in FOREIGN {
        match file.value(&[key]) {
            Some(value) if value.as_f64() != Some(neutral) => {
                return Err(file.wrong(&[key], format!("{neutral} or none: this is not supported")));
            }
            _ => {}
        }
    }
    let hidden_size = file.count(&["embedding_length"], None, limits::WIDTH)?;
    let mut attention = attention(&file, hidden_size)?;
    let first = |tensor: &str| tensors.shape(&format!("blk.0.{tensor}"));
    let names = architecture.names;
    let biased = |name: Option<&&str>| name.is_some_and(|name| first(&format!("{name}.bias")).is_some());
    attention.qkv_bias = biased(names.qkv.first());
    attention.output_bias = biased(Some(&names.attention_output));
    let (rope, longest) = rope(&file, architecture, tensors, attention.head_dim)?;
    let eps = file.epsilon(&[architecture.epsilon], None)?;
    let norm = if architecture.epsilon == RMS_EPSILON { Norm::Rms { eps } } else { Norm::Layer { eps } };
    let two_norms = first(&format!("{SECOND_NORM}.weight")).is_some();
    let (residual, names) = match (architecture.mlp, two_norms) {
        (Mlp::Gelu, true) => {
            let (attention_norm, mlp_norm) = (SECOND_NORM, names.attention_norm);
            (Residual::Parallel, TensorNames { attention_norm, mlp_norm, ..names })
        }
        (Mlp::Gelu, false) => (Residual::ParallelSharedNorm, names),
        (Mlp::SwiGlu, _) => (Residual::Sequential, names),
    };
    let config = ModelConfig {
        family: architecture.name,
        vocab_size: vocab_size(&file, tensors)?,
        hidden_size,
        num_layers: file.count(&["block_count"], None, limits::LAYERS)?,
        layer: LayerSpec {
            attention,
            mlp: MlpSpec {
                kind: architecture.mlp,
                width: file.count(&["feed_forward_length"], None, 4 * limits::WIDTH)?,
                bias: biased(Some(&names.mlp_out)),
            },
            norm,
            residual,
        },
        final_norm: norm,
        positions: Positions::Rotary(rope),
        max_position_embeddings: longest,
        dialog_format: architecture.dialog_format,
    };
    let tied = tensors.shape(&format!("{}.weight", names.head)).is_none();
    Ok(Description { config, names, tied })
}

fn attention(file: &ConfigFile, hidden_size: usize) -> Result<AttentionSpec, CheckpointError> {
    const HEADS: &[&str] = &["attention.head_count"];
    const KV_HEADS: &[&str] = &["attention.head_count_kv"];
    const KEYS: &[&str] = &["attention.key_length"];
    let queries = file.count(HEADS, None, limits::HEADS)?;
    let key_values = file.count(KV_HEADS, Some(queries), limits::HEADS)?;
    let head_dim = match file.value(KEYS) {
        Some(_) => Some(file.count(KEYS, None, limits::HEAD_DIM)?),
        None => None,
    };
    let heads = file.heads(hidden_size, (HEADS, queries), (KV_HEADS, key_values), head_dim)?;
    let values = &["attention.value_length"];
    if file.count(values, Some(heads.dim), limits::HEAD_DIM)? != heads.dim {
        return Err(file.wrong(values, format!("{}, the width of a key", heads.dim)));
    }
    let window = &["attention.sliding_window"];
    // Some programs write 0 for none.
    let has_window = file.value(window).is_some_and(|window| window.as_f64() != Some(0.0));
    let sliding_window = if has_window { Some(file.count(window, None, limits::POSITIONS)?) } else { None };
    Ok(AttentionSpec { sliding_window, ..AttentionSpec::new(heads.queries, heads.key_values, heads.dim) })
}

/// Rows of the embedding.
fn vocab_size(file: &ConfigFile, tensors: &TensorSet) -> Result<usize, CheckpointError> {
    match tensors.shape(&format!("{}.weight", NAMES.embedding)) {
        Some(&[rows, _]) if (1..=limits::VOCABULARY).contains(&rows) => Ok(rows),
        // What is wrong with the embedding is said where it is read.
        _ => file.count(&["vocab_size"], Some(1), limits::VOCABULARY),
    }
}

/// RoPE, and the longest sequence.
fn rope(
    file: &ConfigFile,
    architecture: &Architecture,
    tensors: &TensorSet,
    head_dim: usize,
) -> Result<(Rope, usize), CheckpointError> {
    const WIDTH: &[&str] = &["rope.dimension_count"];
    let longest = file.count(&["context_length"], None, limits::POSITIONS)?;
    let width = file.count(WIDTH, Some(head_dim), limits::HEAD_DIM)?;
    if width > head_dim || !width.is_multiple_of(2) {
        return Err(file.wrong(WIDTH, format!("an even number up to the width of a head, {head_dim}")));
    }
    let theta = file.number(&["rope.freq_base"], Some(10_000.0), 1.0..=1e12)?;
    let scaling = match scaling_by_tensors(file, tensors, width / 2, longest)? {
        Some(scaling) => scaling,
        None => scaling(file, theta, longest)?,
    };
    Ok((Rope { theta, width, pairing: architecture.pairing, scaling }, longest))
}

/// Scaling as tensors say it, with a factor for each pair: Llama 3.1's, and LongRoPE with two sets of factors.
fn scaling_by_tensors(
    file: &ConfigFile,
    tensors: &TensorSet,
    pairs: usize,
    longest: usize,
) -> Result<Option<RopeScaling>, CheckpointError> {
    const ORIGINAL: &[&str] = &["rope.scaling.original_context_length"];
    let factors = |name: &str| -> Result<Option<Vec<f64>>, CheckpointError> {
        let name = format!("{name}.weight");
        if tensors.shape(&name).is_none() {
            return Ok(None);
        }
        let factors: Vec<f64> = tensors.tensor(&name, &[pairs])?.to_f32().into_iter().map(f64::from).collect();
        match factors.iter().find(|factor| !(factor.is_finite() && **factor > 0.0)) {
            Some(factor) => Err(CheckpointError::Config {
                path: tensors.path().to_owned(),
                key: name,
                found: factor.to_string(),
                expected: "positive numbers".into(),
            }),
            None => Ok(Some(factors)),
        }
    };
    if let Some(all) = factors("rope_freqs")? {
        return Ok(Some(RopeScaling::LongRope {
            short_factor: all.clone(),
            long_factor: all,
            original_max_position_embeddings: longest,
            attention_factor: 1.0,
        }));
    }
    let (Some(short_factor), Some(long_factor)) = (factors("rope_factors_short")?, factors("rope_factors_long")?)
    else {
        return Ok(None);
    };
    let original = file.count(ORIGINAL, Some(4096), limits::POSITIONS)?;
    if original < 2 {
        return Err(file.wrong(ORIGINAL, "at least 2"));
    }
    let extension = longest as f64 / original as f64;
    let computed = if extension <= 1.0 { 1.0 } else { (1.0 + extension.ln() / (original as f64).ln()).sqrt() };
    Ok(Some(RopeScaling::LongRope {
        short_factor,
        long_factor,
        original_max_position_embeddings: original,
        attention_factor: file.number(&["rope.scaling.attn_factor"], Some(computed), 0.0..=1e3)?,
    }))
}

/// Scaling as the metadata says it.
fn scaling(file: &ConfigFile, theta: f64, longest: usize) -> Result<RopeScaling, CheckpointError> {
    // The second is the older key.
    const FACTOR: &[&str] = &["rope.scaling.factor", "rope.scale_linear"];
    let factor = || file.number(FACTOR, Some(1.0), 1.0..=1e6);
    // Files with a factor and no type are older than the type.
    let types = if file.value(FACTOR).is_some() { &["linear", "none", "yarn"] } else { &["none", "linear", "yarn"] };
    match file.choice(&["rope.scaling.type"], types)? {
        "linear" => Ok(RopeScaling::Linear { factor: factor()? }),
        "yarn" => {
            if theta <= 1.0 {
                return Err(file.wrong(&["rope.freq_base"], "a number above 1 for YaRN"));
            }
            let factor = factor()?;
            let number = |key: &str, silent: f64| file.number(&[key], Some(silent), 1e-3..=1e6);
            Ok(RopeScaling::Yarn {
                factor,
                beta_fast: number("rope.scaling.yarn_beta_fast", 32.0)?,
                beta_slow: number("rope.scaling.yarn_beta_slow", 1.0)?,
                max_position_embeddings: file.count(
                    &["rope.scaling.original_context_length"],
                    Some(longest),
                    limits::POSITIONS,
                )?,
                attention_factor: (0.1 * factor.ln() + 1.0) * number("rope.scaling.yarn_attn_factor", 1.0)?,
            })
        }
        _ => Ok(RopeScaling::None),
    }
}

/// Most elements of a list that may be a field: one for each layer.
const MAX_FIELD: usize = limits::LAYERS;

/// The entries whose keys begin with `prefix` as fields of a configuration.
fn fields(path: &Path, metadata: &Metadata, prefix: &str) -> ConfigFile {
    let map: Map<String, Json> =
        metadata.below(prefix).filter_map(|(key, value)| Some((key.to_owned(), json(value)?))).collect();
    ConfigFile::of(path, prefix, map)
}

fn json(value: &Value) -> Option<Json> {
    Some(match value {
        Value::Unsigned(number) => Json::from(*number),
        Value::Signed(number) => Json::from(*number),
        // What is no number of JSON is no number of a configuration either.
        Value::Float(number) => {
            serde_json::Number::from_f64(*number).map_or_else(|| Json::from(number.to_string()), Json::Number)
        }
        Value::Bool(value) => Json::from(*value),
        Value::Text(text) => Json::from(String::from_utf8_lossy(text)),
        Value::Array(list) if list.len() <= MAX_FIELD => {
            // Lists of numbers alone, one for each layer. Where all are the same, they are one number for all layers.
            let numbers: Vec<Json> =
                list.iter().map(|value| json(&value).filter(Json::is_number)).collect::<Option<_>>()?;
            match numbers.first() {
                Some(first) if numbers.iter().all(|number| number == first) => first.clone(),
                _ => Json::Array(numbers),
            }
        }
        Value::Array(_) => return None,
    })
}

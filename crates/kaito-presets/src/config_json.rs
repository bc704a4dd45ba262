//! The files that the hub publishes beside the weights, as far as they decide what a model computes.

use kaito_spec::{DType, QkvOrder};
use serde_json::{Map, Value, json};

use crate::{
    preset::Preset,
    shape::{LongRope, Shape},
};

/// A value in a published `config.json`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Fact {
    /// The same for all models of a family.
    Text(&'static str),
    /// The same for all models of a family.
    Flag(bool),
    Hidden,
    Layers,
    Heads,
    KvHeads,
    /// Left out where the heads are not grouped.
    GroupedKvHeads,
    /// Left out where the heads are grouped.
    MultiQuery,
    /// Whether heads are grouped in the fused projection.
    IsGrouped,
    InnerWidth,
    Vocabulary,
    Positions,
    PositionsBeforeScaling,
    Window,
    NormEpsilon,
    RopeTheta,
    RopeScaling,
    IsTied,
    Bos,
    Eos,
    /// Left out where there is no such token.
    Pad,
}

/// Keys with what stands under them.
pub(crate) type Keys = &'static [(&'static str, Fact)];

const COMMON_KEYS: Keys = &[
    ("vocab_size", Fact::Vocabulary),
    ("hidden_size", Fact::Hidden),
    ("num_hidden_layers", Fact::Layers),
    ("num_attention_heads", Fact::Heads),
    ("bos_token_id", Fact::Bos),
    ("eos_token_id", Fact::Eos),
    ("pad_token_id", Fact::Pad),
];

pub(crate) const LLAMA_KEYS: Keys = &[
    ("hidden_act", Fact::Text("silu")),
    ("intermediate_size", Fact::InnerWidth),
    ("num_key_value_heads", Fact::KvHeads),
    ("max_position_embeddings", Fact::Positions),
    ("rms_norm_eps", Fact::NormEpsilon),
    ("rope_theta", Fact::RopeTheta),
    ("rope_scaling", Fact::RopeScaling),
    ("tie_word_embeddings", Fact::IsTied),
];

pub(crate) const WINDOW_KEYS: Keys = &[("sliding_window", Fact::Window)];

pub(crate) const LONG_ROPE_KEYS: Keys = &[("original_max_position_embeddings", Fact::PositionsBeforeScaling)];

/// Falcon's files name neither the head's tying, nor the rotary base, nor the inner width: those are the defaults.
pub(crate) const FALCON_KEYS: Keys = &[
    ("alibi", Fact::Flag(false)),
    ("bias", Fact::Flag(false)),
    ("apply_residual_connection_post_layernorm", Fact::Flag(false)),
    ("layer_norm_epsilon", Fact::NormEpsilon),
    ("new_decoder_architecture", Fact::IsGrouped),
    ("parallel_attn", Fact::Flag(true)),
    ("num_kv_heads", Fact::GroupedKvHeads),
    ("multi_query", Fact::MultiQuery),
];

impl Fact {
    /// What the file of a model of this shape says; `None` where it leaves the key out.
    fn of(self, shape: &Shape) -> Option<Value> {
        let is_grouped = shape.qkv_order == QkvOrder::Groups;
        Some(match self {
            Fact::Text(text) => json!(text),
            Fact::Flag(flag) => json!(flag),
            Fact::Hidden => json!(shape.hidden_size),
            Fact::Layers => json!(shape.num_layers),
            Fact::Heads => json!(shape.num_heads),
            Fact::KvHeads => json!(shape.num_kv_heads),
            Fact::GroupedKvHeads if is_grouped => json!(shape.num_kv_heads),
            Fact::MultiQuery if !is_grouped => json!(true),
            Fact::GroupedKvHeads | Fact::MultiQuery => return None,
            Fact::IsGrouped => json!(is_grouped),
            Fact::InnerWidth => json!(shape.intermediate_size),
            Fact::Vocabulary => json!(shape.vocab_size),
            Fact::Positions => json!(shape.max_position_embeddings),
            Fact::PositionsBeforeScaling => match shape.rope.long {
                Some(long) => json!(long.original_max_position_embeddings),
                None => json!(shape.max_position_embeddings),
            },
            Fact::Window => json!(shape.sliding_window),
            Fact::NormEpsilon => json!(shape.norm_eps),
            Fact::RopeTheta => json!(shape.rope.theta),
            Fact::RopeScaling => match shape.rope.long {
                Some(LongRope { short_factor, long_factor, .. }) => {
                    json!({"type": "longrope", "short_factor": short_factor, "long_factor": long_factor})
                }
                None => Value::Null,
            },
            Fact::IsTied => json!(shape.tied_embeddings),
            Fact::Bos => json!(shape.bos_token_id),
            Fact::Eos => json!(shape.eos_token_ids.first()),
            Fact::Pad => json!(shape.pad_token_id?),
        })
    }
}

impl Preset {
    /// The `config.json` that the hub publishes with this model: the fields that decide what the model computes,
    /// under their published names.
    pub fn config_json(&self) -> Value {
        let (shape, family) = (&self.shape, self.shape.family);
        let mut config = Map::new();
        config.insert("architectures".into(), json!([family.architecture]));
        config.insert("model_type".into(), json!(family.model_type));
        config.insert("torch_dtype".into(), json!(torch_dtype(self.dtype)));
        let facts = family.config.iter().copied().flatten().chain(COMMON_KEYS);
        config.extend(facts.filter_map(|(key, fact)| Some(((*key).to_owned(), fact.of(shape)?))));
        Value::Object(config)
    }

    /// The `generation_config.json` that goes with it: the tokens that begin and end a sequence.
    pub fn generation_config_json(&self) -> Value {
        let shape = &self.shape;
        let mut config = Map::new();
        config.insert("bos_token_id".into(), json!(shape.bos_token_id));
        config.insert(
            "eos_token_id".into(),
            match shape.eos_token_ids {
                [one] => json!(one),
                several => json!(several),
            },
        );
        if let Some(pad) = shape.pad_token_id {
            config.insert("pad_token_id".into(), json!(pad));
        }
        Value::Object(config)
    }
}

fn torch_dtype(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "float32",
        DType::Bf16 => "bfloat16",
        DType::F16 => "float16",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::find;

    /// Fields as the model pages on the hub show them.
    #[test]
    fn configurations_are_the_published_ones() {
        for (name, published) in [
            (
                "llama-2-70b",
                json!({
                    "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
                    "hidden_size": 8192, "intermediate_size": 28672, "max_position_embeddings": 4096,
                    "model_type": "llama", "num_attention_heads": 64, "num_hidden_layers": 80,
                    "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_scaling": null, "rope_theta": 10000.0,
                    "tie_word_embeddings": false, "torch_dtype": "float16", "vocab_size": 32000,
                }),
            ),
            (
                "falcon-40b",
                json!({
                    "alibi": false, "apply_residual_connection_post_layernorm": false,
                    "architectures": ["FalconForCausalLM"], "bias": false, "bos_token_id": 11, "eos_token_id": 11,
                    "hidden_size": 8192, "layer_norm_epsilon": 1e-5, "model_type": "falcon",
                    "new_decoder_architecture": true, "num_attention_heads": 128, "num_hidden_layers": 60,
                    "num_kv_heads": 8, "parallel_attn": true, "torch_dtype": "bfloat16", "vocab_size": 65024,
                }),
            ),
            (
                "falcon-7b",
                json!({
                    "alibi": false, "apply_residual_connection_post_layernorm": false,
                    "architectures": ["FalconForCausalLM"], "bias": false, "bos_token_id": 11, "eos_token_id": 11,
                    "hidden_size": 4544, "layer_norm_epsilon": 1e-5, "model_type": "falcon", "multi_query": true,
                    "new_decoder_architecture": false, "num_attention_heads": 71, "num_hidden_layers": 32,
                    "parallel_attn": true, "torch_dtype": "bfloat16", "vocab_size": 65024,
                }),
            ),
            (
                "mistral-7b-instruct",
                json!({
                    "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
                    "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
                    "max_position_embeddings": 32768, "model_type": "mistral", "num_attention_heads": 32,
                    "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_scaling": null,
                    "rope_theta": 1000000.0, "sliding_window": null, "tie_word_embeddings": false,
                    "torch_dtype": "bfloat16", "vocab_size": 32000,
                }),
            ),
            (
                "phi-3-mini-4k-instruct",
                json!({
                    "architectures": ["Phi3ForCausalLM"], "bos_token_id": 1, "eos_token_id": 32000,
                    "hidden_act": "silu", "hidden_size": 3072, "intermediate_size": 8192,
                    "max_position_embeddings": 4096, "model_type": "phi3", "num_attention_heads": 32,
                    "num_hidden_layers": 32, "num_key_value_heads": 32, "original_max_position_embeddings": 4096,
                    "pad_token_id": 32000, "rms_norm_eps": 1e-5, "rope_scaling": null, "rope_theta": 10000.0,
                    "sliding_window": 2047, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
                    "vocab_size": 32064,
                }),
            ),
            (
                "smollm2",
                json!({
                    "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
                    "hidden_size": 576, "intermediate_size": 1536, "max_position_embeddings": 8192,
                    "model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30,
                    "num_key_value_heads": 3, "pad_token_id": 2, "rms_norm_eps": 1e-5, "rope_scaling": null,
                    "rope_theta": 100000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16", "vocab_size": 49152,
                }),
            ),
        ] {
            assert_eq!(find(name).unwrap().config_json(), published, "{name}");
        }
    }

    #[test]
    fn the_long_phi_3_has_its_factors() {
        let config = find("phi-3-mini-128k-instruct").unwrap().config_json();
        assert_eq!(config["max_position_embeddings"], 131072);
        assert_eq!(config["original_max_position_embeddings"], 4096);
        assert_eq!(config["sliding_window"], 262144);
        assert_eq!(config["rope_scaling"]["type"], "longrope");
        assert_eq!(config["rope_scaling"]["long_factor"][30], 60.887386322021484);
        assert_eq!(config["rope_scaling"]["short_factor"][30], 2.0500000000000007);
    }

    #[test]
    fn phi_3_ends_on_any_of_three_tokens() {
        let config = find("phi-3-mini-4k-instruct").unwrap().generation_config_json();
        assert_eq!(config, json!({"bos_token_id": 1, "eos_token_id": [32000, 32001, 32007], "pad_token_id": 32000}));
    }
}

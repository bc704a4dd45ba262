use serde_json::{Map, Value, json};

use crate::{
    preset::Preset,
    shape::{DType, Family, Residual, Shape},
};

impl Preset {
    /// The `config.json` that the hub publishes with this model: the fields that decide what the model computes,
    /// under their published names.
    pub fn config_json(&self) -> Value {
        let shape = &self.shape;
        let mut config = match shape.family {
            Family::Falcon => falcon(shape),
            Family::Llama | Family::Mistral | Family::Phi3 => llama_like(shape),
        };
        config.insert("model_type".into(), json!(shape.family.model_type()));
        config.insert("vocab_size".into(), json!(shape.vocab_size));
        config.insert("hidden_size".into(), json!(shape.hidden_size));
        config.insert("num_hidden_layers".into(), json!(shape.num_layers));
        config.insert("num_attention_heads".into(), json!(shape.num_heads));
        config.insert("bos_token_id".into(), json!(shape.bos_token_id));
        config.insert("eos_token_id".into(), json!(shape.eos_token_ids.first()));
        config.insert("torch_dtype".into(), json!(torch_dtype(self.dtype)));
        if let Some(pad) = shape.pad_token_id {
            config.insert("pad_token_id".into(), json!(pad));
        }
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

fn llama_like(shape: &Shape) -> Map<String, Value> {
    let architecture = match shape.family {
        Family::Mistral => "MistralForCausalLM",
        Family::Phi3 => "Phi3ForCausalLM",
        Family::Llama | Family::Falcon => "LlamaForCausalLM",
    };
    let mut config = Map::new();
    config.insert("architectures".into(), json!([architecture]));
    config.insert("hidden_act".into(), json!("silu"));
    config.insert("intermediate_size".into(), json!(shape.intermediate_size));
    config.insert("num_key_value_heads".into(), json!(shape.num_kv_heads));
    config.insert("max_position_embeddings".into(), json!(shape.max_position_embeddings));
    config.insert("rms_norm_eps".into(), json!(shape.norm_eps));
    config.insert("rope_theta".into(), json!(shape.rope.theta));
    config.insert("tie_word_embeddings".into(), json!(shape.tied_embeddings));
    if shape.family != Family::Llama {
        config.insert("sliding_window".into(), json!(shape.sliding_window));
    }
    if shape.family == Family::Phi3 {
        let original =
            shape.rope.long.map_or(shape.max_position_embeddings, |long| long.original_max_position_embeddings);
        config.insert("original_max_position_embeddings".into(), json!(original));
    }
    let scaling = shape
        .rope
        .long
        .map(|long| json!({"type": "longrope", "short_factor": long.short_factor, "long_factor": long.long_factor}));
    config.insert("rope_scaling".into(), json!(scaling));
    config
}

/// Falcon's files name neither the head's tying, nor the rotary base, nor the inner width: those are the defaults.
fn falcon(shape: &Shape) -> Map<String, Value> {
    let new_decoder_architecture = shape.residual == Residual::Parallel;
    let mut config = Map::new();
    config.insert("architectures".into(), json!(["FalconForCausalLM"]));
    config.insert("alibi".into(), json!(false));
    config.insert("bias".into(), json!(false));
    config.insert("apply_residual_connection_post_layernorm".into(), json!(false));
    config.insert("layer_norm_epsilon".into(), json!(shape.norm_eps));
    config.insert("new_decoder_architecture".into(), json!(new_decoder_architecture));
    config.insert("parallel_attn".into(), json!(true));
    if new_decoder_architecture {
        config.insert("num_kv_heads".into(), json!(shape.num_kv_heads));
    } else {
        config.insert("multi_query".into(), json!(true));
    }
    config
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

//! Configurations and files that transformers reads in another way, or not at all: each is refused by name.

use std::path::Path;

use kaito_model::family;
use serde_json::{Value, json};

use crate::{
    changes::{
        FALCON_EMBEDDING, LLAMA_EMBEDDING, NORM, ONE, TWO, copy_of, edit, edit_config, replace_in, shard, with_head,
        write_index,
    },
    safetensors_file::{Entry, Tensors},
};

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

//! Configurations with one thing wrong.

use std::fs;

use serde_json::{Value, json};

use super::{Case, cut, edit_json, remove, set};

pub const CONFIGURATIONS: &[Case] = &[
    Case {
        name: "no config.json",
        fixture: "llama",
        damage: |dir| remove(dir, "config.json"),
        expected: "{dir} holds model.safetensors but no config.json, which describes them",
    },
    Case {
        name: "config.json is cut",
        fixture: "llama",
        damage: |dir| cut(dir, "config.json", |_| 30),
        expected: "{dir}/config.json: not valid JSON: EOF while parsing a string at line 3 column 7",
    },
    Case {
        name: "config.json is no object",
        fixture: "llama",
        damage: |dir| fs::write(dir.join("config.json"), "[]").unwrap(),
        expected: "{dir}/config.json: not valid JSON: invalid type: sequence, expected a map at line 1 column 0",
    },
    Case {
        name: "config.json is huge",
        fixture: "llama",
        damage: |dir| {
            fs::File::options().write(true).open(dir.join("config.json")).unwrap().set_len(1 << 32).unwrap();
        },
        expected: "{dir}/config.json has 4294967296 bytes; such files are read up to 16777216 bytes",
    },
    Case {
        name: "another architecture",
        fixture: "llama",
        damage: |dir| set(dir, "architectures", json!(["GPT2LMHeadModel"])),
        expected: "{dir}/config.json: architecture GPT2LMHeadModel is not supported; supported are LlamaForCausalLM, \
                   MistralForCausalLM, FalconForCausalLM, RWForCausalLM, Phi3ForCausalLM",
    },
    Case {
        name: "no architecture",
        fixture: "llama",
        damage: |dir| fs::write(dir.join("config.json"), "{}").unwrap(),
        expected: "{dir}/config.json: architecture missing is not supported; supported are LlamaForCausalLM, \
                   MistralForCausalLM, FalconForCausalLM, RWForCausalLM, Phi3ForCausalLM",
    },
    Case {
        name: "a negative width",
        fixture: "llama",
        damage: |dir| set(dir, "hidden_size", json!(-16)),
        expected: "{dir}/config.json: hidden_size is -16, expected a whole number from 1 to 1048576",
    },
    Case {
        name: "a key that is missing",
        fixture: "llama",
        damage: |dir| set(dir, "num_hidden_layers", Value::Null),
        expected: "{dir}/config.json: num_hidden_layers is missing, expected a whole number from 1 to 4096",
    },
    Case {
        name: "a number as text",
        fixture: "llama",
        damage: |dir| set(dir, "vocab_size", json!("24")),
        expected: "{dir}/config.json: vocab_size is \"24\", expected a whole number from 1 to 8388608",
    },
    Case {
        name: "more layers than the file holds",
        fixture: "llama",
        damage: |dir| set(dir, "num_hidden_layers", json!(3)),
        expected: "{dir}/model.safetensors holds no tensor model.layers.2.input_layernorm.weight (expected shape [16])",
    },
    Case {
        name: "another vocabulary",
        fixture: "llama",
        damage: |dir| set(dir, "vocab_size", json!(32000)),
        expected: "{dir}/model.safetensors: tensor model.embed_tokens.weight has shape [24, 16], expected [32000, 16]",
    },
    Case {
        name: "heads that do not divide the width",
        fixture: "falcon-7b",
        damage: |dir| set(dir, "num_attention_heads", json!(5)),
        expected: "{dir}/config.json: num_attention_heads is 5, expected a divisor of hidden_size 16",
    },
    Case {
        name: "an odd width of heads",
        fixture: "falcon-7b",
        damage: |dir| set(dir, "num_attention_heads", json!(16)),
        expected: "{dir}/config.json: num_attention_heads is 16, expected a count that makes the width of a head even \
                   (it is 1)",
    },
    Case {
        name: "groups that do not divide the heads",
        fixture: "llama",
        damage: |dir| set(dir, "num_key_value_heads", json!(3)),
        expected: "{dir}/config.json: num_key_value_heads is 3, expected a divisor of the 4 heads",
    },
    Case {
        name: "another activation",
        fixture: "llama",
        damage: |dir| set(dir, "hidden_act", json!("gelu")),
        expected: "{dir}/config.json: hidden_act is \"gelu\", expected silu or swish",
    },
    Case {
        name: "an epsilon that is no number",
        fixture: "llama",
        damage: |dir| set(dir, "rms_norm_eps", json!(true)),
        expected: "{dir}/config.json: rms_norm_eps is true, expected a number from 0 to 1",
    },
    Case {
        name: "scaled positions of an unknown kind",
        fixture: "llama",
        damage: |dir| set(dir, "rope_scaling", json!({ "type": "longrope", "factor": 2.0 })),
        expected: "{dir}/config.json: rope_scaling.type is \"longrope\", expected default or linear or dynamic or llama3 \
                   or yarn",
    },
    Case {
        name: "scaled positions without a factor",
        fixture: "llama",
        damage: |dir| set(dir, "rope_scaling", json!({ "type": "linear" })),
        expected: "{dir}/config.json: rope_scaling.factor is missing, expected a number from 1 to 1000000",
    },
    Case {
        name: "scaled positions that are no object",
        fixture: "llama",
        damage: |dir| set(dir, "rope_scaling", json!(2)),
        expected: "{dir}/config.json: rope_scaling is 2, expected an object",
    },
    Case {
        name: "a window of nothing",
        fixture: "mistral",
        damage: |dir| set(dir, "sliding_window", json!(0)),
        expected: "{dir}/config.json: sliding_window is 0, expected a whole number from 1 to 134217728",
    },
    Case {
        name: "long-rope with too few factors",
        fixture: "phi3-long",
        damage: |dir| edit_json(dir, "config.json", |config| config["rope_scaling"]["long_factor"] = json!([1.0])),
        expected: "{dir}/config.json: rope_scaling.long_factor is a list of 1 numbers, expected 2 numbers, one for each \
                   rotated pair of a head",
    },
    Case {
        name: "long-rope with a factor of 0",
        fixture: "phi3-long",
        damage: |dir| edit_json(dir, "config.json", |config| config["rope_scaling"]["short_factor"] = json!([1.0, 0])),
        expected: "{dir}/config.json: rope_scaling.short_factor is [1.0,0], expected a list of 2 positive numbers",
    },
    Case {
        name: "long-rope of an unknown kind",
        fixture: "phi3-long",
        damage: |dir| edit_json(dir, "config.json", |config| config["rope_scaling"]["type"] = json!("yarn")),
        expected: "{dir}/config.json: rope_scaling.type is \"yarn\", expected default or longrope",
    },
    Case {
        name: "Falcon with two norms in the old architecture",
        fixture: "falcon-7b",
        damage: |dir| set(dir, "num_ln_in_parallel_attn", json!(2)),
        expected: "{dir}/config.json: num_ln_in_parallel_attn is 2, expected 1 without the new decoder architecture",
    },
    Case {
        name: "Meta: heads that the ranks cannot share",
        fixture: "meta-2",
        damage: |dir| set(dir, "n_kv_heads", json!(1)),
        expected: "{dir}/params.json: n_kv_heads is 1, expected what 2 shards can divide (1 comes of it)",
    },
    Case {
        name: "Meta: positions of a later model",
        fixture: "meta-2",
        damage: |dir| set(dir, "use_scaled_rope", json!(true)),
        expected: "{dir}/params.json: use_scaled_rope is true, expected nothing: Llama 2 has no such parameter",
    },
    Case {
        name: "Meta: another vocabulary",
        fixture: "meta-2",
        damage: |dir| set(dir, "vocab_size", json!(32000)),
        expected: "{dir}/consolidated.00.pth: tensor tok_embeddings.weight has shape [24, 8], expected [32000, 8]",
    },
];

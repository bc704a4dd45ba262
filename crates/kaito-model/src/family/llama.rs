//! Llama and Llama 2, as Hugging Face publishes them.

use super::{
    Description, Family,
    config_file::{ConfigFile, limits},
    foreign,
    rotary::Rotary,
    tensor_names::TensorNames,
};
use crate::{
    checkpoint::CheckpointError,
    config::{AttentionSpec, DialogFormat, LayerSpec, Mlp, MlpSpec, ModelConfig, Norm, Positions, Residual},
};

pub(super) const FAMILY: Family = Family {
    architectures: &["LlamaForCausalLM"],
    base: &["LlamaModel"],
    model_types: &["llama"],
    names: NAMES,
    describe,
};

/// Values of `rope_type` that Llama and Falcon have.
pub(super) const ROPE_KINDS: &[&str] = &["default", "linear", "dynamic", "llama3", "yarn"];

/// Names that Mistral shares.
pub(super) const NAMES: TensorNames = TensorNames {
    base: "model.",
    embedding: "embed_tokens",
    layers: "layers.",
    attention_norm: "input_layernorm",
    // Qwen3's names.
    query_key_norms: ["self_attn.q_norm", "self_attn.k_norm"],
    mlp_norm: "post_attention_layernorm",
    qkv: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    attention_output: "self_attn.o_proj",
    mlp_in: &["mlp.gate_proj", "mlp.up_proj"],
    mlp_out: "mlp.down_proj",
    final_norm: "norm",
    head: "lm_head",
};

fn describe(file: &ConfigFile) -> Result<Description, CheckpointError> {
    let defaults =
        Defaults { family: "llama", max_positions: 2048, rms_norm_eps: 1e-6, kv_heads: None, rope_kinds: ROPE_KINDS };
    let mut config = base(file, defaults)?;
    foreign::same_window_in_all_layers(file, None, config.max_position_embeddings)?;
    let attention_bias = file.flag(&["attention_bias"], false)?;
    config.layer.attention.qkv_bias = attention_bias;
    config.layer.attention.output_bias = attention_bias;
    config.layer.mlp.bias = file.flag(&["mlp_bias"], false)?;
    config.dialog_format = Some(DialogFormat::Llama2);
    Ok(Description { config, names: NAMES, tied: file.flag(&["tie_word_embeddings"], false)? })
}

/// What a family assumes where its configuration is silent.
pub(super) struct Defaults {
    pub family: &'static str,
    pub max_positions: usize,
    pub rms_norm_eps: f64,
    /// Key-value heads where the key is missing; where it is null, or for None, there are as many as query heads.
    pub kv_heads: Option<usize>,
    /// Values of `rope_type` that it has.
    pub rope_kinds: &'static [&'static str],
}

/// The keys that Llama, Mistral and Phi-3 share: grouped-query attention with RoPE, SwiGLU, RMS norms. Without sliding window and
/// biases.
pub(super) fn base(file: &ConfigFile, defaults: Defaults) -> Result<ModelConfig, CheckpointError> {
    const HEADS: &[&str] = &["num_attention_heads"];
    const KV_HEADS: &[&str] = &["num_key_value_heads"];
    file.choice(&["hidden_act"], &["silu", "swish"])?;
    let hidden_size = file.count(&["hidden_size"], None, limits::WIDTH)?;
    let queries = file.count(HEADS, None, limits::HEADS)?;
    let silent = if file.has("num_key_value_heads") { queries } else { defaults.kv_heads.unwrap_or(queries) };
    let key_values = file.count(KV_HEADS, Some(silent), limits::HEADS)?;
    let head_dim = match file.value(&["head_dim"]) {
        Some(_) => Some(file.count(&["head_dim"], None, limits::HEAD_DIM)?),
        None => None,
    };
    let heads = file.heads(hidden_size, (HEADS, queries), (KV_HEADS, key_values), head_dim)?;
    let max_positions = file.count(&["max_position_embeddings"], Some(defaults.max_positions), limits::POSITIONS)?;
    let (rope, max_position_embeddings) = Rotary::read(file, defaults.rope_kinds)?.rope(heads.dim, max_positions)?;
    let norm = Norm::Rms { eps: file.epsilon(&["rms_norm_eps"], Some(defaults.rms_norm_eps))? };
    Ok(ModelConfig {
        family: defaults.family,
        vocab_size: file.count(&["vocab_size"], None, limits::VOCABULARY)?,
        hidden_size,
        num_layers: file.count(&["num_hidden_layers"], None, limits::LAYERS)?,
        layer: LayerSpec {
            attention: AttentionSpec::new(heads.queries, heads.key_values, heads.dim),
            mlp: MlpSpec {
                kind: Mlp::SwiGlu,
                width: file.count(&["intermediate_size"], None, limits::WIDTH)?,
                bias: false,
            },
            norm,
            residual: Residual::Sequential,
        },
        final_norm: norm,
        positions: Positions::Rotary(rope),
        max_position_embeddings,
        dialog_format: None,
    })
}

/// Refuses biases in a family whose linear maps have none.
pub(super) fn refuse_biases(file: &ConfigFile) -> Result<(), CheckpointError> {
    ["attention_bias", "mlp_bias"].iter().try_for_each(|key| file.refuse_flag(key, "this family has no such biases"))
}

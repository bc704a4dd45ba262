//! Falcon: 7B (multi-query attention, one norm a layer), 40B (grouped-query attention, two norms a layer: "new decoder
//! architecture"), the RW models (ALiBi for positions, biases, attention and MLP one after the other), and their configurations of
//! before and after the model entered transformers.

use super::{
    Description, Family,
    config_file::{ConfigFile, Heads, limits},
    foreign, llama,
    rotary::Rotary,
    tensor_names::TensorNames,
};
use crate::{
    checkpoint::CheckpointError,
    config::{AttentionSpec, LayerSpec, Mlp, MlpSpec, ModelConfig, Norm, Positions, QkvOrder, Residual},
};

pub(super) const FAMILY: Family = Family {
    architectures: &["FalconForCausalLM", "RWForCausalLM"],
    base: &["FalconModel", "RWModel"],
    model_types: &["falcon", "RefinedWeb", "RefinedWebModel"],
    names: NAMES,
    describe,
};

const NAMES: TensorNames = TensorNames {
    base: "transformer.",
    embedding: "word_embeddings",
    layers: "h.",
    attention_norm: "input_layernorm",
    // No Falcon has them, and so there are no names.
    query_key_norms: ["", ""],
    mlp_norm: "post_attention_layernorm",
    qkv: &["self_attention.query_key_value"],
    attention_output: "self_attention.dense",
    mlp_in: &["mlp.dense_h_to_4h"],
    mlp_out: "mlp.dense_4h_to_h",
    final_norm: "ln_f",
    head: "lm_head",
};

const HEADS: &[&str] = &["num_attention_heads", "n_head"];
const KV_HEADS: &[&str] = &["num_kv_heads", "n_head_kv"];

fn describe(file: &ConfigFile) -> Result<Description, CheckpointError> {
    file.refuse_flag("apply_residual_connection_post_layernorm", "no published Falcon adds what is normalised")?;
    file.choice(&["activation"], &["gelu"])?;
    let hidden_size = file.count(&["hidden_size", "n_embed"], None, limits::WIDTH)?;
    // The first 40B files say it by their model type alone, which they share with the RW models.
    let old_40b = file.value(&["model_type"]).is_some_and(|name| name == "RefinedWeb")
        && file.flag(&["parallel_attn"], true)?
        && !file.flag(&["alibi"], false)?;
    let grouped = file.flag(&["new_decoder_architecture"], old_40b)?;
    let heads = heads(file, hidden_size, grouped)?;
    let (residual, attention_norm, mlp_norm) = residual(file, grouped)?;
    let bias = file.flag(&["bias"], false)?;
    let multi_query = !grouped && heads.key_values == 1;
    let max_positions = file.count(&["max_position_embeddings"], Some(2048), limits::POSITIONS)?;
    foreign::same_window_in_all_layers(file, None, max_positions)?;
    let rotary = Rotary::read(file, llama::ROPE_KINDS)?;
    let (positions, max_position_embeddings) = if file.flag(&["alibi"], false)? {
        rotary.refuse_scaling("alibi is true, so positions are attention biases")?;
        (Positions::Alibi, max_positions)
    } else {
        let (rope, longest) = rotary.rope(heads.dim, max_positions)?;
        (Positions::Rotary(rope), longest)
    };
    let norm = Norm::Layer { eps: file.epsilon(&["layer_norm_epsilon"], Some(1e-5))? };
    Ok(Description {
        config: ModelConfig {
            family: "falcon",
            vocab_size: file.count(&["vocab_size"], None, limits::VOCABULARY)?,
            hidden_size,
            num_layers: file.count(&["num_hidden_layers", "n_layer"], None, limits::LAYERS)?,
            layer: LayerSpec {
                attention: AttentionSpec {
                    // One group for every key-value head; without grouping each head has its own [query, key, value].
                    qkv_order: if multi_query { QkvOrder::Blocks } else { QkvOrder::Groups },
                    qkv_bias: bias,
                    output_bias: bias,
                    ..AttentionSpec::new(heads.queries, heads.key_values, heads.dim)
                },
                mlp: MlpSpec {
                    kind: Mlp::Gelu,
                    width: file.count(&["ffn_hidden_size"], Some(4 * hidden_size), 4 * limits::WIDTH)?,
                    bias,
                },
                norm,
                residual,
            },
            final_norm: norm,
            positions,
            max_position_embeddings,
            dialog_format: None,
        },
        names: TensorNames { attention_norm, mlp_norm, ..NAMES },
        tied: file.flag(&["tie_word_embeddings"], true)?,
    })
}

fn heads(file: &ConfigFile, hidden_size: usize, grouped: bool) -> Result<Heads, CheckpointError> {
    let queries = file.count(HEADS, None, limits::HEADS)?;
    // Without groups the heads are one or as many as the queries; published files of such models name any number.
    let named = file.count(KV_HEADS, Some(queries), limits::HEADS)?;
    let key_values = if grouped {
        named
    } else if file.flag(&["multi_query"], true)? {
        1
    } else if named == queries {
        queries
    } else {
        return Err(
            file.wrong(KV_HEADS, format!("{queries}, the number of heads, as neither groups nor multi_query are on"))
        );
    };
    let heads = file.heads(hidden_size, (HEADS, queries), (KV_HEADS, key_values), None)?;
    if file.count(&["head_dim"], Some(heads.dim), limits::HEAD_DIM)? != heads.dim {
        return Err(file.wrong(&["head_dim"], format!("{}, hidden_size divided by the heads", heads.dim)));
    }
    Ok(heads)
}

/// The form of a layer, and the names of its norms.
fn residual(file: &ConfigFile, grouped: bool) -> Result<(Residual, &'static str, &'static str), CheckpointError> {
    let parallel = file.flag(&["parallel_attn"], true)?;
    if grouped && !parallel {
        return Err(file.wrong(&["parallel_attn"], "true: the new decoder architecture is always parallel"));
    }
    let norms = file.count(&["num_ln_in_parallel_attn"], Some(if grouped { 2 } else { 1 }), 2)?;
    match (parallel, grouped, norms) {
        (false, ..) => Ok((Residual::Sequential, "input_layernorm", "post_attention_layernorm")),
        (true, true, 2) => Ok((Residual::Parallel, "ln_attn", "ln_mlp")),
        (true, _, 1) => Ok((Residual::ParallelSharedNorm, "input_layernorm", "")),
        (true, ..) => Err(file.wrong(&["num_ln_in_parallel_attn"], "1 without the new decoder architecture")),
    }
}

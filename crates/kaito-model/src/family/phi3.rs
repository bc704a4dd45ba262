//! Phi-3 mini: fused projections; 4k with a sliding window, 128k with LongRoPE.

use super::{Description, Family, config_file::ConfigFile, foreign, llama, mistral, tensor_names::TensorNames};
use crate::checkpoint::CheckpointError;

pub(super) const FAMILY: Family = Family {
    architectures: &["Phi3ForCausalLM"],
    base: &["Phi3Model"],
    model_types: &["phi3"],
    names: NAMES,
    describe,
};

const NAMES: TensorNames = TensorNames { qkv: &["self_attn.qkv_proj"], mlp_in: &["mlp.gate_up_proj"], ..llama::NAMES };

fn describe(file: &ConfigFile) -> Result<Description, CheckpointError> {
    let defaults = llama::Defaults {
        family: "phi3",
        max_positions: 4096,
        rms_norm_eps: 1e-5,
        kv_heads: None,
        rope_kinds: &["default", "longrope"],
    };
    let window = mistral::sliding_window(file, None)?;
    let mut config = llama::base(file, defaults)?;
    config.layer.attention.sliding_window = window;
    llama::refuse_biases(file)?;
    foreign::same_window_in_all_layers(file, window, config.max_position_embeddings)?;
    Ok(Description { config, names: NAMES, tied: file.flag(&["tie_word_embeddings"], false)? })
}

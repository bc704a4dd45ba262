//! Phi-3 mini: fused projections; 4k with a window, 128k with long-rope.

use super::{Description, Family, config_file::ConfigFile, foreign, llama, mistral, tensor_names::TensorNames};
use crate::{checkpoint::CheckpointError, config::ModelConfig};

pub(super) const FAMILY: Family =
    Family { architectures: &["Phi3ForCausalLM"], base: &["Phi3Model"], model_types: &["phi3"], describe };

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
    let config = ModelConfig { sliding_window: window, ..llama::base(file, defaults)? };
    llama::refuse_biases(file)?;
    foreign::same_window_in_all_layers(file, window, config.max_position_embeddings)?;
    Ok(Description { config, names: NAMES, tied: file.flag(&["tie_word_embeddings"], false)? })
}

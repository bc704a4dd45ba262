//! Phi-3 mini: fused projections; 4k with a window, 128k with long-rope.

use super::{
    Description, Family,
    config_file::{ConfigFile, limits},
    llama, mistral,
    tensor_names::TensorNames,
};
use crate::{
    checkpoint::CheckpointError,
    config::{ModelConfig, Rope, RopeScaling},
};

pub(super) const FAMILY: Family = Family { architectures: &["Phi3ForCausalLM"], model_types: &["phi3"], describe };

const NAMES: TensorNames = TensorNames { qkv: &["self_attn.qkv_proj"], mlp_in: &["mlp.gate_up_proj"], ..llama::NAMES };

fn describe(file: &ConfigFile) -> Result<Description, CheckpointError> {
    let defaults = llama::Defaults { family: "phi3", max_positions: 4096, rms_norm_eps: 1e-5, kv_heads: None };
    let config = llama::base(file, defaults)?;
    if file.number(&["partial_rotary_factor"], Some(1.0), 0.0..=1.0)? != 1.0 {
        return Err(file.wrong(&["partial_rotary_factor"], "1: Phi-3 mini rotates whole heads"));
    }
    let scaling = long_rope(file, &config)?;
    let sliding_window = mistral::sliding_window(file, None)?;
    Ok(Description {
        config: ModelConfig { rope: Rope { scaling, ..config.rope }, sliding_window, ..config },
        names: NAMES,
        tied: file.flag(&["tie_word_embeddings"], false)?,
    })
}

fn long_rope(file: &ConfigFile, config: &ModelConfig) -> Result<RopeScaling, CheckpointError> {
    let Some(scaling) = file.object("rope_scaling")? else { return Ok(RopeScaling::None) };
    if scaling.value(&["type", "rope_type"]).is_none() {
        return Err(scaling.wrong(&["type"], "longrope or su"));
    }
    scaling.choice(&["type", "rope_type"], &["longrope", "su"])?;
    const ORIGINAL: &[&str] = &["original_max_position_embeddings"];
    // ln(original) divides, so 1 is out.
    let original = match scaling.value(ORIGINAL) {
        Some(_) => scaling.count(ORIGINAL, None, limits::POSITIONS)?,
        None => file.count(ORIGINAL, Some(4096), limits::POSITIONS)?,
    };
    if original < 2 {
        return Err(file.wrong(ORIGINAL, "at least 2"));
    }
    let pairs = config.head_dim / 2;
    let extension = config.max_position_embeddings as f64 / original as f64;
    Ok(RopeScaling::LongRope {
        short_factor: scaling.factors("short_factor", pairs)?,
        long_factor: scaling.factors("long_factor", pairs)?,
        original_max_position_embeddings: original,
        attention_factor: if extension <= 1.0 { 1.0 } else { (1.0 + extension.ln() / (original as f64).ln()).sqrt() },
    })
}

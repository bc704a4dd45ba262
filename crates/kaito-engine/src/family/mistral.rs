//! Mistral 7B: Llama with grouped heads and, in its first version, a sliding window.

use super::{
    Description, Family,
    config_file::{ConfigFile, limits},
    llama,
};
use crate::{checkpoint::CheckpointError, config::ModelConfig};

pub(super) const FAMILY: Family =
    Family { architectures: &["MistralForCausalLM"], model_types: &["mistral"], describe };

fn describe(file: &ConfigFile) -> Result<Description, CheckpointError> {
    let defaults = llama::Defaults { family: "mistral", max_positions: 131_072, rms_norm_eps: 1e-6, kv_heads: Some(8) };
    if file.value(&["rope_scaling"]).is_some() {
        return Err(file.wrong(&["rope_scaling"], "null: Mistral models have none"));
    }
    let config = ModelConfig { sliding_window: sliding_window(file, Some(4096))?, ..llama::base(file, defaults)? };
    Ok(Description { config, names: llama::NAMES, tied: file.flag(&["tie_word_embeddings"], false)? })
}

/// The window; null means none, `silent` is what a missing key means.
pub(super) fn sliding_window(file: &ConfigFile, silent: Option<usize>) -> Result<Option<usize>, CheckpointError> {
    match (file.value(&["sliding_window"]), file.has("sliding_window")) {
        (Some(_), _) => file.count(&["sliding_window"], None, limits::POSITIONS).map(Some),
        (None, true) => Ok(None),
        (None, false) => Ok(silent),
    }
}

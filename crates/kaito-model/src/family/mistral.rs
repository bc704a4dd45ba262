//! Mistral 7B: Llama with grouped-query attention and, in its first version, a sliding window.

use super::{
    Description, Family,
    config_file::{ConfigFile, limits},
    foreign, llama,
};
use crate::checkpoint::CheckpointError;

pub(super) const FAMILY: Family = Family {
    architectures: &["MistralForCausalLM"],
    base: &["MistralModel"],
    model_types: &["mistral"],
    names: llama::NAMES,
    describe,
};

fn describe(file: &ConfigFile) -> Result<Description, CheckpointError> {
    let defaults = llama::Defaults {
        family: "mistral",
        max_positions: 131_072,
        rms_norm_eps: 1e-6,
        kv_heads: Some(8),
        rope_kinds: &["default"],
    };
    let window = sliding_window(file, Some(4096))?;
    let mut config = llama::base(file, defaults)?;
    config.layer.attention.sliding_window = window;
    llama::refuse_biases(file)?;
    foreign::same_window_in_all_layers(file, window, config.max_position_embeddings)?;
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

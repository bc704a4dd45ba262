//! Fields that change what a model computes and that no family here reads: a soft cap of the scores, norms on queries and keys,
//! experts. A checkpoint that carries one was made for another program; if the field were ignored, the model would give other
//! tokens, so it is refused.

use serde_json::{Value, json};

use super::config_file::ConfigFile;
use crate::checkpoint::CheckpointError;

/// The fields, each with the value that changes nothing; null changes nothing either.
const FIELDS: &[(&str, Neutral)] = &[
    ("quantization_config", Neutral::None),
    ("is_encoder_decoder", Neutral::False),
    ("add_cross_attention", Neutral::False),
    ("use_alibi", Neutral::False),
    ("use_parallel_residual", Neutral::False),
    ("qk_norm", Neutral::False),
    ("use_qk_norm", Neutral::False),
    ("qk_layernorm", Neutral::False),
    ("qkv_bias", Neutral::False),
    ("use_qkv_bias", Neutral::False),
    ("rotary_pct", Neutral::Number(1.0)),
    ("rope_local_base_freq", Neutral::None),
    ("rope_interleave", Neutral::False),
    ("no_rope_layers", Neutral::None),
    ("no_rope_layer_interval", Neutral::Number(0.0)),
    ("embedding_multiplier", Neutral::Number(1.0)),
    ("residual_multiplier", Neutral::Number(1.0)),
    ("attention_multiplier", Neutral::None),
    ("query_pre_attn_scalar", Neutral::None),
    ("scale_emb", Neutral::Number(1.0)),
    ("logit_scale", Neutral::Number(1.0)),
    ("logits_scaling", Neutral::Number(1.0)),
    ("logit_scaling", Neutral::Number(1.0)),
    ("final_logit_softcapping", Neutral::Number(0.0)),
    ("attn_logit_softcapping", Neutral::Number(0.0)),
    ("clip_qkv", Neutral::None),
    ("num_local_experts", Neutral::Number(0.0)),
    ("num_experts", Neutral::Number(0.0)),
    ("attention_chunk_size", Neutral::None),
    ("attention_sinks", Neutral::False),
];

/// The value of a field that changes nothing.
enum Neutral {
    /// None but null.
    None,
    False,
    Number(f64),
}

/// Refuses what would change the tokens.
pub(super) fn refuse(file: &ConfigFile) -> Result<(), CheckpointError> {
    for (key, neutral) in FIELDS {
        let Some(value) = file.value(&[key]) else { continue };
        let (harmless, expected) = match neutral {
            Neutral::None => (false, json!(null)),
            Neutral::False => (*value == Value::Bool(false), json!(false)),
            Neutral::Number(number) => (value.as_f64() == Some(*number), json!(number)),
        };
        if !harmless {
            return Err(file.wrong(&[key], format!("{expected} or none: this is not supported")));
        }
    }
    dtypes(file)
}

/// The old and the new name of the type that the weights were saved in. It changes nothing here, since each tensor names its
/// own; but a configuration that contradicts itself was put together of two.
fn dtypes(file: &ConfigFile) -> Result<(), CheckpointError> {
    let name = |key: &str| file.value(&[key])?.as_str().map(|name| name.trim_start_matches("torch.").to_owned());
    match (name("dtype"), name("torch_dtype")) {
        (Some(new), Some(old)) if new != old => Err(file.wrong(&["dtype"], format!("what torch_dtype says, {old}"))),
        _ => Ok(()),
    }
}

/// Refuses a window that not all layers have. `window` is what the family makes of `sliding_window`.
pub(super) fn same_window_in_all_layers(
    file: &ConfigFile,
    window: Option<usize>,
    max_positions: usize,
) -> Result<(), CheckpointError> {
    // A window as long as the longest sequence hides nothing.
    let hides = window.is_some_and(|window| window < max_positions);
    let given = file.value(&["sliding_window"]).is_some();
    let used = file.flag(&["use_sliding_window"], hides)?;
    if file.has("use_sliding_window") && given && used != hides && (hides || window.is_none()) {
        let reason = if hides { "true: this family uses its window" } else { "false: this family has no window" };
        return Err(file.wrong(&["use_sliding_window"], reason));
    }
    let Some(types) = file.value(&["layer_types"]) else { return Ok(()) };
    let (full, sliding) = ("full_attention", "sliding_attention");
    let possible: &[&str] = match (window, hides) {
        (None, _) => &[full],
        (Some(_), false) => &[full, sliding],
        (Some(_), true) => &[sliding],
    };
    match types.as_array() {
        Some(types) if types.iter().all(|kind| possible.iter().any(|known| kind == known)) => Ok(()),
        _ => Err(file.wrong(&["layer_types"], format!("{} for each layer", possible.join(" or ")))),
    }
}

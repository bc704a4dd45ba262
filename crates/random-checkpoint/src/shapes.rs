//! Shapes beyond the catalogue: models that kaito can serve and that measurements elsewhere are quoted for.

use kaito_presets::{DType, Preset, Shape, UnknownPreset};

/// A preset, or a shape of this file.
pub fn find(name: &str) -> Result<Preset, UnknownPreset> {
    match name.to_lowercase().as_str() {
        "tinyllama-1.1b" => tinyllama(),
        _ => kaito_presets::find(name).copied(),
    }
}

/// Llama 2's architecture and vocabulary, with grouped heads: the published `config.json` of TinyLlama-1.1B.
fn tinyllama() -> Result<Preset, UnknownPreset> {
    let llama = kaito_presets::find("llama-2-7b")?;
    let shape = Shape {
        hidden_size: 2048,
        num_layers: 22,
        num_heads: 32,
        num_kv_heads: 4,
        head_dim: 64,
        intermediate_size: 5632,
        max_position_embeddings: 2048,
        ..llama.shape
    };
    let (name, hub_id) = ("tinyllama-1.1b", "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T");
    Ok(Preset { name, aliases: &[], hub_id, dtype: DType::Bf16, shape, ..*llama })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tinyllama_has_the_published_number_of_parameters() {
        assert_eq!(find("TinyLlama-1.1B").unwrap().shape.parameters(), 1_100_048_384);
    }

    #[test]
    fn every_other_name_is_a_presets() {
        assert_eq!(find("llama2-7b").unwrap().name, "llama-2-7b");
        assert!(find("tinyllama-2b").is_err());
    }
}

use std::fmt;

use serde::Serialize;

/// Element type of weights or of cached keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// The upper half of a binary32.
    Bf16,
    /// IEEE 754 binary16.
    F16,
}

impl DType {
    /// Bytes of one element.
    pub fn size(self) -> u64 {
        match self {
            DType::F32 => 4,
            DType::Bf16 | DType::F16 => 2,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            DType::F32 => "f32",
            DType::Bf16 => "bf16",
            DType::F16 => "f16",
        })
    }
}

/// Line of published models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// Llama 2.
    Llama,
    /// Falcon.
    Falcon,
    /// Mistral.
    Mistral,
    /// Phi-3.
    Phi3,
}

impl Family {
    /// `model_type` in a published `config.json`.
    pub fn model_type(self) -> &'static str {
        match self {
            Family::Llama => "llama",
            Family::Falcon => "falcon",
            Family::Mistral => "mistral",
            Family::Phi3 => "phi3",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Family::Llama => "Llama 2",
            Family::Falcon => "Falcon",
            Family::Mistral => "Mistral",
            Family::Phi3 => "Phi-3",
        })
    }
}

/// How a layer adds to the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Residual {
    /// Attention, then the MLP, each behind a norm of its own.
    Sequential,
    /// Attention and MLP side by side behind one norm: Falcon 7B.
    ParallelSharedNorm,
    /// Attention and MLP side by side, each behind a norm of its own: Falcon 40B.
    Parallel,
}

/// The dimensions of a published decoder-only transformer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Shape {
    /// Line of models it belongs to.
    pub family: Family,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of layers.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Inner width of the MLP.
    pub intermediate_size: usize,
    /// Rows of the embedding and of the output head.
    pub vocab_size: usize,
    /// Longest sequence the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// A query sees this many positions, its own included; `None`: all before it.
    pub sliding_window: Option<usize>,
    /// Rotary position embedding.
    pub rope: Rope,
    /// Epsilon of the RMS norm or, for Falcon, of the layer norm.
    pub norm_eps: f64,
    /// How a layer adds to the residual stream.
    pub residual: Residual,
    /// Whether the output head is the embedding. The published files hold a copy of it all the same.
    pub tied_embeddings: bool,
    /// Token that begins a sequence.
    pub bos_token_id: u32,
    /// Tokens that end a sequence; the first is `config.json`'s, all together are `generation_config.json`'s.
    pub eos_token_ids: &'static [u32],
    /// Padding token, where one is published.
    pub pad_token_id: Option<u32>,
}

/// Rotary position embedding.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Rope {
    /// Base of the geometric progression of wavelengths.
    pub theta: f64,
    /// Factors for long contexts, where the model has them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub long: Option<LongRope>,
}

/// Phi-3's factors for long contexts, one for each pair of components of a head.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LongRope {
    /// Length above which the long factors apply.
    pub original_max_position_embeddings: usize,
    /// `head_dim / 2` divisors for sequences up to the original length.
    pub short_factor: &'static [f64],
    /// `head_dim / 2` divisors for longer ones.
    pub long_factor: &'static [f64],
}

impl Shape {
    /// Parameters of the model; an output head that is the embedding counts once.
    pub fn parameters(&self) -> u64 {
        let embeddings = if self.tied_embeddings { 1 } else { 2 };
        let layer = self.layer_matrix_parameters() + self.layer_norm_parameters();
        embeddings * self.embedding_parameters() + self.num_layers as u64 * layer + self.final_norm_parameters()
    }

    /// Parameters of the matrices of one layer.
    pub(crate) fn layer_matrix_parameters(&self) -> u64 {
        let hidden = self.hidden_size as u64;
        let heads = self.num_heads as u64;
        let kv_heads = self.num_kv_heads as u64;
        let head_dim = self.head_dim as u64;
        let attention = hidden * (heads + 2 * kv_heads) * head_dim + heads * head_dim * hidden;
        attention + self.mlp_matrices() * hidden * self.intermediate_size as u64
    }

    /// Parameters of the norms of one layer.
    pub(crate) fn layer_norm_parameters(&self) -> u64 {
        let norms = match self.residual {
            Residual::ParallelSharedNorm => 1,
            Residual::Sequential | Residual::Parallel => 2,
        };
        norms * self.final_norm_parameters()
    }

    /// Parameters of the norm before the output head.
    pub(crate) fn final_norm_parameters(&self) -> u64 {
        let vectors = match self.family {
            // Weight and bias.
            Family::Falcon => 2,
            // Weight.
            Family::Llama | Family::Mistral | Family::Phi3 => 1,
        };
        vectors * self.hidden_size as u64
    }

    /// Matrices of a layer's MLP, which is also how many of its inner vectors are alive at once.
    pub(crate) fn mlp_matrices(&self) -> u64 {
        match self.family {
            // Up and down.
            Family::Falcon => 2,
            // Gate, up and down.
            Family::Llama | Family::Mistral | Family::Phi3 => 3,
        }
    }

    /// Parameters in the published files, which hold an output head even where it is the embedding.
    pub fn stored_parameters(&self) -> u64 {
        self.parameters() + if self.tied_embeddings { self.embedding_parameters() } else { 0 }
    }

    /// Bytes of all weights in memory.
    pub fn weights_bytes(&self, dtype: DType) -> u64 {
        self.parameters() * dtype.size()
    }

    /// Bytes of the keys and values of one token, all layers together.
    pub fn kv_cache_bytes_per_token(&self, dtype: DType) -> u64 {
        2 * self.num_layers as u64 * self.num_kv_heads as u64 * self.head_dim as u64 * dtype.size()
    }

    /// Parameters of the embedding, and of the output head.
    pub(crate) fn embedding_parameters(&self) -> u64 {
        self.vocab_size as u64 * self.hidden_size as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PRESETS, find};

    /// The parameter counts that the hub shows for the published safetensors files.
    #[test]
    fn the_parameters_of_every_shape_are_those_of_the_published_files() {
        for (name, published) in [
            ("llama-2-7b", 6_738_415_616),
            ("llama-2-7b-chat", 6_738_415_616),
            ("llama-2-13b", 13_015_864_320),
            ("llama-2-13b-chat", 13_015_864_320),
            ("llama-2-70b", 68_976_648_192),
            ("llama-2-70b-chat", 68_976_648_192),
            ("falcon-7b", 7_217_189_760),
            ("falcon-7b-instruct", 7_217_189_760),
            ("falcon-40b", 41_835_970_560),
            ("falcon-40b-instruct", 41_835_970_560),
            ("mistral-7b", 7_241_732_096),
            ("mistral-7b-instruct", 7_241_732_096),
            ("phi-3-mini-4k-instruct", 3_821_079_552),
            ("phi-3-mini-128k-instruct", 3_821_079_552),
        ] {
            assert_eq!(find(name).unwrap().shape.stored_parameters(), published, "{name}");
        }
    }

    #[test]
    fn a_tied_head_is_held_in_memory_once() {
        let falcon = find("falcon-7b").unwrap().shape;
        assert_eq!(falcon.parameters(), 6_921_720_704);
        assert_eq!(falcon.weights_bytes(DType::Bf16), 13_843_441_408);
    }

    /// Llama 2 7B in 16 bits keeps half a mebibyte a token; grouped queries divide that by queries per group.
    #[test]
    fn keys_and_values_of_one_token() {
        for (name, dtype, bytes) in [
            ("llama-2-7b", DType::F16, 524_288),
            ("llama-2-7b", DType::F32, 1_048_576),
            ("llama-2-70b", DType::F16, 327_680),
            ("mistral-7b", DType::Bf16, 131_072),
            ("falcon-7b", DType::Bf16, 8_192),
            ("phi-3-mini-4k-instruct", DType::Bf16, 393_216),
        ] {
            assert_eq!(find(name).unwrap().shape.kv_cache_bytes_per_token(dtype), bytes, "{name} {dtype}");
        }
    }

    #[test]
    fn shapes_are_consistent() {
        for preset in PRESETS {
            let shape = preset.shape;
            assert_eq!(shape.num_heads * shape.head_dim, shape.hidden_size, "{}", preset.name);
            assert_eq!(shape.num_heads % shape.num_kv_heads, 0, "{}", preset.name);
            assert_eq!(shape.num_heads % preset.workload.ranks as usize, 0, "{}", preset.name);
            assert!(!shape.eos_token_ids.is_empty(), "{}", preset.name);
            if let Some(long) = shape.rope.long {
                assert_eq!(long.short_factor.len(), shape.head_dim / 2, "{}", preset.name);
                assert_eq!(long.long_factor.len(), shape.head_dim / 2, "{}", preset.name);
                assert!(
                    long.long_factor.iter().zip(long.short_factor).all(|(long, short)| *long >= 1.0 && *short >= 1.0)
                );
            }
        }
    }
}

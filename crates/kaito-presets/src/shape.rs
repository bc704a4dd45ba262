use std::fmt;

use kaito_spec::{AttentionSpec, DType, LayerSpec, MlpSpec, Norm, QkvOrder, Residual};
use serde::{Serialize, Serializer};

use crate::Family;

/// The dimensions of a published decoder-only transformer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Shape {
    /// Line of models it belongs to.
    pub family: &'static Family,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of layers.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads: fewer than query heads in grouped-query attention, one in multi-query attention.
    pub num_kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Inner width of the MLP.
    pub intermediate_size: usize,
    /// Rows of the embedding and of the output head.
    pub vocab_size: usize,
    /// Longest sequence the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// Sliding-window attention: a query sees this many positions, its own included; `None`: all before it.
    pub sliding_window: Option<usize>,
    /// Rotary position embedding.
    pub rope: Rope,
    /// Epsilon of the RMS norm or, for Falcon, of the layer norm.
    pub norm_eps: f64,
    /// How a layer adds to the residual stream.
    #[serde(serialize_with = "text")]
    pub residual: Residual,
    /// Order of the heads in the fused query-key-value projection.
    #[serde(skip)]
    pub qkv_order: QkvOrder,
    /// Whether the output head is the embedding. Falcon's published files hold a copy of it all the same.
    pub tied_embeddings: bool,
    /// Token that begins a sequence.
    pub bos_token_id: u32,
    /// Tokens that end a sequence; the first is `config.json`'s, all together are `generation_config.json`'s.
    pub eos_token_ids: &'static [u32],
    /// Padding token, where one is published.
    pub pad_token_id: Option<u32>,
}

/// Serialises what has a name for people under that name.
pub(crate) fn text<T: fmt::Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// Rotary position embedding (RoPE).
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Rope {
    /// Base of the geometric progression of wavelengths.
    pub theta: f64,
    /// Factors for long contexts, where the model has them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub long: Option<LongRope>,
}

/// LongRoPE: Phi-3's factors for long contexts, one for each pair of components of a head.
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
    /// What each of its layers is.
    pub fn layer(&self) -> LayerSpec {
        LayerSpec {
            attention: AttentionSpec {
                sliding_window: self.sliding_window,
                qkv_order: self.qkv_order,
                ..AttentionSpec::new(self.num_heads, self.num_kv_heads, self.head_dim)
            },
            mlp: MlpSpec { kind: self.family.mlp, width: self.intermediate_size, bias: false },
            norm: self.norm(),
            residual: self.residual,
        }
    }

    /// Every norm of the model.
    pub(crate) fn norm(&self) -> Norm {
        let eps = self.norm_eps as f32;
        if self.family.layer_norm { Norm::Layer { eps } } else { Norm::Rms { eps } }
    }

    /// Parameters of the model; an output head that is the embedding counts once.
    pub fn parameters(&self) -> u64 {
        let (layer, hidden) = (self.layer(), self.hidden_size);
        let embeddings = if self.tied_embeddings { 1 } else { 2 };
        embeddings * self.embedding_parameters()
            + self.num_layers as u64 * (layer.matrix_parameters(hidden) + layer.vector_parameters(hidden))
            + self.norm().parameters(hidden)
    }

    /// Parameters in the published files, which hold an output head even where it is the embedding.
    pub fn stored_parameters(&self) -> u64 {
        self.parameters() + if self.tied_embeddings { self.embedding_parameters() } else { 0 }
    }

    /// Bytes of all weights in memory.
    pub fn weights_bytes(&self, dtype: DType) -> u64 {
        self.parameters() * dtype.size() as u64
    }

    /// Bytes of the KV cache that one token takes, all layers together.
    pub fn kv_cache_bytes_per_token(&self, dtype: DType) -> u64 {
        2 * self.num_layers as u64 * self.num_kv_heads as u64 * self.head_dim as u64 * dtype.size() as u64
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
        // Published without a copy of it.
        assert_eq!(find("smollm2").unwrap().shape.parameters(), 134_515_008);
    }

    /// Llama 2 7B in 16 bits keeps half a mebibyte a token; grouped-query attention divides that by the queries of a group.
    #[test]
    fn kv_cache_of_one_token() {
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

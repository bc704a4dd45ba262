//! What a model is, as data.
//!
//! A family translates its published `config.json` (or Meta's `params.json`) into a [`ModelConfig`]; nothing after
//! that point knows which family a model belongs to.

pub use kaito_spec::{
    AttentionSpec, LayerSpec, LinearKind, LinearSpec, Mlp, MlpSpec, Norm, QkvOrder, Residual, RopePairing,
};

/// Everything the forward pass of a decoder-only transformer must know, besides the weights.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Name of the family, for logs, labels and file names alone (`llama`, `falcon`, `mistral`, `phi3`).
    pub family: &'static str,
    /// Rows of the embedding and of the output head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of transformer layers.
    pub num_layers: usize,
    /// What each of the layers is. The decoder has one specification for all of them; models whose layers differ (Gemma 2
    /// alternates between two windows) would make it a list of as many as there are layers.
    pub layer: LayerSpec,
    /// Normalisation before the output head.
    pub final_norm: Norm,
    /// How a token's place is told, in all layers: a step makes one table of angles.
    pub positions: Positions,
    /// Longest sequence the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// How a conversation is written where the model comes without a chat template.
    pub dialog_format: Option<DialogFormat>,
}

impl ModelConfig {
    /// Weights in the matrices of all layers, by which every token is multiplied.
    pub fn layer_parameters(&self) -> u64 {
        self.num_layers as u64 * self.layer.matrix_parameters(self.hidden_size)
    }

    /// Weights of the output head, tied or not, by which a token is multiplied whose successor is chosen.
    pub fn head_parameters(&self) -> u64 {
        self.vocab_size as u64 * self.hidden_size as u64
    }
}

/// How a conversation is written where a model comes without a chat template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DialogFormat {
    /// Llama 2's: `[INST] <<SYS>> ... <</SYS>> ... [/INST]`.
    Llama2,
}

/// How a token's place in its sequence is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Positions {
    /// Rotary position embedding (RoPE): queries and keys are rotated by an angle that grows with the position.
    Rotary(Rope),
    /// Attention with linear biases (ALiBi): scores gain by the position of the key, with a slope of its own for each query head.
    /// The first Falcons.
    Alibi,
}

/// Rotary position embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the geometric progression of wavelengths.
    pub theta: f64,
    /// Components of a head that are rotated, the first ones; even.
    pub width: usize,
    /// Which of them form a rotated pair.
    pub pairing: RopePairing,
    /// How frequencies are changed for contexts beyond those of pre-training.
    pub scaling: RopeScaling,
}

/// How rotary frequencies are changed for long contexts.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Frequencies as pre-trained.
    None,
    /// Positions divided by a constant factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Llama 3.1: long wavelengths are stretched by `factor`, short ones stay, and those between the two bounds are interpolated.
    Llama3 {
        /// How much long wavelengths are stretched.
        factor: f64,
        /// Wavelengths longer than the original length divided by this are long.
        low_freq_factor: f64,
        /// Wavelengths shorter than the original length divided by this are short.
        high_freq_factor: f64,
        /// Length that the model was pre-trained on.
        original_max_position_embeddings: usize,
    },
    /// YaRN (Peng et al. 2023): as above, with bounds by how many full rotations a pair makes within the trained length. cos and
    /// sin are multiplied by `attention_factor`.
    Yarn {
        /// How much long wavelengths are stretched.
        factor: f64,
        /// Pairs that rotate more often than this within the trained length stay.
        beta_fast: f64,
        /// Pairs that rotate less often than this are stretched.
        beta_slow: f64,
        /// The trained length.
        max_position_embeddings: usize,
        /// Factor of cos and sin.
        attention_factor: f64,
    },
    /// LongRoPE (Phi-3): each frequency is divided by a factor of its own; the long factors apply to a sequence iff
    /// its total length exceeds `original_max_position_embeddings`. cos and sin are multiplied by `attention_factor`.
    LongRope {
        /// A factor for each pair, for short sequences.
        short_factor: Vec<f64>,
        /// A factor for each pair, for long sequences.
        long_factor: Vec<f64>,
        /// Length above which the long factors apply.
        original_max_position_embeddings: usize,
        /// `sqrt(1 + ln(max / original) / ln(original))`.
        attention_factor: f64,
    },
}

/// Column offsets of every head in a row of the fused query-key-value projection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QkvLayout {
    /// Width of the row.
    pub width: usize,
    /// One offset for each query head.
    pub query: Vec<usize>,
    /// One offset for each key head.
    pub key: Vec<usize>,
    /// One offset for each value head.
    pub value: Vec<usize>,
}

impl QkvLayout {
    /// The layout of a specification's projection.
    pub fn of(attention: &AttentionSpec) -> Self {
        let AttentionSpec { num_heads, num_kv_heads, head_dim, .. } = *attention;
        let group = num_heads / num_kv_heads;
        // Where the `i`-th query, key and value head lie, in heads.
        let query = |i: usize| match attention.qkv_order {
            QkvOrder::Blocks => i,
            QkvOrder::Groups => i / group * (group + 2) + i % group,
        };
        let key = |i: usize| match attention.qkv_order {
            QkvOrder::Blocks => num_heads + i,
            QkvOrder::Groups => i * (group + 2) + group,
        };
        let value = |i: usize| match attention.qkv_order {
            QkvOrder::Blocks => num_heads + num_kv_heads + i,
            QkvOrder::Groups => key(i) + 1,
        };
        Self {
            width: attention.qkv_width(),
            query: (0..num_heads).map(|i| query(i) * head_dim).collect(),
            key: (0..num_kv_heads).map(|i| key(i) * head_dim).collect(),
            value: (0..num_kv_heads).map(|i| value(i) * head_dim).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four query heads of width 2 on two key-value heads.
    #[test]
    fn heads_lie_in_blocks_or_in_groups() {
        let attention = AttentionSpec::new(4, 2, 2);
        let blocks = QkvLayout { width: 16, query: vec![0, 2, 4, 6], key: vec![8, 10], value: vec![12, 14] };
        assert_eq!(QkvLayout::of(&attention), blocks);
        // q q k v | q q k v
        let groups = QkvLayout { width: 16, query: vec![0, 2, 8, 10], key: vec![4, 12], value: vec![6, 14] };
        assert_eq!(QkvLayout::of(&AttentionSpec { qkv_order: QkvOrder::Groups, ..attention }), groups);
    }
}

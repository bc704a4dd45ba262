//! What a decoder-only transformer is, as data.
//!
//! A family translates its published `config.json` (or Meta's `params.json`) into a [`ModelConfig`]; nothing after
//! that point knows which family a model belongs to.

/// Everything the forward pass must know of a model, besides its weights.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Name of the family, for logs and `kaito presets` (`llama`, `falcon`, `mistral`, `phi3`).
    pub family: &'static str,
    /// Rows of the embedding and of the output head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of transformer layers.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Inner width of the MLP.
    pub intermediate_size: usize,
    /// Longest sequence the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// Normalisation before attention, before the MLP and at the end.
    pub norm: Norm,
    /// Form of the MLP.
    pub mlp: Mlp,
    /// How attention and MLP are added to the residual stream.
    pub residual: Residual,
    /// How a token's place is told.
    pub positions: Positions,
    /// Where each head lies in a row of the fused query-key-value projection.
    pub qkv_layout: QkvLayout,
    /// With a window of `W`, key `j` is visible to query `i` iff `i - W < j <= i`.
    pub sliding_window: Option<usize>,
}

/// Kind of normalisation and its epsilon.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Norm {
    /// `x / sqrt(mean(x^2) + eps) * weight`.
    Rms {
        /// Added to the mean square.
        eps: f32,
    },
    /// `(x - mean) / sqrt(var + eps) * weight + bias`.
    Layer {
        /// Added to the variance.
        eps: f32,
    },
}

/// Form of the MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mlp {
    /// `down(silu(gate(x)) * up(x))`; the first projection's rows are `[gate | up]`.
    SwiGlu,
    /// `down(gelu(up(x)))` with the exact (erf) GELU.
    Gelu,
}

/// How a layer adds to the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residual {
    /// `x += attention(norm1(x)); x += mlp(norm2(x))`.
    Sequential,
    /// `x += attention(norm1(x)) + mlp(norm1(x))`: Falcon 7B.
    ParallelSharedNorm,
    /// `x += attention(norm1(x)) + mlp(norm2(x))`: Falcon 40B.
    Parallel,
}

/// How a token's place in its sequence is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Positions {
    /// Queries and keys are turned by an angle that grows with the position.
    Rotary(Rope),
    /// Scores gain by the position of the key, with a slope of its own for each query head (ALiBi): the first Falcons.
    Alibi,
}

/// Rotary position embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the geometric progression of wavelengths.
    pub theta: f64,
    /// Which components of a head form a rotated pair.
    pub pairing: RopePairing,
    /// How frequencies are changed for contexts beyond those of pre-training.
    pub scaling: RopeScaling,
}

/// Which components of a head form a rotated pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopePairing {
    /// Component `i` with `i + head_dim / 2`: Hugging Face checkpoints.
    Halves,
    /// Component `2 i` with `2 i + 1`: Meta's checkpoints.
    Interleaved,
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
    /// Llama 3.1: long waves are stretched by `factor`, short ones stay, and those between the two bounds are blended.
    Llama3 {
        /// How much long waves are stretched.
        factor: f64,
        /// Waves longer than the original length divided by this are long.
        low_freq_factor: f64,
        /// Waves shorter than the original length divided by this are short.
        high_freq_factor: f64,
        /// Length that the model was pre-trained on.
        original_max_position_embeddings: usize,
    },
    /// YaRN (Peng et al. 2023): as above, with bounds by how often a wave turns within the trained length. cos and sin are
    /// multiplied by `attention_factor`.
    Yarn {
        /// How much long waves are stretched.
        factor: f64,
        /// Waves that turn more often than this within the trained length stay.
        beta_fast: f64,
        /// Waves that turn less often than this are stretched.
        beta_slow: f64,
        /// The trained length.
        max_position_embeddings: usize,
        /// Factor of cos and sin.
        attention_factor: f64,
    },
    /// Phi-3's long-rope: each frequency is divided by a factor of its own; the long factors apply to a sequence iff
    /// its total length exceeds `original_max_position_embeddings`. cos and sin are multiplied by `attention_factor`.
    LongRope {
        /// `head_dim / 2` factors for short sequences.
        short_factor: Vec<f64>,
        /// `head_dim / 2` factors for long sequences.
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
    /// `[all queries | all keys | all values]`: Llama, Mistral, Phi-3, Falcon 7B.
    pub fn blocks(num_heads: usize, num_kv_heads: usize, head_dim: usize) -> Self {
        let heads = |start: usize, count: usize| (start..start + count).map(|h| h * head_dim).collect();
        Self {
            width: (num_heads + 2 * num_kv_heads) * head_dim,
            query: heads(0, num_heads),
            key: heads(num_heads, num_kv_heads),
            value: heads(num_heads + num_kv_heads, num_kv_heads),
        }
    }

    /// For each key-value head `[its queries... | its key | its value]`: Falcon 40B.
    pub fn groups(num_heads: usize, num_kv_heads: usize, head_dim: usize) -> Self {
        let queries = num_heads / num_kv_heads;
        let group = |g: usize| g * (queries + 2);
        Self {
            width: (num_heads + 2 * num_kv_heads) * head_dim,
            query: (0..num_heads).map(|h| (group(h / queries) + h % queries) * head_dim).collect(),
            key: (0..num_kv_heads).map(|g| (group(g) + queries) * head_dim).collect(),
            value: (0..num_kv_heads).map(|g| (group(g) + queries + 1) * head_dim).collect(),
        }
    }
}

impl ModelConfig {
    /// Rows of the first MLP projection: twice the inner width where a gate comes with it.
    pub fn mlp_in_width(&self) -> usize {
        match self.mlp {
            Mlp::SwiGlu => 2 * self.intermediate_size,
            Mlp::Gelu => self.intermediate_size,
        }
    }
}

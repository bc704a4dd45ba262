use std::fmt;

use crate::{LinearKind, LinearSpec};

/// A transformer layer: attention and an MLP, each behind a normalisation, added to the residual stream.
///
/// A decoder honours every field, so that a new family of models is data: Qwen2's biases are [`AttentionSpec::qkv_bias`], Qwen3's
/// norms on queries and keys [`AttentionSpec::query_key_norm`], Gemma 2's bound of the scores [`AttentionSpec::soft_cap`]. What no
/// decoder computes yet has no field, and a configuration that asks for it is refused when it is read. Norms behind attention and MLP
/// belong in [`Residual`] once there are operations for them, experts in [`MlpSpec`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerSpec {
    /// Self-attention.
    pub attention: AttentionSpec,
    /// The MLP.
    pub mlp: MlpSpec,
    /// Each of the layer's norms.
    pub norm: Norm,
    /// How attention and MLP are added to the residual stream.
    pub residual: Residual,
}

/// Self-attention: multi-head with as many key-value heads as query heads, multi-query with one, else grouped-query.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionSpec {
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Factor of the scores `q k^T` before the softmax, see [`Self::usual_scale`].
    pub scale: f32,
    /// Soft cap `c` of the scores: a score `s`, scaled already, becomes `c tanh(s / c)` before biases and the mask.
    pub soft_cap: Option<f32>,
    /// Norm of each query head and of each key head before they are rotated: one weight vector of the width of a head for all
    /// query heads, another one for all key heads.
    pub query_key_norm: Option<Norm>,
    /// Sliding-window attention: with a window of `W`, key `j` is visible to query `i` iff `i - W < j <= i`.
    pub sliding_window: Option<usize>,
    /// Order of the heads in a row of the fused query-key-value projection.
    pub qkv_order: QkvOrder,
    /// Whether queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// Whether the output projection has a bias.
    pub output_bias: bool,
}

/// Order of the heads in a row of the fused query-key-value projection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkvOrder {
    /// `[all queries | all keys | all values]`: Llama, Mistral, Phi-3, Falcon 7B.
    Blocks,
    /// For each key-value head `[its queries... | its key | its value]`: Falcon 40B.
    Groups,
}

/// An MLP without experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MlpSpec {
    /// What it computes.
    pub kind: Mlp,
    /// Inner width.
    pub width: usize,
    /// Whether its projections have biases.
    pub bias: bool,
}

/// What an MLP computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mlp {
    /// `down(silu(gate(x)) * up(x))`; the first projection's rows are `[gate | up]`.
    SwiGlu,
    /// `down(gelu(up(x)))` with the exact (erf) GELU.
    Gelu,
}

/// Kind of normalisation and its epsilon.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Norm {
    /// RMS norm: `x / sqrt(mean(x^2) + eps) * weight`.
    Rms {
        /// Added to the mean square.
        eps: f32,
    },
    /// Layer norm: `(x - mean) / sqrt(var + eps) * weight + bias`.
    Layer {
        /// Added to the variance.
        eps: f32,
    },
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

impl LayerSpec {
    /// The linear maps, in the order in which a forward pass uses them; `hidden_size` is the width of the residual stream.
    ///
    /// This is the one list of them: a map that is added here is read, counted, quantised and planned for.
    pub fn linears(&self, hidden_size: usize) -> [LinearSpec; 4] {
        let Self { attention, mlp, .. } = self;
        let map = |kind, in_features, out_features, bias| LinearSpec { kind, in_features, out_features, bias };
        [
            map(LinearKind::Qkv, hidden_size, attention.qkv_width(), attention.qkv_bias),
            map(LinearKind::AttentionOutput, attention.query_width(), hidden_size, attention.output_bias),
            map(LinearKind::MlpIn, hidden_size, mlp.in_width(), mlp.bias),
            map(LinearKind::MlpOut, mlp.width, hidden_size, mlp.bias),
        ]
    }

    /// Parameters of the matrices of the linear maps.
    pub fn matrix_parameters(&self, hidden_size: usize) -> u64 {
        self.linears(hidden_size).iter().map(LinearSpec::matrix_parameters).sum()
    }

    /// Parameters of what stays out of quantisation: norms and biases.
    pub fn vector_parameters(&self, hidden_size: usize) -> u64 {
        let biases: u64 = self.linears(hidden_size).iter().map(LinearSpec::bias_parameters).sum();
        biases + self.attention.norm_parameters() + self.residual.norms() * self.norm.parameters(hidden_size)
    }
}

impl AttentionSpec {
    /// Attention without soft cap, norms, window and biases, with the usual scale.
    pub fn new(num_heads: usize, num_kv_heads: usize, head_dim: usize) -> Self {
        Self {
            num_heads,
            num_kv_heads,
            head_dim,
            scale: Self::usual_scale(head_dim),
            soft_cap: None,
            query_key_norm: None,
            sliding_window: None,
            qkv_order: QkvOrder::Blocks,
            qkv_bias: false,
            output_bias: false,
        }
    }

    /// `1 / sqrt(head_dim)`: keeps the variance of the scores at 1.
    pub fn usual_scale(head_dim: usize) -> f32 {
        1.0 / (head_dim as f32).sqrt()
    }

    /// Width of all query heads: of what attention gives, before its output projection.
    pub fn query_width(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Width of all key heads, and of all value heads.
    pub fn kv_width(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    /// Width of a row of the fused query-key-value projection.
    pub fn qkv_width(&self) -> usize {
        self.query_width() + 2 * self.kv_width()
    }

    /// Parameters of the norms of queries and keys.
    pub fn norm_parameters(&self) -> u64 {
        self.query_key_norm.map_or(0, |norm| 2 * norm.parameters(self.head_dim))
    }
}

impl MlpSpec {
    /// Width of what the first projection gives: twice the inner width where a gate comes with it.
    pub fn in_width(&self) -> usize {
        (self.kind.matrices() - 1) * self.width
    }
}

impl Mlp {
    /// Matrices of hidden size by inner width: up, down and, where it has one, the gate. So many vectors of the inner width are alive
    /// at once, too.
    pub fn matrices(self) -> usize {
        match self {
            Mlp::SwiGlu => 3,
            Mlp::Gelu => 2,
        }
    }
}

impl Norm {
    /// Whether terms are added behind the factors.
    pub fn has_bias(self) -> bool {
        match self {
            Norm::Rms { .. } => false,
            Norm::Layer { .. } => true,
        }
    }

    /// Parameters of one norm of vectors of `width`.
    pub fn parameters(self, width: usize) -> u64 {
        let vectors = if self.has_bias() { 2 } else { 1 };
        vectors * width as u64
    }
}

impl Residual {
    /// Norms of a layer.
    pub fn norms(self) -> u64 {
        match self {
            Residual::ParallelSharedNorm => 1,
            Residual::Sequential | Residual::Parallel => 2,
        }
    }
}

impl fmt::Display for Residual {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Residual::Sequential => "sequential",
            Residual::ParallelSharedNorm => "parallel_shared_norm",
            Residual::Parallel => "parallel",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Falcon 40B's published layer: 8192 x (128 + 2 x 8) x 64 + 8192^2 + 2 x 8192 x 32768 in matrices, two norms of two vectors.
    #[test]
    fn a_layer_of_falcon_40b() {
        let layer = LayerSpec {
            attention: AttentionSpec { qkv_order: QkvOrder::Groups, ..AttentionSpec::new(128, 8, 64) },
            mlp: MlpSpec { kind: Mlp::Gelu, width: 32768, bias: false },
            norm: Norm::Layer { eps: 1e-5 },
            residual: Residual::Parallel,
        };
        assert_eq!(layer.matrix_parameters(8192), 679_477_248);
        assert_eq!(layer.vector_parameters(8192), 4 * 8192);
        assert_eq!(layer.attention.scale, 0.125);
    }

    /// Qwen2 0.5B's published layer: hidden 896, 14 heads of 64, 2 key-value heads, inner width 4864, and biases on queries, keys
    /// and values alone.
    #[test]
    fn biases_of_queries_keys_and_values_alone() {
        let layer = LayerSpec {
            attention: AttentionSpec { qkv_bias: true, ..AttentionSpec::new(14, 2, 64) },
            mlp: MlpSpec { kind: Mlp::SwiGlu, width: 4864, bias: false },
            norm: Norm::Rms { eps: 1e-6 },
            residual: Residual::Sequential,
        };
        assert_eq!(layer.matrix_parameters(896), 896 * 1152 + 896 * 896 + 3 * 896 * 4864);
        assert_eq!(layer.vector_parameters(896), 1152 + 2 * 896);
    }

    /// Qwen3 0.6B's published shape: hidden 1024, 28 layers of 16 heads of 128 on 8 key-value heads, inner width 3072, a tied
    /// vocabulary of 151,936. The whole model is published as 596,049,920 parameters.
    #[test]
    fn norms_of_queries_and_keys() {
        let norm = Norm::Rms { eps: 1e-6 };
        let layer = LayerSpec {
            attention: AttentionSpec { query_key_norm: Some(norm), ..AttentionSpec::new(16, 8, 128) },
            mlp: MlpSpec { kind: Mlp::SwiGlu, width: 3072, bias: false },
            norm,
            residual: Residual::Sequential,
        };
        assert_eq!(layer.matrix_parameters(1024), 1024 * 4096 + 2048 * 1024 + 3 * 1024 * 3072);
        assert_eq!(layer.vector_parameters(1024), 2 * 1024 + 2 * 128);
        let layers = 28 * (layer.matrix_parameters(1024) + layer.vector_parameters(1024));
        assert_eq!(151_936 * 1024 + layers + norm.parameters(1024), 596_049_920);
        // With a layer norm there are terms beside the factors.
        let attention = AttentionSpec { query_key_norm: Some(Norm::Layer { eps: 1e-5 }), ..layer.attention };
        assert_eq!(attention.norm_parameters(), 4 * 128);
    }
}

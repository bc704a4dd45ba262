/// What a linear map of a model does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LinearKind {
    /// Tokens to vectors: the transpose of a linear map, of which a step reads some rows.
    Embedding,
    /// Fused projection to queries, keys and values.
    Qkv,
    /// Output projection of attention.
    AttentionOutput,
    /// First projection of the MLP: gate and up, or up alone.
    MlpIn,
    /// Second projection of the MLP: down.
    MlpOut,
    /// Output head: vectors to the scores of all tokens.
    Head,
}

/// The shape of a linear map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinearSpec {
    /// What it does.
    pub kind: LinearKind,
    /// Width of the input: columns of the matrix.
    pub in_features: usize,
    /// Width of the output: rows of the matrix.
    pub out_features: usize,
    /// Whether a vector of `out_features` is added.
    pub bias: bool,
}

impl LinearSpec {
    /// Parameters of the matrix, without the bias.
    pub fn matrix_parameters(&self) -> u64 {
        self.in_features as u64 * self.out_features as u64
    }

    /// Parameters of the bias; none where there is no bias.
    pub fn bias_parameters(&self) -> u64 {
        if self.bias { self.out_features as u64 } else { 0 }
    }
}

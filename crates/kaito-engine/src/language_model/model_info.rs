//! What a loaded model is.

use std::path::PathBuf;

use kaito_kernels::{DType, KvDType, Quantization};
use kaito_model::config::DialogFormat;

/// What a loaded model is.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelInfo {
    /// Name of the family.
    pub family: &'static str,
    /// Directory of the weights.
    pub directory: PathBuf,
    /// Number of parameters, tied ones once.
    pub parameters: u64,
    /// Bytes of the weight matrices as they are computed with.
    pub weights_bytes: u64,
    /// Element type of the weight matrices that are not quantised.
    pub dtype: DType,
    /// How the matrices of the layers are quantised.
    pub quantization: Option<Quantization>,
    /// Element type of the KV cache.
    pub kv_dtype: KvDType,
    /// Rows of the output head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of layers.
    pub num_layers: usize,
    /// Bytes of the weight matrices that every step reads: all but the embedding, of which it takes rows.
    pub step_bytes: u64,
    /// Bytes of one token in the KV cache.
    pub kv_bytes_per_token: u64,
    /// How many tokens back a token looks, where that is bounded.
    pub attention_window: Option<usize>,
    /// How a conversation is written where the model comes without a chat template.
    pub dialog_format: Option<DialogFormat>,
    /// Threads that compute.
    pub threads: usize,
    /// Longest sequence, in tokens.
    pub max_seq_len: usize,
    /// Most sequences that run at the same time.
    pub max_batch_size: usize,
    /// Whether conversations can be rendered by a chat template of the model's.
    pub chat_template: bool,
}

impl ModelInfo {
    /// What most of the weights are held in, for people: `int4` or `bf16`, say.
    pub fn precision(&self) -> String {
        self.quantization.map_or_else(|| self.dtype.to_string(), |quantization| quantization.to_string())
    }
}

//! What a loaded model is.

use std::path::PathBuf;

use kaito_kernels::{BlockFormat, Compute, DType, KvDType, Quantization};
use kaito_model::config::DialogFormat;

/// What an engine elsewhere does not tell: its precision, its instructions.
pub(super) const UNKNOWN: &str = "unknown";

/// What a loaded model is.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelInfo {
    /// Name of the family.
    pub family: &'static str,
    /// Directory of the weights, or their GGUF file.
    pub directory: PathBuf,
    /// Number of parameters, tied ones once.
    pub parameters: u64,
    /// Weights in the matrices of all layers, by which every token is multiplied.
    pub layer_parameters: u64,
    /// Weights of the output head, tied or not, by which a token is multiplied whose successor is chosen.
    pub head_parameters: u64,
    /// Bytes of the weight matrices as they are computed with.
    pub weights_bytes: u64,
    /// Element type of the weight matrices that are not quantised.
    pub dtype: DType,
    /// How products treat activations.
    pub compute: Compute,
    /// How the matrices of the layers are quantised.
    pub quantization: Option<Quantization>,
    /// The block formats of a GGUF file that matrices are in: that with the most weights first.
    pub blocks: Vec<BlockFormat>,
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
    /// What the kernels use of the device: an instruction set of a processor, say.
    pub instruction_set: &'static str,
    /// Threads that compute.
    pub threads: usize,
    /// Longest sequence, in tokens.
    pub max_seq_len: usize,
    /// Most sequences that run at the same time.
    pub max_batch_size: usize,
    /// Whether conversations can be rendered by a chat template of the model's.
    pub chat_template: bool,
    /// Where the engine is that computes, if that is not this one. How it holds weights and keys and values is not known then: bytes
    /// and threads are 0.
    pub upstream: Option<String>,
}

impl ModelInfo {
    /// What most of the weights are held in, for people: `int4`, `bf16` or `Q4_K`, say.
    pub fn precision(&self) -> String {
        if self.upstream.is_some() {
            return UNKNOWN.to_owned();
        }
        match (self.quantization, self.blocks.first()) {
            (Some(quantization), _) => quantization.to_string(),
            (None, Some(format)) => format.to_string(),
            (None, None) => self.dtype.to_string(),
        }
    }

    /// What all of the matrices are held in, that of most weights first: `Q4_K, Q6_K`, say.
    pub fn precisions(&self) -> String {
        if self.quantization.is_some() || self.blocks.is_empty() {
            return self.precision();
        }
        self.blocks.iter().map(BlockFormat::to_string).collect::<Vec<_>>().join(", ")
    }

    /// What activations are held in while they are multiplied by weights, for people: `f32`, `bf16` or `int8`.
    pub fn activations(&self) -> &'static str {
        if self.upstream.is_some() {
            return UNKNOWN;
        }
        match (self.quantization, self.compute) {
            (Some(_), _) | (None, Compute::Int8) => "int8",
            (None, Compute::Bf16) => "bf16",
            (None, Compute::Exact) => "f32",
        }
    }
}

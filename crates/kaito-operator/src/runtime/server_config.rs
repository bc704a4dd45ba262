//! What a ConfigMap says, once it has been read.

use super::Flag;
use crate::reason::{Problem, Reason};

/// What a ConfigMap says for one runtime.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ServerConfig {
    /// The flags to pass on to the server.
    pub flags: Vec<Flag>,
    /// What the controller would compute, where the ConfigMap says it.
    pub sizes: Sizes,
    /// Names by which requests ask for the model, for the server in front of an engine; none for its usual one.
    pub served_names: Vec<String>,
    /// Sequences that an engine computes at the same time, where the ConfigMap says it.
    pub sequences: Option<u64>,
    /// Settings without an effect, though the user may count on one; each with the reason.
    pub ignored: Vec<String>,
    /// Settings that are not needed; each with the reason.
    pub needless: Vec<String>,
}

/// The values that a ConfigMap gives for those of vLLM's flags that the controller computes otherwise.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sizes {
    /// Tensor parallelism: GPUs that share each layer.
    pub tensor: Option<u32>,
    /// Pipeline parallelism: groups of layers, one after the other.
    pub pipeline: Option<u32>,
    /// Data parallelism: copies of the model.
    pub data: Option<u32>,
    /// Longest sequence, in tokens.
    pub context: Option<u64>,
    /// The part of a GPU's memory that may be used.
    pub gpu_memory_utilisation: Option<f64>,
    /// Bytes of weights of each GPU that stay in main memory.
    pub offloaded: u64,
    /// Bytes of a parameter; `None` where the ConfigMap does not say it.
    pub weight_bytes: Option<WeightBytes>,
    /// Bytes of an element of the KV cache, where it differs from the weights.
    pub kv_bytes: Option<u64>,
    /// Whether positions are scaled beyond the model's own limit.
    pub scales_positions: bool,
}

/// How many bytes a weight takes on the GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightBytes {
    /// This many.
    Known(u64),
    /// Quantised by the server.
    Unknown,
}

/// The ConfigMap cannot be read, or sets what is not the user's to set.
pub fn invalid(message: String) -> Problem {
    Problem {
        reason: Reason::ConfigInvalid,
        message: format!("in the ConfigMap that inference.config names: {message}"),
    }
}

/// The ConfigMap asks for what the nodes or the model do not have.
pub fn does_not_fit(message: String) -> Problem {
    Problem {
        reason: Reason::ConfigDoesNotFit,
        message: format!("in the ConfigMap that inference.config names: {message}"),
    }
}

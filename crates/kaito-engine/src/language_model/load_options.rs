//! How a model is loaded.

use std::{num::NonZeroUsize, path::PathBuf};

use kaito_kernels::{DType, KvDType, Quantization};

use crate::adapters::AdapterSource;
use crate::device::{ComputeChoice, DeviceChoice, StepBudget};

/// How a model is loaded.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Which device computes.
    pub device: DeviceChoice,
    /// Element type of the weights, the checkpoint's own where it is `None`. Another 16-bit type costs a copy of them. f32 costs none:
    /// narrower weights stay as they are and are widened, exactly, as they are used.
    /// Sums are in 32-bit floats, whichever it is.
    pub dtype: Option<DType>,
    /// How products with weights of 16 bits treat activations. With a `dtype` of f32 they are always exact. Products with
    /// quantised weights quantise activations in any case; with them, too, attention rounds nothing if this is exact.
    pub compute: ComputeChoice,
    /// Whether and how the matrices of the layers are quantised; the output head is in 8 bits then.
    pub quantize: Option<Quantization>,
    /// Folder in which quantised weights are kept for the next start; they are made at every start where it is `None`.
    pub quantized_cache: Option<PathBuf>,
    /// Element type of the KV cache. `None` is bf16 where `compute` lets activations be rounded, and are, and attention is faster by it; else f32.
    pub kv_dtype: Option<KvDType>,
    /// Threads that compute; all cores where it is `None`.
    pub threads: Option<NonZeroUsize>,
    /// Longest sequence, in tokens; the model's own where it is `None`.
    pub max_seq_len: Option<usize>,
    /// Most sequences that run at the same time.
    pub max_batch_size: usize,
    /// Bytes for the KV cache; a share of the free memory where it is `None`.
    pub kv_cache_memory: Option<u64>,
    /// Most requests that wait.
    pub max_waiting: usize,
    /// Whether speculative decoding may be used where that is expected to be faster. What comes out is the same.
    pub speculate: bool,
    /// A file with a chat template, in place of the model's own.
    pub chat_template: Option<PathBuf>,
    /// How much a step computes at most; what suits the device where it is `None`.
    pub step_budget: Option<StepBudget>,
    /// Adapters that are loaded with the model.
    pub adapters: Vec<AdapterSource>,
    /// Whether prompts that name no adapter are continued with all of these together, each as strong as it says; each has strength 1
    /// where it is named, then. Otherwise they are continued by the model alone, and a strength is that of the adapter by its name.
    pub combine_adapters: bool,
    /// Bytes for adapters that are loaded later, [`LanguageModel::load_adapter`](crate::LanguageModel::load_adapter). A KV cache whose
    /// size nobody says is so much smaller.
    pub adapter_memory: u64,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            device: DeviceChoice::Auto,
            dtype: None,
            compute: ComputeChoice::Auto,
            quantize: None,
            quantized_cache: None,
            kv_dtype: None,
            threads: None,
            max_seq_len: None,
            max_batch_size: 32,
            kv_cache_memory: None,
            max_waiting: 256,
            speculate: true,
            chat_template: None,
            step_budget: None,
            adapters: Vec::new(),
            combine_adapters: false,
            adapter_memory: 0,
        }
    }
}

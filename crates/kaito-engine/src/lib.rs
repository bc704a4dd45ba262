//! Runs decoder-only language models in continuous batches: requests in, tokens out.
//!
//! The engine knows no HTTP, no preset names and no Kubernetes.
#![forbid(unsafe_code)]

mod cancel;
pub mod capacity;
pub mod decoder;
pub mod device;
pub mod engine;
mod error;
mod events;
pub mod executor;
pub mod generate;
pub mod kv_cache;
mod language_model;
mod meta;
pub mod parallel;
mod prefix_index;
mod prompt_bytes;
mod quantized;
mod recycle;
pub mod rope;
pub mod scheduler;
mod speculation;
mod stop_strings;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod text;

pub use cancel::Cancel;
pub use device::{DeviceChoice, StepBudget};
pub use engine::EngineStats;
pub use error::{Error, ErrorKind};
pub use kaito_kernels::{DType, FileChange, KvDType, Quantization, WhatChanged};
pub use kaito_model::{
    config::DialogFormat,
    tokenizer::{ChatMessage, Tokenizer},
};
pub use language_model::{LanguageModel, LoadOptions, ModelInfo};
pub use meta::{ChatRequest, CompletionRequest, MetaEvent, MetaOptions, MetaOutput, MetaStream, SPECIAL_TAGS_ERROR};
pub use stop_strings::{MAX_STOP_BYTES, MAX_STOPS};
pub use text::{LikelyToken, TextEvent, TextInput, TextOutput, TextRequest, TextStream, TokenScore};

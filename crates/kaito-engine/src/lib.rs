//! Checkpoint to tokens: decoder-only language models, served in continuous batches.
//!
//! The engine knows no HTTP, no preset names and no Kubernetes.
#![forbid(unsafe_code)]

pub mod backend;
pub mod capacity;
pub mod checkpoint;
pub mod config;
pub mod decoder;
pub mod engine;
mod error;
mod events;
pub mod family;
pub mod generate;
pub mod kv_cache;
mod language_model;
mod meta;
mod prefix_index;
mod quantized;
mod recycle;
pub mod rope;
pub mod scheduler;
mod speculation;
mod stop_strings;
mod text;
pub mod tokenizer;
pub mod weights;

pub use engine::EngineStats;
pub use error::{Error, ErrorKind};
pub use kaito_kernels::{FileChange, KvDType, Quantization, WhatChanged};
pub use language_model::{DTypeChoice, LanguageModel, LoadOptions, ModelInfo, StepBudget};
pub use meta::{ChatRequest, CompletionRequest, MetaEvent, MetaOptions, MetaOutput, MetaStream, SPECIAL_TAGS_ERROR};
pub use text::{LikelyToken, TextEvent, TextInput, TextOutput, TextRequest, TextStream, TokenScore};
pub use tokenizer::{ChatMessage, Tokenizer};

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
pub mod family;
pub mod generate;
pub mod kv_cache;
pub mod rope;
pub mod scheduler;
pub mod tokenizer;
pub mod weights;

pub use error::{Error, ErrorKind};

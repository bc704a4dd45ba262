//! Checkpoint to tokens: decoder-only language models, served in continuous batches.
//!
//! The engine knows no HTTP, no preset names and no Kubernetes.
#![forbid(unsafe_code)]

pub mod checkpoint;
pub mod config;
pub mod generate;
pub mod tokenizer;
pub mod weights;

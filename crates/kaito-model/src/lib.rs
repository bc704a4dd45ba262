//! Reads published models as their authors ship them: weight files, configurations, tokenizers and chat templates.
//!
//! Nothing is computed here: weights are views of mapped files, and a configuration says what a forward pass must do with them.
#![forbid(unsafe_code)]

pub mod adapter;
pub mod checkpoint;
pub mod config;
mod error;
pub mod family;
pub mod tokenizer;
pub mod weights;

pub use error::Error;
pub use kaito_json as json;

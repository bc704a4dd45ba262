//! A model whose tokens an engine elsewhere computes: an OpenAI-compatible server that takes prompts as token ids and streams token
//! ids, which is vLLM.
//!
//! [`Upstream`] reads all of a model but its weights and is a [`kaito_server::Model`], so that routes, parameters, errors, the queue
//! and the metrics of requests are those of a model in this process. Each sequence of a request is a streamed
//! `POST /v1/completions`; texts, stop strings and ends are this side's matter. [`PARAMETERS`] says what becomes of each parameter.
//!
//! Requests outlive the engine: where it dies or restarts, they wait for it and go on from their tokens.
#![forbid(unsafe_code)]

mod bad_words;
mod engine;
mod error;
mod failure;
mod generation;
mod model;
mod parameters;
mod plan;
mod prompt_scores;
mod sequence;
mod supervisor;
mod wire;

pub use error::Error;
pub use model::{Upstream, UpstreamOptions};
pub use parameters::{PARAMETERS, Parameter, Treatment};

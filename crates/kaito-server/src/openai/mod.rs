//! The OpenAI API, as OpenAI describes it and as vLLM and llama.cpp extend it.
//!
//! Each route has a module: [`adapters`], [`chat`], [`completions`], [`embeddings`], [`models`], [`responses`], [`tokens`]. What they share stands
//! beside them: [`parameters`] and [`format`] read what says how a text is made, [`input`] and [`prompt`] make it ready for the model,
//! [`head`], [`usage`], [`log_probs`] and [`finish`] are parts of answers, [`events`] of streams.

pub(crate) mod adapters;
pub(crate) mod body;
pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod embeddings;
pub(crate) mod events;
pub(crate) mod finish;
pub(crate) mod format;
pub(crate) mod head;
pub(crate) mod input;
pub(crate) mod log_probs;
pub(crate) mod messages;
pub(crate) mod models;
pub(crate) mod names;
pub(crate) mod parameters;
pub(crate) mod prompt;
pub(crate) mod responses;
pub(crate) mod tokens;
pub(crate) mod tools;
pub(crate) mod usage;

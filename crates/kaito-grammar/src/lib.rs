//! Structured output: answers that follow a JSON schema, a regular expression, a list of choices or a grammar.
//!
//! [`Grammars`] compiles a [`Grammar`] for a model's tokenizer into a [`Constraint`](kaito_engine::Constraint), which the
//! engine asks for each token. Compiling is bounded in time, memory and depth, and belongs on the threads that prepare
//! requests; what a mask may cost is bounded as well.
#![forbid(unsafe_code)]

mod cache;
mod compile;
mod error;
mod grammar;
mod grammars;
mod matcher;
mod schema;
mod vocabulary;

pub use error::Error;
pub use grammar::{Grammar, inline_schema};
pub use grammars::Grammars;

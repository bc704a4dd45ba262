//! Why a grammar cannot be used.

use std::time::Duration;

/// Why there is no constraint for a grammar.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The JSON schema is wrong, or has what is not supported.
    #[error("the JSON schema cannot be used: {reason}, at {path}")]
    InvalidSchema {
        /// Where in the schema: a JSON pointer as a fragment, `#/properties/a`.
        path: String,
        /// What is wrong there.
        reason: String,
    },
    /// A regular expression, a choice or a grammar is wrong.
    #[error("{what} cannot be used: {reason}")]
    Invalid {
        /// What it is: "the regular expression".
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Compiling it takes too long.
    #[error("{what} is too complex: it was not compiled within {} s", limit.as_secs())]
    TimedOut {
        /// What it is: "the JSON schema".
        what: &'static str,
        /// The limit.
        limit: Duration,
    },
    /// As many grammars are being compiled as may be at a time.
    #[error("{limit} grammars are being compiled already, and none was done within {} s", waited.as_secs())]
    Busy {
        /// How many may be.
        limit: usize,
        /// How long this one waited.
        waited: Duration,
    },
    /// Nobody waits for it any more.
    #[error("nobody waits for the grammar any more")]
    Cancelled,
    /// The model's tokens cannot be used for grammars.
    #[error("grammars cannot be used with the model's tokenizer: {reason}")]
    Tokenizer {
        /// Why.
        reason: String,
    },
    /// A fault of this program.
    #[error("the grammar could not be compiled: {reason}")]
    Internal {
        /// What happened.
        reason: String,
    },
}

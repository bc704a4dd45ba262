//! Failures of single requests.

use serde::Serialize;

/// Why a request gave no measurement. The report counts these by cause.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// No connection.
    #[error("no connection: {0}")]
    Connect(String),
    /// A connection that broke before the head of the answer.
    #[error("the connection broke before the answer: {0}")]
    Broken(String),
    /// A status other than success.
    #[error("status {status}: {message}")]
    Status {
        /// HTTP status.
        status: u16,
        /// What the server says about it.
        message: String,
    },
    /// An error that the server reports in the stream.
    #[error("error within the stream: {0}")]
    InStream(String),
    /// The stream ended before the answer did.
    #[error("the stream was cut before the end of the answer{0}")]
    Cut(String),
    /// An answer that is no stream of events of the API.
    #[error("not a stream of this API: {0}")]
    NotAStream(String),
    /// A complete answer without any token.
    #[error("an answer without a token")]
    Empty,
    /// The engine refused or failed.
    #[error("the engine: {0}")]
    Engine(String),
    /// Cut off by the time limit.
    #[error("not done within the time limit of {0}")]
    Timeout(String),
}

/// How often a cause occurred.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FailureCount {
    /// What happened.
    pub cause: String,
    /// How often.
    pub count: usize,
}

/// Adds a failure to those of a row.
pub(crate) fn count_failure(counts: &mut Vec<FailureCount>, failure: &Failure) {
    let cause = failure.to_string();
    match counts.iter_mut().find(|count| count.cause == cause) {
        Some(count) => count.count += 1,
        None => counts.push(FailureCount { cause, count: 1 }),
    }
}

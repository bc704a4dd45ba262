//! Failures of single requests.

use serde::Serialize;

/// Why a request gave no measurement. The report counts these by cause.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// No answer of a server, or not a whole one.
    #[error(transparent)]
    Request(#[from] kaito_client::Failure),
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

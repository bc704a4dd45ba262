//! What may go wrong with one request, and with all of them.

/// Why a request has no answer, or not a whole one.
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
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A key that no header can carry.
    #[error("the API key has characters that a header cannot have")]
    Key,
    /// No encrypted connections can be made.
    #[error(transparent)]
    Tls(#[from] kaito_net::Error),
}

//! Errors that end the whole run.

/// An error that ends the whole run. Failures of single requests are counted in the report.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// What is asked for cannot be done.
    #[error("{0}")]
    Settings(String),
    /// There is no server, or it answers nothing that could be measured.
    #[error("{url} cannot be measured: {cause}{hint}")]
    Server {
        /// Where the server should be.
        url: String,
        /// What happened.
        cause: String,
        /// What to do about it; empty or a sentence after a semicolon.
        hint: String,
    },
    /// The server in this process did not start.
    #[error("the server to be measured did not start")]
    OwnServer(#[source] kaito_server::Error),
    /// The server in this process is gone.
    #[error("the server to be measured ended before its time: {0}")]
    OwnServerEnded(String),
    /// No requests can be sent.
    #[error(transparent)]
    Client(#[from] kaito_client::Error),
    /// The report could not be put together.
    #[error("the report could not be written")]
    Page(#[from] minijinja::Error),
}

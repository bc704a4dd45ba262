/// Why there can be no encrypted connection at all, whatever the server.
#[derive(Debug, thiserror::Error)]
#[error("no encrypted connection can be made: {0}")]
pub struct Error(String);

impl From<rustls::Error> for Error {
    fn from(cause: rustls::Error) -> Self {
        Self(cause.to_string())
    }
}

impl From<rustls::client::VerifierBuilderError> for Error {
    fn from(cause: rustls::client::VerifierBuilderError) -> Self {
        Self(cause.to_string())
    }
}

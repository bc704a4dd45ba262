//! What can fail in this crate.

use std::{io, net::SocketAddr};

/// What can fail here.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A text is not YAML.
    #[error("not YAML: {0}")]
    ReadYaml(String),
    /// A value cannot be written as YAML.
    #[error("cannot write YAML: {0}")]
    WriteYaml(String),
    /// A certificate cannot be made.
    #[error("cannot make a certificate for the webhook: {0}")]
    MakeCertificate(String),
    /// Every attempt at writing an object met a newer version.
    #[error("cannot write {object}: others came first {attempts} times in a row")]
    Contended {
        /// The object.
        object: String,
        /// How often it was tried.
        attempts: u32,
    },
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The operating system's reason.
        source: io::Error,
    },
    /// TLS cannot be set up.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The API server refuses, or cannot be reached.
    #[error("cannot {action}: {source}")]
    Api {
        /// What was asked of it.
        action: String,
        /// Its reason.
        source: Box<kube::Error>,
    },
}

impl Error {
    pub(crate) fn api(action: String, source: kube::Error) -> Self {
        Self::Api { action, source: Box::new(source) }
    }
}

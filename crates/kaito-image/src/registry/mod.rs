//! A client of image registries, by the OCI distribution specification.
//!
//! A [`Repository`] is where images are pushed to and pulled from. What breaks on the way is tried again and continues where it
//! was; a tag is changed only when everything that it will name is in the registry.

mod address;
mod auth;
mod body;
mod challenge;
mod connect;
mod credentials;
mod error;
mod helper;
mod http;
mod manners;
mod mount;
mod pull;
mod push;
mod range;
mod refusal;
mod retry;
mod status;
mod trust;
mod upload;
mod wire;

use std::{num::NonZeroUsize, path::PathBuf, sync::Arc, time::Duration};

pub use kaito_net::RetryPolicy;
use url::Url;

pub use self::{
    address::{Reference, parse_reference},
    credentials::{Credentials, Secret, credential_files},
    error::Error,
    push::{BlobReport, PushOptions, PushReport},
    upload::Delivery,
};
use self::{auth::Auth, credentials::Found, http::Http, wire::Wire};

/// A push takes hours and nobody watches it, so a registry is given several minutes to come back.
const RETRY: RetryPolicy =
    RetryPolicy { attempts: 10, first_delay: Duration::from_millis(500), max_delay: Duration::from_secs(30) };

/// What is done with a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading.
    Pull,
    /// Reading and writing.
    Push,
}

/// How a registry is reached.
#[derive(Debug, Clone)]
pub struct Options {
    /// Use no TLS. Registries on this machine are reached so anyway, unless a certificate authority is named.
    pub plain_http: bool,
    /// Certificate authorities beside the system's, as files of PEM.
    pub ca_files: Vec<PathBuf>,
    /// Instead of those in files.
    pub credentials: Option<Credentials>,
    /// The files in which Docker and Podman keep credentials; the first that has an entry is used.
    pub credential_files: Vec<PathBuf>,
    /// Blobs that are sent at the same time.
    pub jobs: NonZeroUsize,
    /// Largest part of a blob that is sent in one request, in bytes.
    pub chunk_size: u64,
    /// A transfer that makes no progress for so long is broken off and tried again.
    pub stall_timeout: Duration,
    /// When to try again.
    pub retry: RetryPolicy,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            plain_http: false,
            ca_files: Vec::new(),
            credentials: None,
            credential_files: credential_files(),
            jobs: NonZeroUsize::MIN.saturating_add(3),
            chunk_size: 64 << 20,
            stall_timeout: Duration::from_secs(60),
            retry: RETRY,
        }
    }
}

/// One repository of a registry, and a tag or digest in it.
#[derive(Debug, Clone)]
pub struct Repository {
    reference: Reference,
    http: Arc<Http>,
    jobs: usize,
    chunk_size: u64,
}

impl Repository {
    /// Prepares to use the repository of `reference`. Credentials are looked up; the registry is not asked yet.
    ///
    /// # Errors
    /// When certificates or credentials can't be read.
    pub async fn open(reference: &Reference, access: Access, options: &Options) -> Result<Self, Error> {
        let base = address::base_url(reference, options.plain_http, !options.ca_files.is_empty())?;
        let wire =
            Wire { client: connect::client(&options.ca_files)?, stall: options.stall_timeout, reached: Arc::default() };
        let found = match &options.credentials {
            Some(credentials) => Some(Found { credentials: credentials.clone(), from: "the command line".to_owned() }),
            None => credentials::find(&options.credential_files, reference).await?,
        };
        let actions = match access {
            Access::Pull => "pull",
            Access::Push => "pull,push",
        };
        let scope = format!("repository:{}:{actions}", reference.repository());
        let registry = reference.registry().to_owned();
        let auth = Auth::new(&registry, base.scheme() == "https", found, scope, options.retry);
        let http = Http {
            registry,
            base,
            wire,
            auth,
            retry: options.retry,
            plain_http: options.plain_http,
            spoke_plainly: Arc::default(),
        };
        Ok(Self {
            reference: reference.clone(),
            http: Arc::new(http),
            jobs: options.jobs.get(),
            chunk_size: options.chunk_size.max(1),
        })
    }

    /// What the repository was opened with.
    pub fn reference(&self) -> &Reference {
        &self.reference
    }

    fn manifest_url(&self, place: &str) -> Result<Url, Error> {
        address::resolve(&self.http.base, &format!("/v2/{}/manifests/{place}", self.reference.repository()))
    }
}

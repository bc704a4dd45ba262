//! What a server is told before it starts.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use axum::http::HeaderValue;
use subtle::ConstantTimeEq;

/// How a server listens and what it allows.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Where to listen. Port 0 lets the system choose; see [`crate::Server::local_addr`].
    pub address: SocketAddr,
    /// The key that `/generate` and `/chat` ask for as `Authorization: Bearer KEY`; without one they are open.
    pub api_key: Option<ApiKey>,
    /// How long a request may take, from its head to the end of its answer.
    pub request_timeout: Duration,
    /// The largest body of a request, in bytes.
    pub body_limit: usize,
    /// How long admitted requests may go on once the server is told to end.
    pub drain_limit: Duration,
    /// How long nothing may move: a client that takes nothing of its answer for that long loses its connection, and an engine
    /// that makes no progress with its work is reported as stuck by `/healthz`.
    pub stall_limit: Duration,
    /// Web origins whose pages may call the API from a browser; none by default. `*` stands for all.
    pub allowed_origins: Vec<HeaderValue>,
    /// The name by which people know the model: a preset's, a repository's or a directory's.
    pub model_name: String,
}

/// Longer times are as good as none, and too long to be added to the clock.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

impl ServerOptions {
    /// These options, with times that can be added to the clock.
    pub(crate) fn bounded(mut self) -> Self {
        for time in [&mut self.request_timeout, &mut self.drain_limit, &mut self.stall_limit] {
            *time = LONGEST.min(*time);
        }
        self
    }
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            address: (Ipv4Addr::LOCALHOST, 5000).into(),
            api_key: None,
            request_timeout: Duration::from_secs(180),
            body_limit: 4 << 20,
            drain_limit: Duration::from_secs(180),
            stall_limit: Duration::from_secs(60),
            allowed_origins: Vec::new(),
            model_name: "model".to_owned(),
        }
    }
}

/// A secret that clients show as `Authorization: Bearer KEY`. It never appears in logs.
#[derive(Clone)]
pub struct ApiKey(String);

impl ApiKey {
    /// A key, or `None` for an empty one, which would protect nothing.
    pub fn new(key: impl Into<String>) -> Option<Self> {
        let key = key.into();
        (!key.trim().is_empty()).then_some(Self(key))
    }

    /// Whether `offered` is the key. Takes the same time wherever the two differ.
    pub(crate) fn matches(&self, offered: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(offered).into()
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(..)")
    }
}

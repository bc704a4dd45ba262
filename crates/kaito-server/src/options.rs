//! The options of a server.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use axum::http::HeaderValue;

use crate::host::HostName;
use crate::keys::ApiKeys;

/// How a server listens and what it allows.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Where to listen. Port 0 lets the system choose; see [`crate::Server::local_addr`].
    pub address: SocketAddr,
    /// The keys of which `/generate`, `/chat` and `/shutdown` ask for one as `Authorization: Bearer KEY`; without any they are
    /// open.
    pub api_keys: ApiKeys,
    /// Hosts that a server without a key answers for on a loopback address, beside this machine's own names.
    pub allowed_hosts: Vec<HostName>,
    /// How long a request may take, from its head to the end of its answer.
    pub request_timeout: Duration,
    /// The largest body of a request, in bytes.
    pub body_limit: usize,
    /// How long admitted requests may go on once the server is told to end.
    pub drain_limit: Duration,
    /// How long nothing may move: a client that reads nothing of its answer for so long loses its connection, and an engine that
    /// makes no progress for so long is reported as stuck by `/healthz`.
    pub stall_limit: Duration,
    /// Web origins whose pages may call the API from a browser; none by default. `*` stands for all.
    pub allowed_origins: Vec<HeaderValue>,
    /// The name by which people know the model: a preset's, a repository's or a directory's.
    pub model_name: String,
    /// How many lines of the log were dropped, counted by the log and shown by the metrics.
    pub dropped_log_lines: Arc<AtomicU64>,
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
            api_keys: ApiKeys::default(),
            allowed_hosts: Vec::new(),
            request_timeout: Duration::from_secs(180),
            body_limit: 4 << 20,
            drain_limit: Duration::from_secs(180),
            stall_limit: Duration::from_secs(60),
            allowed_origins: Vec::new(),
            model_name: "model".to_owned(),
            dropped_log_lines: Arc::default(),
        }
    }
}

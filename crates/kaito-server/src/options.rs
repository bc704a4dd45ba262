//! The options of a server.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use axum::http::HeaderValue;
use kaito_engine::Pooling;

use crate::host::HostName;
use crate::keys::ApiKeys;
use crate::openai::names;
use crate::openai::tools::ToolSetting;
use crate::tls::Tls;

/// How a server listens and what it allows.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Where to listen. Port 0 lets the system choose; see [`crate::Server::local_addr`].
    pub address: SocketAddr,
    /// The keys of which every route asks for one but those of probes and scrapers and the web page, as `Authorization: Bearer
    /// KEY`, `x-api-key: KEY` or `api-key: KEY`; without any all are open.
    pub api_keys: ApiKeys,
    /// The certificate of a server that speaks HTTPS; without one it speaks HTTP.
    pub tls: Option<Tls>,
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
    /// How long a client may be silent: over the head of a request, between two, or (over HTTP/2, where it is asked by a ping) while
    /// it waits for an answer.
    pub idle_limit: Duration,
    /// Web origins whose pages may call the API from a browser; none by default. `*` stands for all.
    pub allowed_origins: Vec<HeaderValue>,
    /// The name by which people know the model: a preset's, a repository's or a directory's.
    pub model_name: String,
    /// The names by which requests may ask for the model, the one that answers carry first; without any, `model_name`.
    pub served_model_names: Vec<String>,
    /// The repository that the model is published in. Requests may ask for it by this name too.
    pub repository: Option<String>,
    /// Whether requests for models that are not served are answered by the one that is.
    pub any_model_name: bool,
    /// Whether a request may bring a chat template of its own.
    pub trust_request_chat_template: bool,
    /// How the vectors of texts are made of hidden states; without it there are none.
    pub embeddings: Option<Pooling>,
    /// The folder below which adapters lie that may be loaded while the server runs; without it none may.
    pub runtime_adapters: Option<PathBuf>,
    /// Which format tools are written in.
    pub tool_format: ToolSetting,
    /// How many lines of the log were dropped, counted by the log and shown by the metrics.
    pub dropped_log_lines: Arc<AtomicU64>,
}

/// Longer times are as good as none, and too long to be added to the clock.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

impl ServerOptions {
    /// Whether requests mean the model itself by `name`, with adapters or without. No adapter can have such a name.
    pub fn names_model(&self, name: &str) -> bool {
        names::is_base(self, name) || name.strip_suffix(names::ALONE).is_some_and(|plain| names::is_base(self, plain))
    }

    /// These options, with times that can be added to the clock.
    pub(crate) fn bounded(mut self) -> Self {
        for time in [&mut self.request_timeout, &mut self.drain_limit, &mut self.stall_limit, &mut self.idle_limit] {
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
            tls: None,
            allowed_hosts: Vec::new(),
            request_timeout: Duration::from_secs(180),
            body_limit: 4 << 20,
            drain_limit: Duration::from_secs(180),
            stall_limit: Duration::from_secs(60),
            idle_limit: Duration::from_secs(60),
            allowed_origins: Vec::new(),
            model_name: "model".to_owned(),
            served_model_names: Vec::new(),
            repository: None,
            any_model_name: false,
            trust_request_chat_template: false,
            embeddings: None,
            runtime_adapters: None,
            tool_format: ToolSetting::default(),
            dropped_log_lines: Arc::default(),
        }
    }
}

//! Flags of `kaito serve`.

use std::{num::NonZeroUsize, time::Duration};

use clap::Args;

use super::{AccessArgs, ModelArgs};
use crate::values;

#[derive(Debug, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Address to listen on [default: 127.0.0.1; in a container, all addresses]
    #[arg(long, env = "KAITO_HOST", value_name = "HOST")]
    pub host: Option<String>,
    /// Port to listen on; 0 takes any that is free
    #[arg(long, env = "KAITO_PORT", default_value_t = 5000)]
    pub port: u16,
    /// Longest time that a request may take, like 90s or 5m; then it is answered with 408
    #[arg(long, env = "KAITO_REQUEST_TIMEOUT", value_name = "TIME", value_parser = values::duration, default_value = "180s")]
    pub request_timeout: Duration,
    /// Requests that may wait for their turn; further ones are answered with 429
    #[arg(long, env = "KAITO_MAX_WAITING", value_name = "N", default_value = "256")]
    pub max_waiting: NonZeroUsize,
    /// How long running requests may go on once the server is shutting down [default: --request-timeout]
    #[arg(long, env = "KAITO_DRAIN_LIMIT", value_name = "TIME", value_parser = values::duration)]
    pub drain_limit: Option<Duration>,
    /// Largest body of a request, at most 1GiB. All bodies that arrive at the same time may take six times that together
    #[arg(long, env = "KAITO_BODY_LIMIT", value_name = "SIZE", value_parser = values::body_size, default_value = "4MiB")]
    pub body_limit: usize,
    /// How long nothing may move: a client that reads nothing of its answer for so long loses its connection, and /healthz
    /// reports an engine that made no progress for so long
    #[arg(long, env = "KAITO_STALL_LIMIT", value_name = "TIME", value_parser = values::duration, default_value = "60s")]
    pub stall_limit: Duration,
    #[command(flatten)]
    pub access: AccessArgs,
}

//! Flags of `kaito serve`.

use std::{num::NonZeroUsize, time::Duration};

use clap::{Args, ValueEnum};
use kaito_server::ToolSetting;

use super::{AccessArgs, AdapterArgs, ApiArgs, ModelArgs, UpstreamArgs};
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
    /// How tools are written for the model, and calls of them by it
    #[arg(long, env = "KAITO_TOOL_FORMAT", value_enum, default_value_t = ToolFormat::Auto)]
    pub tool_format: ToolFormat,
    #[command(flatten)]
    pub adapters: AdapterArgs,
    #[command(flatten)]
    pub access: AccessArgs,
    #[command(flatten)]
    pub api: ApiArgs,
    #[command(flatten)]
    pub upstream: UpstreamArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ToolFormat {
    /// As the model's chat template writes them, where it does, else generic
    Auto,
    /// As the model's chat template writes them
    Native,
    /// In the model's instructions, as JSON
    Generic,
    /// Not at all: requests with tools are refused
    Off,
}

impl From<ToolFormat> for ToolSetting {
    fn from(format: ToolFormat) -> Self {
        match format {
            ToolFormat::Auto => Self::Auto,
            ToolFormat::Native => Self::Native,
            ToolFormat::Generic => Self::Generic,
            ToolFormat::Off => Self::Off,
        }
    }
}

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
    /// Longest time that a request may take, like 90s or 5m
    #[arg(long, env = "KAITO_REQUEST_TIMEOUT", value_name = "TIME", value_parser = values::duration, default_value = "180s")]
    pub request_timeout: Duration,
    /// Requests that may wait for their turn; more are answered with 429
    #[arg(long, env = "KAITO_MAX_WAITING", value_name = "N", default_value = "256")]
    pub max_waiting: NonZeroUsize,
    #[command(flatten)]
    pub access: AccessArgs,
}

//! An engine elsewhere that computes.

use std::time::Duration;

use clap::Args;
use url::Url;

use crate::values;

/// What is said of the device, the weights and adapters, which is the engine's matter.
const OF_OWN_ENGINE: [&str; 14] = [
    "device",
    "dtype",
    "compute",
    "quantize",
    "quantize_cache",
    "kv_dtype",
    "threads",
    "kv_cache_memory",
    "kernels",
    "embeddings",
    "adapter",
    "adapters",
    "runtime_adapters",
    "adapter_memory",
];

/// Which engine computes, if it is not this one.
#[derive(Debug, Args)]
#[command(next_help_heading = "Engine elsewhere")]
pub struct UpstreamArgs {
    /// Have an engine elsewhere compute the tokens: vLLM's server, at http://127.0.0.1:8000 say. Of MODEL everything but the
    /// weights is read
    #[arg(long, env = "KAITO_UPSTREAM", value_name = "URL", value_parser = engine, conflicts_with_all = OF_OWN_ENGINE)]
    pub upstream: Option<Url>,
    /// Key that it asks for
    #[arg(long, env = "KAITO_UPSTREAM_API_KEY", value_name = "KEY", hide_env_values = true, requires = "upstream")]
    pub upstream_api_key: Option<String>,
    /// Name by which it knows the model [default: the first that it serves]
    #[arg(long, env = "KAITO_UPSTREAM_MODEL", value_name = "NAME", value_parser = values::not_empty, requires = "upstream")]
    pub upstream_model: Option<String>,
    /// How long a request waits for it where it dies or restarts; then the request fails. The wait is part of --request-timeout
    #[arg(long, env = "KAITO_UPSTREAM_WAIT", value_name = "TIME", value_parser = values::duration, default_value = "120s", requires = "upstream")]
    pub upstream_wait: Duration,
    /// The `kaito supervise` that runs it, at http://127.0.0.1:5001 say: /healthz repeats what it knows of an engine that is away
    #[arg(long, env = "KAITO_UPSTREAM_SUPERVISOR", value_name = "URL", value_parser = supervisor, requires = "upstream")]
    pub upstream_supervisor: Option<Url>,
}

fn engine(text: &str) -> Result<Url, String> {
    url(text, "http://127.0.0.1:8000")
}

fn supervisor(text: &str) -> Result<Url, String> {
    url(text, "http://127.0.0.1:5001")
}

fn url(text: &str, example: &str) -> Result<Url, String> {
    let expected = || format!("expected an address like {example}");
    let url: Url = text.trim().parse().map_err(|_| expected())?;
    let plain =
        url.query().is_none() && url.fragment().is_none() && url.username().is_empty() && url.password().is_none();
    if ["http", "https"].contains(&url.scheme()) && url.has_host() && plain { Ok(url) } else { Err(expected()) }
}

//! `kaito serve`: a model over HTTP.

use std::{io::Write, net::SocketAddr, sync::Arc};

use anyhow::{Context, anyhow};
use kaito_engine::LanguageModel;
use kaito_server::{ApiKeys, HostName, Server, ServerOptions};

use crate::{
    args::{AccessArgs, LogFormat, ServeArgs},
    display::{bytes, count},
    logging::{self, escape},
    model::ModelSource,
    network,
};

pub fn run(args: ServeArgs, log_format: LogFormat) -> anyhow::Result<()> {
    let source = Arc::new(ModelSource::resolve(&args.model)?);
    let options = ServerOptions {
        address: network::address(args.host.as_deref(), args.port)?,
        api_keys: keys(&args.access)?,
        allowed_hosts: allowed_hosts(&args),
        allowed_origins: args.access.allowed_origin.clone(),
        request_timeout: args.request_timeout,
        body_limit: args.body_limit,
        drain_limit: args.drain_limit.unwrap_or(args.request_timeout),
        stall_limit: args.stall_limit,
        model_name: source.name.clone(),
        dropped_log_lines: logging::dropped_lines(),
    };
    let open_to_all = !options.address.ip().is_loopback() && !options.api_keys.are_asked_for();
    let runtime = tokio::runtime::Runtime::new().context("cannot start the threads of the server")?;
    runtime.block_on(async move {
        let server = Server::bind(options).await?;
        let address = server.local_addr();
        tracing::info!(%address, model = source.name, "listening, loading the model");
        if open_to_all {
            tracing::warn!("everybody who can reach this address can use the model; --api-key sets a key");
        }
        let announced = source.clone();
        let loader =
            move |report: &(dyn Fn(f32) + Sync)| source.load(&args.model, Some(args.max_waiting.get()), report);
        let ready = move |model: &LanguageModel| announce(&announced, model, address, log_format);
        server.run_and_tell(loader, ready).await.map_err(anyhow::Error::from)
    })
}

fn keys(args: &AccessArgs) -> anyhow::Result<ApiKeys> {
    let mut given = Vec::new();
    for keys in &args.api_key {
        given.extend(keys.0.clone().map_err(|error| anyhow!("--api-key: {error}"))?);
    }
    ApiKeys::new(given, args.api_key_file.as_deref()).map_err(|error| anyhow!("--api-key-file: {error}"))
}

/// Besides those that the user allows, the name that the server listens on is a host of its own.
fn allowed_hosts(args: &ServeArgs) -> Vec<HostName> {
    let own = args.host.as_deref().and_then(HostName::parse);
    args.access.allowed_host.iter().cloned().chain(own).collect()
}

/// What is being served, and how to try it.
fn announce(source: &ModelSource, model: &LanguageModel, address: SocketAddr, log_format: LogFormat) {
    if log_format == LogFormat::Json {
        tracing::info!(model = source.name, %address, "ready to serve");
        return;
    }
    let info = model.info();
    let stats = model.stats();
    let text = format!(
        "kaito {} serves {}\n\
         \n  model       {} ({})\
         \n  parameters  {} in {}, {} of memory\
         \n  sequences   {} at once, of {} tokens at most\
         \n  pages       {} for keys and values in {}\
         \n  address     http://{address}\n\
         \nTry it:\n\n{}\n\n",
        env!("CARGO_PKG_VERSION"),
        escape::line(&source.name),
        escape::line(&info.directory.display().to_string()),
        info.family,
        count(info.parameters),
        info.precision(),
        bytes(info.weights_bytes),
        info.max_batch_size,
        info.max_seq_len,
        stats.pages_total,
        info.kv_dtype,
        example(reachable(address), info.chat_template),
    );
    // The summary goes into a queue, so that a stdout that nobody reads neither blocks nor fails.
    let _ = logging::patient_stdout().write_all(text.as_bytes());
}

/// An address that a client on this machine can use.
fn reachable(address: SocketAddr) -> String {
    if address.ip().is_unspecified() { format!("localhost:{}", address.port()) } else { address.to_string() }
}

fn example(address: String, chat_template: bool) -> String {
    let body = if chat_template {
        r#"{"messages":[{"role":"user","content":"What is a workspace?"}],"max_new_tokens":100,"return_full_text":false}"#
    } else {
        r#"{"prompt":"I believe the meaning of life is","max_length":100}"#
    };
    format!("  curl http://{address}/chat -H 'Content-Type: application/json' -d '{body}'")
}

//! `kaito serve`: a model over HTTP.

use std::{
    io::{self, Write},
    net::SocketAddr,
};

use anyhow::Context;
use kaito_engine::LanguageModel;
use kaito_server::{ApiKey, Server, ServerOptions};

use crate::{
    args::{LogFormat, ServeArgs},
    display::{bytes, count},
    model::ModelSource,
    network,
};

pub fn run(args: ServeArgs, log_format: LogFormat) -> anyhow::Result<()> {
    let source = ModelSource::resolve(&args.model)?;
    let options = ServerOptions {
        address: network::address(args.host.as_deref(), args.port)?,
        api_key: args.api_key.clone().and_then(ApiKey::new),
        request_timeout: args.request_timeout,
        body_limit: args.body_limit,
        drain_limit: args.drain_limit.unwrap_or(args.request_timeout),
        stall_limit: args.stall_limit,
        allowed_origins: args
            .allowed_origin
            .iter()
            .map(|origin| {
                origin.parse().with_context(|| format!("--allowed-origin {origin:?} cannot stand in a header"))
            })
            .collect::<anyhow::Result<_>>()?,
        model_name: source.name.clone(),
    };
    let open_to_all = !options.address.ip().is_loopback() && options.api_key.is_none();
    let runtime = tokio::runtime::Runtime::new().context("cannot start the threads of the server")?;
    runtime.block_on(async move {
        let server = Server::bind(options).await?;
        let address = server.local_addr();
        tracing::info!(%address, model = source.name, "listening, loading the model");
        if open_to_all {
            tracing::warn!("whoever can reach this address can use the model; --api-key asks for a key");
        }
        let loader =
            move |report: &(dyn Fn(f32) + Sync)| -> Result<LanguageModel, Box<dyn std::error::Error + Send + Sync>> {
                let model = source.load(&args.model, Some(args.max_waiting.get()), report)?;
                announce(&source, &model, address, log_format);
                Ok(model)
            };
        server.run(loader).await.map_err(anyhow::Error::from)
    })
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
        source.name,
        info.directory.display(),
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
    // A closed stdout is no reason not to serve.
    let _ = io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush());
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

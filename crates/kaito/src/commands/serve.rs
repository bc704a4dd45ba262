//! `kaito serve`: a model over HTTP.

use std::{io::Write, net::SocketAddr, num::NonZeroUsize};

use anyhow::{Context, anyhow, bail};
use kaito_engine::{Adapters, LanguageModel, LoadOptions, ModelInfo};
use kaito_server::{ApiKeys, HostName, Model, Server, ServerOptions, Tls};
use kaito_upstream::{Upstream, UpstreamOptions};
use tokio::runtime::Handle;

use crate::{
    adapters,
    args::{AccessArgs, LogFormat, ServeArgs, UpstreamArgs},
    display::{bytes, count},
    logging::{self, escape},
    model::{ModelSource, with_flags},
    network,
};

pub fn run(args: ServeArgs, log_format: LogFormat) -> anyhow::Result<()> {
    args.model.choose_kernels()?;
    let source = ModelSource::resolve(&args.model)?;
    let options = ServerOptions {
        address: network::address(args.host.as_deref(), args.port)?,
        api_keys: keys(&args.access)?,
        tls: tls(&args.access)?,
        allowed_hosts: allowed_hosts(&args),
        allowed_origins: args.access.allowed_origin.clone(),
        request_timeout: args.request_timeout,
        body_limit: args.body_limit,
        drain_limit: args.drain_limit.unwrap_or(args.request_timeout),
        stall_limit: args.stall_limit,
        model_name: source.name.clone(),
        served_model_names: args.api.served_model_name.clone(),
        repository: source.repository(),
        any_model_name: args.api.any_model_name,
        trust_request_chat_template: args.api.trust_request_chat_template,
        embeddings: args.api.embeddings.map(Into::into),
        runtime_adapters: args.adapters.runtime_adapters.clone(),
        tool_format: args.tool_format.into(),
        dropped_log_lines: logging::dropped_lines(),
        ..ServerOptions::default()
    };
    if let Some(folder) = &options.runtime_adapters {
        if !options.api_keys.are_asked_for() {
            bail!(
                "--runtime-adapters needs an API key: who loads adapters decides what all others are told (--api-key)"
            );
        }
        if !folder.is_dir() {
            bail!("--runtime-adapters: there is no folder {}", folder.display());
        }
    }
    let adapters = if args.upstream.upstream.is_some() {
        // Flags for adapters are refused beside --upstream; what lies in the usual folder nobody has asked for.
        if let Some(warning) = adapters::left_to_the_engine() {
            tracing::warn!("{warning}");
        }
        adapters::Chosen::default()
    } else {
        adapters::choose(&args.adapters, &options)?
    };
    let load = LoadOptions {
        max_waiting: args.max_waiting.get(),
        adapters: adapters.sources,
        combine_adapters: adapters.combined,
        adapter_memory: args.adapters.runtime_adapters.as_ref().map_or(0, |_| args.adapters.adapter_memory),
        ..args.model.load_options()
    };
    let scheme = if options.tls.is_some() { "https" } else { "http" };
    let needs_key = options.api_keys.are_asked_for();
    // The first name is the one that answers carry.
    let served_name = args.api.served_model_name.first().unwrap_or(&source.name).clone();
    let open_to_all = !options.address.ip().is_loopback() && !needs_key;
    let runtime = tokio::runtime::Runtime::new().context("cannot start the threads of the server")?;
    runtime.block_on(async move {
        let server = Server::bind(options).await?;
        let address = server.local_addr();
        tracing::info!(%address, model = source.name, "listening, loading the model");
        if open_to_all {
            tracing::warn!("everybody who can reach this address can use the model; --api-key sets a key");
        }
        let place = Place { served_name, scheme, address, needs_key, log_format };
        let served = match args.upstream.upstream.clone() {
            None => {
                let loader = move |report: &(dyn Fn(f32) + Sync)| source.load(&load, report);
                let ready = move |model: &LanguageModel| announce(model, &place);
                server.run_and_tell(loader, ready).await
            }
            Some(url) => {
                let (runtime, note) = (Handle::current(), server.loading_note());
                let options = upstream(&args, url.as_str());
                let loader = move |_: &(dyn Fn(f32) + Sync)| {
                    source.without_weights(|directory| {
                        let connected = Upstream::connect(directory, options, |what| note.waits_for(what));
                        runtime.block_on(connected).map_err(|error| match error {
                            kaito_upstream::Error::Model(error) => with_flags(error),
                            other => other.into(),
                        })
                    })
                };
                let ready = move |model: &Upstream| announce(model, &place);
                server.run_and_tell(loader, ready).await
            }
        };
        served.map_err(anyhow::Error::from)
    })
}

/// How the engine at `url` is used.
fn upstream(args: &ServeArgs, url: &str) -> UpstreamOptions {
    /// Most sequences at the same time, unless something else is said: as many as vLLM itself runs on most GPUs.
    const MAX_BATCH_SIZE: usize = 256;
    let UpstreamArgs { upstream_api_key, upstream_model, upstream_wait, upstream_supervisor, .. } = &args.upstream;
    UpstreamOptions {
        url: url.to_owned(),
        api_key: upstream_api_key.clone(),
        model: upstream_model.clone(),
        wait: *upstream_wait,
        supervisor: upstream_supervisor.as_ref().map(ToString::to_string),
        chat_template: args.model.chat_template.clone(),
        max_seq_len: args.model.max_seq_len.map(NonZeroUsize::get),
        max_batch_size: args.model.max_batch_size.map_or(MAX_BATCH_SIZE, NonZeroUsize::get),
        max_waiting: args.max_waiting.get(),
    }
}

/// Where a model is served, and how that is told.
struct Place {
    served_name: String,
    scheme: &'static str,
    address: SocketAddr,
    needs_key: bool,
    log_format: LogFormat,
}

fn keys(args: &AccessArgs) -> anyhow::Result<ApiKeys> {
    let mut given = Vec::new();
    for keys in &args.api_key {
        given.extend(keys.0.clone().map_err(|error| anyhow!("--api-key: {error}"))?);
    }
    ApiKeys::new(given, args.api_key_file.as_deref()).map_err(|error| anyhow!("--api-key-file: {error}"))
}

fn tls(args: &AccessArgs) -> anyhow::Result<Option<Tls>> {
    let files = args.tls_certificate.as_deref().zip(args.tls_key.as_deref());
    files.map(|(certificate, key)| Tls::open(certificate, key)).transpose().context("--tls-certificate and --tls-key")
}

/// Besides those that the user allows, the name that the server listens on is a host of its own.
fn allowed_hosts(args: &ServeArgs) -> Vec<HostName> {
    let own = args.host.as_deref().and_then(HostName::parse);
    args.access.allowed_host.iter().cloned().chain(own).collect()
}

/// What is being served, and how to try it.
fn announce(model: &impl Model, place: &Place) {
    let Place { ref served_name, scheme, address, needs_key, log_format } = *place;
    if log_format == LogFormat::Json {
        tracing::info!(model = served_name, %address, "ready to serve");
        return;
    }
    let info = model.info();
    let own = info.upstream.is_none();
    let reachable = origin(scheme, address);
    let base_url = format!("{reachable}/v1");
    let text = format!(
        "kaito {} serves {}\n\
         \n  model       {} ({})\
         \n  parameters  {}\
         \n  sequences   {} at once, of {} tokens at most\
         {}\
         \n  address     {scheme}://{address}\
         \n  OpenAI API  {}{}\n\
         \nTry it:\n\n{}\n\nOr in Python, after pip install openai:\n\n{}\n\n",
        env!("CARGO_PKG_VERSION"),
        escape::line(served_name),
        escape::line(&info.directory.display().to_string()),
        info.family,
        parameters(info),
        info.max_batch_size,
        info.max_seq_len,
        if own {
            format!(
                "\n  KV cache    {} pages in {}{}",
                model.stats().pages_total,
                info.kv_dtype,
                adapters_line(model.adapters())
            )
        } else {
            String::new()
        },
        base_url,
        info.upstream.as_deref().map(|url| format!("\n  engine      {}", escape::line(url))).unwrap_or_default(),
        example(&reachable, info.chat_template),
        python(&base_url, served_name, info.chat_template, needs_key),
    );
    // The summary goes into a queue, so that a stdout that nobody reads neither blocks nor fails.
    let _ = logging::patient_stdout().write_all(text.as_bytes());
}

/// How many parameters there are, and how this process holds and multiplies them, if it does.
fn parameters(info: &ModelInfo) -> String {
    let parameters = count(info.parameters);
    if info.upstream.is_some() {
        return parameters;
    }
    format!(
        "{parameters} in {}, {} of memory\n  arithmetic  activations in {}, {} kernels",
        info.precisions(),
        bytes(info.weights_bytes),
        info.activations(),
        info.instruction_set,
    )
}

/// A line of the summary about adapters, where there are any.
fn adapters_line(adapters: &Adapters) -> String {
    /// How many are named.
    const NAMED: usize = 8;
    let listed = adapters.list();
    if listed.is_empty() {
        return String::new();
    }
    let names: Vec<_> = listed.iter().take(NAMED).map(|adapter| escape::line(&adapter.name).into_owned()).collect();
    let more = if listed.len() > NAMED { ", ..." } else { "" };
    format!("\n  adapters    {} in {} of memory: {}{more}", listed.len(), bytes(adapters.bytes()), names.join(", "))
}

/// One line of Python that asks the model through OpenAI's client.
fn python(base_url: &str, model: &str, chat_template: bool, needs_key: bool) -> String {
    let key = if needs_key { "os.environ[\"KAITO_API_KEY\"]" } else { "\"none\"" };
    let import = if needs_key { "import os; " } else { "" };
    // A string of JSON is one of Python too.
    let model = serde_json::Value::from(escape::line(model).as_ref());
    let (method, input, answer) = if chat_template {
        ("chat.completions", r#"messages=[{"role": "user", "content": "What is a workspace?"}]"#, "message.content")
    } else {
        ("completions", r#"prompt="I believe the meaning of life is", max_tokens=100"#, "text")
    };
    format!(
        "  {import}from openai import OpenAI; client = OpenAI(base_url=\"{base_url}\", api_key={key}); \
         print(client.{method}.create(model={model}, {input}).choices[0].{answer})"
    )
}

/// How a client on this machine reaches the server.
fn origin(scheme: &str, address: SocketAddr) -> String {
    if address.ip().is_unspecified() {
        format!("{scheme}://localhost:{}", address.port())
    } else {
        format!("{scheme}://{address}")
    }
}

fn example(address: &str, chat_template: bool) -> String {
    let body = if chat_template {
        r#"{"messages":[{"role":"user","content":"What is a workspace?"}],"max_new_tokens":100,"return_full_text":false}"#
    } else {
        r#"{"prompt":"I believe the meaning of life is","max_length":100}"#
    };
    format!("  curl {address}/chat -H 'Content-Type: application/json' -d '{body}'")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_python() {
        assert_eq!(
            python("http://127.0.0.1:5000/v1", "de\"mo", true, false),
            r#"  from openai import OpenAI; client = OpenAI(base_url="http://127.0.0.1:5000/v1", api_key="none"); print(client.chat.completions.create(model="de\"mo", messages=[{"role": "user", "content": "What is a workspace?"}]).choices[0].message.content)"#
        );
        assert_eq!(
            python("http://localhost:1/v1", "m", false, true),
            r#"  import os; from openai import OpenAI; client = OpenAI(base_url="http://localhost:1/v1", api_key=os.environ["KAITO_API_KEY"]); print(client.completions.create(model="m", prompt="I believe the meaning of life is", max_tokens=100).choices[0].text)"#
        );
    }

    #[test]
    fn an_address_that_stands_for_all_is_reached_as_localhost() {
        assert_eq!(origin("https", "0.0.0.0:5000".parse().unwrap()), "https://localhost:5000");
        assert_eq!(origin("http", "[::1]:80".parse().unwrap()), "http://[::1]:80");
    }
}

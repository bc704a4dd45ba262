//! The model as Ollama's clients ask about it: its names, `/api/tags`, `/api/ps`, `/api/show` and `/api/version`.

use std::sync::Arc;
use std::time::SystemTime;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, SecondsFormat, Utc};
use kaito_engine::{Cancel, ModelInfo};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::dialect::{Context, Request, Task, Work};
use crate::error::ApiError;
use crate::openai::names::{self, Names, Served};
use crate::openai::tools::ToolSetting;
use crate::openai::{body, parameters};
use crate::options::ServerOptions;
use crate::state::App;

/// What stands behind a name that says nothing of a version.
const LATEST: &str = ":latest";
/// A model stays loaded as long as its server runs; clients expect a time all the same.
const EXPIRES: &str = "9999-12-31T23:59:59Z";

/// What a request asks for, by a name with or without `:latest`.
///
/// # Errors
/// 404 for a model that is not served.
pub(super) fn resolve(names: Names<'_>, asked: Option<&str>) -> Result<Served, ApiError> {
    let Some(asked) = asked else { return names.resolve(None) };
    let other = match asked.strip_suffix(LATEST) {
        Some(plain) => plain.to_owned(),
        None => format!("{asked}{LATEST}"),
    };
    let other_is_meant = names.find(asked).is_none() && names.find(&other).is_some();
    names.resolve(Some(if other_is_meant { &other } else { asked }))
}

/// A name as it is listed.
fn tagged(name: &str) -> String {
    // A colon before the last slash is a registry's port.
    let last = name.rsplit('/').next().unwrap_or(name);
    if last.contains(':') { name.to_owned() } else { format!("{name}{LATEST}") }
}

/// A time as Ollama writes it.
pub(super) fn timestamp(time: SystemTime) -> String {
    DateTime::<Utc>::from(time).to_rfc3339_opts(SecondsFormat::Nanos, true)
}

/// Parameters as people count them.
fn parameter_size(parameters: u64) -> String {
    match parameters {
        1_000_000_000.. => format!("{:.1}B", parameters as f64 / 1e9),
        1_000_000.. => format!("{:.1}M", parameters as f64 / 1e6),
        _ => format!("{:.1}K", parameters as f64 / 1e3),
    }
}

fn details(info: &ModelInfo) -> Value {
    json!({
        "parent_model": "",
        "format": "safetensors",
        "family": info.family,
        "families": [info.family],
        "parameter_size": parameter_size(info.parameters),
        "quantization_level": info.precision().to_uppercase(),
    })
}

/// Tells one model from another. Weights have no digest here, so it is one of what describes them.
fn digest(options: &ServerOptions, info: &ModelInfo) -> String {
    let root = options.repository.as_deref().unwrap_or(&options.model_name);
    let text = format!("{root}\n{}\n{}\n{}", info.family, info.parameters, info.precision());
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The model under each of its names, with the fields of `more`; none while it loads.
fn list(app: &App, more: impl Fn(&ModelInfo) -> Value) -> Response {
    let modified = timestamp(app.started);
    let listed = |name: &str, info: &ModelInfo| {
        let name = tagged(name);
        let mut model = json!({
            "name": name,
            "model": name,
            "modified_at": modified,
            "size": info.weights_bytes,
            "digest": digest(&app.options, info),
            "details": details(info),
        });
        if let (Value::Object(model), Value::Object(more)) = (&mut model, more(info)) {
            model.extend(more);
        }
        model
    };
    let models: Vec<_> = app.model().map_or_else(Vec::new, |model| {
        let adapters = model.adapters().list().into_iter().map(|adapter| adapter.name);
        let names =
            names::served(&app.options).iter().cloned().chain(model.names(&app.options).alone()).chain(adapters);
        names.map(|name| listed(&name, model.info())).collect()
    });
    Json(json!({ "models": models })).into_response()
}

/// The models there are: `GET /api/tags`.
pub(crate) async fn tags(State(app): State<Arc<App>>) -> Response {
    list(&app, |_| json!({}))
}

/// The models that are loaded: `GET /api/ps`.
pub(crate) async fn running(State(app): State<Arc<App>>) -> Response {
    list(&app, |info| json!({ "expires_at": EXPIRES, "size_vram": 0, "context_length": info.max_seq_len }))
}

/// `GET /api/version`
pub(crate) async fn version() -> Response {
    Json(json!({ "version": env!("CARGO_PKG_VERSION") })).into_response()
}

/// A question what a model is.
#[derive(Debug)]
struct Show(Option<String>);

/// Reads the body of `/api/show`.
///
/// # Errors
/// 422 for a body that is no JSON object, 400 for a name that is no string.
pub(crate) fn parse_show(bytes: &[u8]) -> Result<Request, ApiError> {
    let mut body = body::parse(bytes)?;
    let (model, name) = (body.take_string("model")?, body.take_string("name")?);
    parameters::ignore_rest(body);
    Ok(Request { stream: false, work: Box::new(Show(model.or(name))) })
}

impl Work for Show {
    fn prepare(self: Box<Self>, context: &Context<'_>, _: &Cancel) -> Result<Task, ApiError> {
        resolve(context.names(), self.0.as_deref())?;
        let (info, tokenizer) = (context.info, &context.request.tokenizer);
        let mut facts = Map::new();
        facts.insert("general.architecture".to_owned(), info.family.into());
        facts.insert("general.parameter_count".to_owned(), info.parameters.into());
        for (name, value) in [
            ("context_length", info.max_seq_len),
            ("embedding_length", info.hidden_size),
            ("block_count", info.num_layers),
            ("vocab_size", info.vocab_size),
        ] {
            facts.insert(format!("{}.{name}", info.family), value.into());
        }
        let mut capabilities = vec!["completion"];
        if tokenizer.has_chat_template() && context.options.tool_format != ToolSetting::Off {
            capabilities.push("tools");
        }
        Ok(Task::Known(json!({
            "modelfile": "",
            "parameters": "",
            "template": tokenizer.chat_template_source().unwrap_or_default(),
            "details": details(info),
            "model_info": facts,
            "capabilities": capabilities,
        })))
    }
}

#[cfg(test)]
mod tests {
    use kaito_engine::Adapters;

    use super::*;

    #[test]
    fn latest_may_be_left_out_or_added() {
        let named =
            |name: &str| ServerOptions { served_model_names: vec![name.to_owned()], ..ServerOptions::default() };
        let (plain, latest) = (named("m"), named("m:latest"));
        for (options, asked, answers) in [
            (&plain, Some("m"), Some("m")),
            (&plain, Some("m:latest"), Some("m")),
            (&plain, Some("default:latest"), Some("m")),
            (&plain, Some("m:7b"), None),
            (&plain, Some("M"), None),
            (&plain, Some(""), Some("m")),
            (&plain, None, Some("m")),
            (&latest, Some("m"), Some("m:latest")),
            (&latest, Some("m:latest"), Some("m:latest")),
        ] {
            let found = resolve(Names::new(options, &Adapters::default(), None), asked).ok();
            assert_eq!(found.as_ref().map(|served| served.name.as_str()), answers, "{asked:?}");
        }
        for (name, expected) in [("m", "m:latest"), ("m:7b", "m:7b"), ("host:5/m", "host:5/m:latest")] {
            assert_eq!(tagged(name), expected);
        }
    }

    #[test]
    fn times_and_sizes_are_written_as_ollama_does() {
        let time = SystemTime::UNIX_EPOCH + std::time::Duration::new(86_400, 5);
        assert_eq!(timestamp(time), "1970-01-02T00:00:00.000000005Z");
        for (parameters, expected) in [(7_241_732_096, "7.2B"), (134_515_008, "134.5M"), (3_072, "3.1K")] {
            assert_eq!(parameter_size(parameters), expected);
        }
    }
}

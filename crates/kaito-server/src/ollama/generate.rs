//! A prompt that is answered, or continued as it is: `POST /api/generate`.

use std::sync::Arc;
use std::time::Instant;

use kaito_engine::{Cancel, Special};
use serde_json::{Map, Value};

use super::answer::{Answer, Shape};
use super::options::{Common, refuse_images};
use super::{models, options};
use crate::dialect::{Context, Request, Task, Work};
use crate::error::ApiError;
use crate::fields::Fields;
use crate::openai::chat::ChatRequest;
use crate::openai::names::Served;
use crate::openai::parameters::unsupported;
use crate::openai::{body, prompt};

/// A prompt as the client wrote it.
#[derive(Debug)]
struct Generate {
    common: Common,
    prompt: String,
    system: Option<String>,
    raw: bool,
    came: Instant,
}

/// Reads the body of `/api/generate`.
///
/// # Errors
/// 422 for a body that is no JSON object, 400 for what cannot be done.
pub(crate) fn parse(bytes: &[u8]) -> Result<Request, ApiError> {
    let came = Instant::now();
    let mut body = body::parse(bytes)?;
    let common = Common::take(&mut body)?;
    refuse_images(&mut body)?;
    refuse_text(&mut body, "suffix", "these models continue a text and fill no gap")?;
    refuse_text(&mut body, "template", "the server was started with the template (--chat-template FILE)")?;
    if body.take_list("context")?.is_some_and(|tokens| !tokens.is_empty()) {
        return Err(unsupported(&body.path("context"), "/api/chat takes conversations"));
    }
    let prompt = body.take_string("prompt")?.unwrap_or_default();
    let system = body.take_string("system")?.filter(|system| !system.is_empty());
    let raw = body.take_flag("raw")?.unwrap_or(false);
    if raw && system.is_some() {
        return Err(ApiError::bad_request("`system` can't stand beside `raw`: true, which has no template.")
            .with_param(body.path("system")));
    }
    options::ignore(body);
    let stream = common.stream;
    Ok(Request { stream, work: Box::new(Generate { common, prompt, system, raw, came }) })
}

fn refuse_text(body: &mut Fields, name: &str, why: &str) -> Result<(), ApiError> {
    match body.take_string(name)? {
        Some(text) if !text.is_empty() => Err(unsupported(&body.path(name), why)),
        _ => Ok(()),
    }
}

fn message(role: &str, content: String) -> Map<String, Value> {
    Map::from_iter([("role".to_owned(), role.into()), ("content".to_owned(), content.into())])
}

impl Work for Generate {
    fn prepare(self: Box<Self>, context: &Context<'_>, cancel: &Cancel) -> Result<Task, ApiError> {
        let Self { common, prompt: text, system, raw, came } = *self;
        let Common { model, parameters, format, .. } = common;
        let Served { name, adapter } = models::resolve(context.names(), model.as_deref())?;
        if text.is_empty() {
            return Ok(Task::Known(Answer::loaded(Shape::Generate, name)));
        }
        // A model that was trained on texts alone continues the prompt.
        let raw = raw || (system.is_none() && !context.request.tokenizer.has_chat_template());
        let (prompt, choices) = if raw {
            let tokens = prompt::encode(&text, Special::Add, "prompt", &parameters, context, cancel)?;
            let grammar = format.as_ref().map(|format| (format.parameter.as_str(), &format.grammar));
            (prompt::prepare(parameters, tokens, grammar, context, cancel)?.with_adapter(adapter), None)
        } else {
            let system = system.map(|system| message("system", system));
            let messages = system.into_iter().chain([message("user", text)]).collect();
            let request = ChatRequest { model: Some(name.clone()), parameters, format, ..ChatRequest::new(messages) };
            let prepared = request.prepare(context, cancel)?;
            (prepared.prompt, Some(prepared.choices))
        };
        let reply = Answer::new(Shape::Generate, name, choices, came);
        Ok(Task::Generate { prompts: vec![prompt], reply: Arc::new(reply) })
    }
}

//! Anthropic's API: `POST /v1/messages`, and `POST /v1/messages/count_tokens`.
//!
//! A message is a chat completion in other words. [`conversation`] reads what was said, [`tools`] what may be called, [`blocks`] makes
//! the blocks of the answer, and [`answer`] writes the message around them, whole or as events. Betas, `cache_control` and whatever
//! else is said of how to serve a request are ignored.

mod answer;
mod blocks;
mod conversation;
mod tools;

use std::sync::Arc;

use kaito_engine::{Cancel, Special};
use serde_json::{Value, json};

use self::answer::Answer;
use self::conversation::Said;
use crate::dialect::{Context, Request, Task, Work};
use crate::error::ApiError;
use crate::fields::{self, Fields};
use crate::openai::body;
use crate::openai::chat::{ChatRequest, PreparedChat};
use crate::openai::format::Format;
use crate::openai::parameters;
use crate::openai::tools::Grammar;

/// 0 is allowed, and leaves the likeliest token alone.
const LEAST_TOP_P: f64 = 1e-6;
/// Most texts that end an answer.
const MAX_STOPS: usize = 16;
/// How many times the longest sequence a conversation may have whose tokens are counted: it need not fit.
const LONGEST: usize = 8;

/// What is known and cannot be honoured.
const UNSUPPORTED: &[(&str, &str)] =
    &[("container", "this server runs no tools of its own"), ("mcp_servers", "this server runs no tools of its own")];

/// A message as the client asked for it.
#[derive(Debug)]
struct Message(ChatRequest);

/// A message whose tokens are to be counted.
#[derive(Debug)]
struct Count(ChatRequest);

/// Reads the body of a request for a message.
///
/// # Errors
/// 422 for a body that is no JSON object, 400 for what cannot be done.
pub(crate) fn parse(bytes: &[u8]) -> Result<Request, ApiError> {
    let (request, stream) = read(body::parse(bytes)?)?;
    Ok(Request { stream, work: Box::new(Message(request)) })
}

/// Reads the body of a request that counts tokens.
///
/// # Errors
/// As [`parse`].
pub(crate) fn parse_count(bytes: &[u8]) -> Result<Request, ApiError> {
    let mut body = body::parse(bytes)?;
    let request = read_conversation(&mut body)?;
    parameters::ignore_rest(body);
    Ok(Request { stream: false, work: Box::new(Count(request)) })
}

fn read(mut body: Fields) -> Result<(ChatRequest, bool), ApiError> {
    parameters::refuse(&body, UNSUPPORTED)?;
    let stream = body.take_flag("stream")?.unwrap_or(false);
    let max_tokens = take_limit(&mut body)?;
    let mut request = read_conversation(&mut body)?;
    let sampling = &mut request.parameters.sampling;
    sampling.max_tokens = Some(max_tokens);
    sampling.temperature = take_part(&mut body, "temperature")?;
    sampling.top_p = take_part(&mut body, "top_p")?.map(|top_p| top_p.max(LEAST_TOP_P));
    sampling.top_k = body.take_count("top_k")?.map(|top_k| i64::try_from(top_k).unwrap_or(i64::MAX));
    request.parameters.stop = take_stops(&mut body)?;
    request.format = take_format(&mut body)?;
    parameters::ignore_rest(body);
    Ok((request, stream))
}

/// What decides the prompt.
fn read_conversation(body: &mut Fields) -> Result<ChatRequest, ApiError> {
    let model = body.take_string("model")?;
    let Said { messages, ending } = conversation::take(body)?;
    let tools = tools::take(body)?;
    let mut request = ChatRequest { model, tools, ..ChatRequest::new(messages) };
    request.conversation.ending = ending;
    Ok(request)
}

fn take_limit(body: &mut Fields) -> Result<usize, ApiError> {
    const NAME: &str = "max_tokens";
    let at = body.path(NAME);
    let allowed = "an integer of at least 1";
    let given = body.take_integer(NAME)?.ok_or_else(|| fields::missing(&at, allowed))?;
    usize::try_from(given).ok().filter(|count| *count > 0).ok_or_else(|| fields::invalid(&at, given, allowed))
}

/// A number from 0 to 1.
fn take_part(body: &mut Fields, name: &str) -> Result<Option<f64>, ApiError> {
    match body.take_number(name)? {
        Some(value) if !(0.0..=1.0).contains(&value) => {
            Err(fields::invalid(&body.path(name), value, "a number from 0 to 1"))
        }
        value => Ok(value),
    }
}

fn take_stops(body: &mut Fields) -> Result<Vec<String>, ApiError> {
    const NAME: &str = "stop_sequences";
    let at = body.path(NAME);
    let stops = body.take_strings(NAME)?.unwrap_or_default();
    if stops.len() > MAX_STOPS {
        let given = format!("a list of {}", stops.len());
        return Err(fields::invalid(&at, given, "a list of up to 16 strings"));
    }
    match stops.iter().position(String::is_empty) {
        Some(i) => Err(fields::invalid(&format!("{at}[{i}]"), "\"\"", "a string of at least one character")),
        None => Ok(stops),
    }
}

/// `output_config.format`, and `output_format`, which it was called before: a schema that the answer follows.
fn take_format(body: &mut Fields) -> Result<Option<Format>, ApiError> {
    let format = match body.take_object("output_config")? {
        Some(mut config) => config.take_object("format")?,
        None => body.take_object("output_format")?,
    };
    let Some(mut format) = format else { return Ok(None) };
    let parameter = format.path("type").trim_end_matches(".type").to_owned();
    let at = format.path("type");
    match format.take_string("type")?.as_deref() {
        Some("json_schema") => {}
        Some(other) => {
            return Err(fields::unknown_value(&at, other, "\"json_schema\""));
        }
        None => return Err(fields::missing(&at, "\"json_schema\"")),
    }
    let at = format.path("schema");
    match format.take("schema") {
        Some(schema @ Value::Object(_)) => {
            let grammar = Grammar::JsonSchema { schema, strict: true, whitespace: None };
            Ok(Some(Format { parameter, grammar }))
        }
        Some(other) => Err(fields::wrong_shape(&at, "a JSON schema, which is an object", &other)),
        None => Err(fields::missing(&at, "a JSON schema")),
    }
}

impl Work for Message {
    fn prepare(self: Box<Self>, context: &Context<'_>, cancel: &Cancel) -> Result<Task, ApiError> {
        let PreparedChat { prompt, choices } = self.0.prepare(context, cancel)?;
        Ok(Task::Generate { prompts: vec![prompt], reply: Arc::new(Answer::new(choices)) })
    }
}

impl Work for Count {
    fn prepare(self: Box<Self>, context: &Context<'_>, cancel: &Cancel) -> Result<Task, ApiError> {
        let text = self.0.render(context, cancel)?;
        let limit = context.request.max_seq_len.saturating_mul(LONGEST);
        let tokens = context.request.encode(&text, Special::Skip, limit, cancel)?;
        Ok(Task::Known(json!({ "input_tokens": tokens.len() })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(more: Value) -> Result<(ChatRequest, bool), ApiError> {
        let mut body = json!({ "max_tokens": 5, "messages": [{ "role": "user", "content": "a" }] });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        read(Fields::root(body.as_object().unwrap().clone()))
    }

    #[test]
    fn parameters_have_their_ranges() {
        let (request, stream) = message(json!({
            "temperature": 0.5, "top_p": 0.9, "top_k": 40, "stop_sequences": ["x"], "stream": true,
            "metadata": { "user_id": "u" }, "thinking": { "type": "enabled", "budget_tokens": 1024 }, "service_tier": "auto",
        }))
        .unwrap();
        assert!(stream);
        let sampling = &request.parameters.sampling;
        assert_eq!(
            (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.top_k),
            (Some(5), Some(0.5), Some(0.9), Some(40))
        );
        assert_eq!(request.parameters.stop, ["x"]);
        for (more, detail) in [
            (json!({ "max_tokens": null }), "`max_tokens` is missing: it must be an integer of at least 1."),
            (json!({ "max_tokens": 0 }), "`max_tokens` is 0: it must be an integer of at least 1."),
            (json!({ "temperature": 1.5 }), "`temperature` is 1.5: it must be a number from 0 to 1."),
            (json!({ "top_k": -1 }), "`top_k` is -1: it must be an integer of at least 0."),
            (
                json!({ "stop_sequences": [""] }),
                "`stop_sequences[0]` is \"\": it must be a string of at least one character.",
            ),
            (
                json!({ "stop_sequences": vec!["a"; 17] }),
                "`stop_sequences` is a list of 17: it must be a list of up to 16 strings.",
            ),
            (json!({ "mcp_servers": [1] }), "`mcp_servers` is not supported: this server runs no tools of its own."),
            (
                json!({ "output_config": { "format": { "type": "xml" } } }),
                "`output_config.format.type` is \"xml\": it must be \"json_schema\".",
            ),
        ] {
            assert_eq!(message(more).unwrap_err().detail(), detail);
        }
    }
}

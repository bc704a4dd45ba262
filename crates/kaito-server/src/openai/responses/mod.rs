//! Responses: `POST /v1/responses`, without a store.
//!
//! A response is a chat completion in other words: items come in, items go out. [`input`] reads those that come, [`items`] makes those
//! that go, and [`answer`] writes the response around them, whole or as events.

mod answer;
mod input;
mod items;
mod tools;

use std::sync::Arc;

use axum::http::{StatusCode, Uri};
use kaito_engine::Cancel;
use serde_json::{Value, json};

use self::answer::{Answer, Echo};
use super::body;
use super::chat::{ChatRequest, PreparedChat};
use super::format::Format;
use super::parameters::{self, Parameters, StreamOptions};
use super::tools::Grammar;
use crate::dialect::{Context, Request, Task, Work};
use crate::error::ApiError;
use crate::fields::{self, Fields};

/// What is known and cannot be honoured.
const UNSUPPORTED: &[(&str, &str)] = &[
    ("previous_response_id", "responses are not stored here; send the earlier items in `input`"),
    ("conversation", "conversations are not stored here; send the earlier items in `input`"),
    ("prompt", "prompts are not stored here; send them as `instructions` and `input`"),
];

/// A response as the client asked for it.
#[derive(Debug)]
struct Response {
    request: ChatRequest,
    echo: Echo,
}

/// Reads the body of a request for a response.
///
/// # Errors
/// 422 for a body that is no JSON object, 400 for what cannot be done.
pub(crate) fn parse(bytes: &[u8]) -> Result<Request, ApiError> {
    let (response, stream) = read(body::parse(bytes)?)?;
    Ok(Request { stream, work: Box::new(response) })
}

/// What asks for a response that was given earlier, or for a part of one, or wants it deleted or cancelled.
pub(crate) async fn not_stored(uri: Uri) -> ApiError {
    let rest = uri.path().rsplit("/responses/").next().unwrap_or_default();
    let id: String = rest.split('/').next().unwrap_or_default().chars().take(100).collect();
    let detail = format!("There is no response {id}: responses are not stored here.");
    ApiError::new(StatusCode::NOT_FOUND, detail).with_param("response_id")
}

fn read(mut body: Fields) -> Result<(Response, bool), ApiError> {
    parameters::refuse(&body, UNSUPPORTED)?;
    if body.take_flag("background")?.unwrap_or(false) {
        return Err(parameters::unsupported("background", "responses are not stored here, so nobody could fetch it"));
    }
    if body.take_string("truncation")?.is_some_and(|truncation| truncation != "disabled") {
        return Err(parameters::unsupported("truncation", "an input that is too long is refused, \"disabled\""));
    }
    let stream = body.take_flag("stream")?.unwrap_or(false);
    let model = body.take_string("model")?;
    let instructions = body.take_string("instructions")?;
    let messages = input::take(&mut body, instructions.as_deref())?;
    let (grammar, text) = take_format(&mut body)?;
    let metadata = body.take_object("metadata")?.map(Fields::into_rest).unwrap_or_default();
    let given_tools = tools::take(&mut body)?;
    // Texts are asked for one at a time.
    let _ = (body.take("n"), body.take("best_of"), body.take("logprobs"));
    refuse_log_probs(&mut body)?;
    let mut parameters = Parameters::take(&mut body, StreamOptions::default())?;
    parameters.sampling.max_tokens = take_limit(&mut body)?;
    parameters::ignore_rest(body);
    let echo = Echo {
        instructions,
        max_output_tokens: parameters.sampling.max_tokens,
        metadata,
        parallel_tool_calls: given_tools.parallel,
        temperature: parameters.sampling.temperature,
        text,
        tool_choice: given_tools.choice,
        tools: given_tools.list,
        top_p: parameters.sampling.top_p,
    };
    let format = grammar.map(|grammar| Format { parameter: "text.format".to_owned(), grammar });
    let request = ChatRequest { model, parameters, format, tools: given_tools.parsed, ..ChatRequest::new(messages) };
    Ok((Response { request, echo }, stream))
}

/// `text`: what the answer must be like, and how that is said in the response.
fn take_format(body: &mut Fields) -> Result<(Option<Grammar>, Value), ApiError> {
    let plain = json!({ "format": { "type": "text" } });
    let Some(mut text) = body.take_object("text")? else { return Ok((None, plain)) };
    let at = text.path("format");
    let Some(given) = text.take("format") else { return Ok((None, plain)) };
    let echo = json!({ "format": given });
    let mut format = Fields::object(&at, given)?;
    let at = format.path("type");
    let kinds = "\"text\", \"json_object\" or \"json_schema\"";
    let kind = format.take_string("type")?.ok_or_else(|| fields::missing(&at, kinds))?;
    let grammar = match kind.as_str() {
        "text" => None,
        "json_object" => Some(Grammar::JsonObject),
        "json_schema" => {
            format.take_string("name")?;
            let strict = format.take_flag("strict")?.unwrap_or(false);
            let at = format.path("schema");
            let schema = format.take("schema").ok_or_else(|| fields::missing(&at, "a JSON schema"))?;
            if !schema.is_object() {
                let error = fields::wrong_shape(&at, "a JSON schema, which is an object", &schema);
                return Err(error.with_code("invalid_json_schema"));
            }
            Some(Grammar::JsonSchema { schema, strict, whitespace: None })
        }
        other => {
            return Err(fields::unknown_value(&at, other, kinds));
        }
    };
    Ok((grammar, echo))
}

/// Log-probabilities are given by chat completions alone.
fn refuse_log_probs(body: &mut Fields) -> Result<(), ApiError> {
    const WHY: &str = "/v1/chat/completions gives log-probabilities";
    if body.take_count("top_logprobs")?.unwrap_or(0) > 0 {
        return Err(parameters::unsupported("top_logprobs", WHY));
    }
    match body.take_strings("include")? {
        Some(names) if names.iter().any(|name| name == "message.output_text.logprobs") => {
            Err(parameters::unsupported("include", WHY))
        }
        // What else can be included is of tools and models that are not here.
        _ => Ok(()),
    }
}

fn take_limit(body: &mut Fields) -> Result<Option<usize>, ApiError> {
    const NAME: &str = "max_output_tokens";
    let given = body.take_integer(NAME)?;
    let check = |count: i64| {
        let limit = usize::try_from(count).ok().filter(|count| *count > 0);
        limit.ok_or_else(|| fields::invalid(&body.path(NAME), count, "an integer of at least 1"))
    };
    given.map(check).transpose()
}

impl Work for Response {
    fn prepare(self: Box<Self>, context: &Context<'_>, cancel: &Cancel) -> Result<Task, ApiError> {
        let Self { request, echo } = *self;
        let prepared = request.prepare(context, cancel);
        let PreparedChat { prompt, choices } = prepared.map_err(|error| error.renamed(&[("messages", "input")]))?;
        let reply = Answer::new(choices, echo, context.info);
        Ok(Task::Generate { prompts: vec![prompt], reply: Arc::new(reply) })
    }
}

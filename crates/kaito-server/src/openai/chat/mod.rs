//! Chat completions: `POST /v1/chat/completions`.

mod answer;
mod request;
mod stream;

use std::sync::Arc;

use kaito_engine::{Cancel, Conversation, Ending};
use serde_json::Value;

use self::answer::{Answer, Shown};
pub(crate) use self::request::{ChatRequest, Choices, PreparedChat, take_conversation};
use super::body;
use super::log_probs::Naming;
use super::parameters::{self, Parameters, StreamOptions};
use crate::dialect::{Context, Request, Task, Work};
use crate::error::ApiError;
use crate::fields::Fields;

/// What is known and cannot be honoured.
const UNSUPPORTED: &[(&str, &str)] = &[
    ("functions", "`tools` has taken its place"),
    ("function_call", "`tool_choice` has taken its place"),
    ("audio", "this server answers in text"),
    ("prediction", "drafts are made of the text itself"),
    ("logits_processors", "a request brings no code"),
];

/// A chat completion as the client wrote it.
#[derive(Debug)]
struct ChatCompletion {
    request: ChatRequest,
    stream: StreamOptions,
    log_probs: Option<usize>,
    echo: bool,
}

/// Reads the body of a chat completion.
///
/// # Errors
/// 422 for a body that is no JSON object, 400 for what cannot be done.
pub(crate) fn parse(bytes: &[u8]) -> Result<Request, ApiError> {
    let completion = read(body::parse(bytes)?)?;
    Ok(Request { stream: completion.stream.stream, work: Box::new(completion) })
}

fn read(mut body: Fields) -> Result<ChatCompletion, ApiError> {
    parameters::refuse(&body, UNSUPPORTED)?;
    refuse_modalities(&mut body)?;
    let stream = parameters::take_stream(&mut body)?;
    let log_probs = take_log_probs(&mut body)?;
    let prompt_log_probs = parameters::take_prompt_log_probs(&mut body, stream)?;
    let mut request = ChatRequest::take(&mut body, stream)?;
    request.parameters.sampling.logprobs = log_probs;
    request.parameters.sampling.prompt_logprobs = prompt_log_probs;
    let echo = body.take_flag("echo")?.unwrap_or(false);
    parameters::ignore_rest(body);
    Ok(ChatCompletion { request, stream, log_probs, echo })
}

/// `logprobs` and `top_logprobs`: how many of the likeliest tokens are given with each chosen one, if any are.
fn take_log_probs(body: &mut Fields) -> Result<Option<usize>, ApiError> {
    let wanted = body.take_flag("logprobs")?.unwrap_or(false);
    match parameters::take_likely(body, "top_logprobs")? {
        // Clients that always send their own default ask for nothing.
        None | Some(0) if !wanted => Ok(None),
        Some(_) if !wanted => {
            let at = body.path("top_logprobs");
            Err(ApiError::bad_request(format!("`{at}` is given without `logprobs`: true.")).with_param(at))
        }
        likely => Ok(Some(likely.unwrap_or(0))),
    }
}

fn refuse_modalities(body: &mut Fields) -> Result<(), ApiError> {
    match body.take_strings("modalities")? {
        Some(modalities) if modalities != ["text"] => {
            Err(parameters::unsupported(&body.path("modalities"), "this server answers in text, [\"text\"]"))
        }
        _ => Ok(()),
    }
}

/// The text of the message that the answer continues; empty where it begins one.
fn continued(conversation: &Conversation) -> &str {
    let last = conversation.messages.last().filter(|_| conversation.ending == Ending::ContinueFinalMessage);
    last.and_then(|message| message.get("content")).and_then(Value::as_str).unwrap_or_default()
}

impl Work for ChatCompletion {
    fn prepare(self: Box<Self>, context: &Context<'_>, cancel: &Cancel) -> Result<Task, ApiError> {
        let Self { request, stream, log_probs, echo } = *self;
        let echo = if echo { continued(&request.conversation).to_owned() } else { String::new() };
        let Parameters { return_token_ids, tokens_as_ids, .. } = request.parameters;
        let prompt_log_probs = request.parameters.sampling.prompt_logprobs.is_some();
        let PreparedChat { prompt, choices } = request.prepare(context, cancel)?;
        let shown = Shown {
            stream,
            log_probs: log_probs.map(|likely| Naming { as_ids: tokens_as_ids, likely }),
            prompt_log_probs,
            prompt_token_ids: return_token_ids.then(|| prompt.prompt().to_vec()),
            echo,
        };
        let reply = Answer::new(choices, shown, context.info);
        Ok(Task::Generate { prompts: vec![prompt], reply: Arc::new(reply) })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn chat(more: Value) -> Result<ChatCompletion, ApiError> {
        let mut body = json!({ "messages": [{ "role": "user", "content": "a" }] });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        read(Fields::root(body.as_object().unwrap().clone()))
    }

    #[test]
    fn log_probabilities_are_asked_for_in_two_fields() {
        for (more, expected) in [
            (json!({}), Some(None)),
            (json!({ "logprobs": false, "top_logprobs": 0 }), Some(None)),
            (json!({ "logprobs": true }), Some(Some(0))),
            (json!({ "logprobs": true, "top_logprobs": 20 }), Some(Some(20))),
            (json!({ "top_logprobs": 1 }), None),
            (json!({ "logprobs": true, "top_logprobs": 21 }), None),
        ] {
            assert_eq!(chat(more.clone()).ok().map(|chat| chat.log_probs), expected, "{more}");
        }
    }

    #[test]
    fn the_newer_limit_wins() {
        for (more, expected) in [
            (json!({}), None),
            (json!({ "max_tokens": 5 }), Some(5)),
            (json!({ "max_completion_tokens": 7, "max_tokens": 5 }), Some(7)),
        ] {
            assert_eq!(chat(more).unwrap().request.parameters.sampling.max_tokens, expected);
        }
    }

    #[test]
    fn what_clients_send_beside_the_request_is_ignored() {
        let more = json!({
            "store": true, "metadata": { "a": "b" }, "user": "u", "service_tier": "auto", "reasoning_effort": "low",
            "prompt_cache_key": "k", "safety_identifier": "s", "max_retries": 2, "modalities": ["text"], "functions": null,
        });
        assert!(chat(more).is_ok());
    }
}

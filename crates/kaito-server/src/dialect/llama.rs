//! The dialect of the published Llama 2 code: `prompts` to `/generate`, dialogs to `/chat`.

use std::sync::Arc;

use kaito_engine::dialects::meta::{ChatRequest, CompletionRequest, MetaOptions};
use kaito_engine::{Cancel, ChatMessage, Output};
use serde_json::{Value, json};

use super::{Context, Reply, Request, Streaming, Task, Work, parse_messages};
use crate::error::ApiError;
use crate::fields::{self, Fields};
use crate::{json, stream, tgi};

const PARAMETERS: [&str; 7] =
    ["temperature", "top_p", "max_gen_len", "max_seq_len", "max_batch_size", "seed", "stream"];

/// Reads the body of `/generate`, `{"prompts": [...], "parameters": {...}}`.
pub(crate) fn parse_completion(body: &[u8]) -> Result<Request, ApiError> {
    let body = Fields::root(json::parse_object(body)?);
    if tgi::is_ours(&body) {
        return tgi::parse_generate(body);
    }
    let mut body = body.sorted();
    if !body.contains("prompts") && body.contains("prompt") {
        return Err(ApiError::wrong_shape(
            "The body has `prompt`, which /chat takes; /generate takes `prompts`, a list of strings.",
        ));
    }
    let list = body.take_list("prompts")?.ok_or_else(|| fields::missing("prompts", "a list of strings"))?;
    let prompts = list
        .into_iter()
        .enumerate()
        .map(|(i, value)| fields::string(&format!("prompts[{i}]"), value))
        .collect::<Result<Vec<_>, _>>()?;
    let mut parameters = body.take_object("parameters")?.unwrap_or_default();
    let stream = take_stream(&mut body, &mut parameters)?;
    deny_rest(body, &["prompts", "parameters", "stream"])?;
    let options = parse_options(parameters)?;
    Ok(Request { stream, work: Box::new(CompletionRequest { prompts, options }) })
}

/// Reads `{"input_data": {"input_string": [[...], ...], "parameters": {...}}}`, where `parameters` may also stand
/// beside `input_data`.
pub(super) fn parse_dialogs(body: Fields) -> Result<Request, ApiError> {
    let (stream, request) = read_dialogs(body)?;
    Ok(Request { stream, work: Box::new(request) })
}

fn read_dialogs(mut body: Fields) -> Result<(bool, ChatRequest), ApiError> {
    let mut input = body.take_object("input_data")?.unwrap_or_default();
    let at = input.path("input_string");
    let wanted = "a list of dialogs, each a list of messages";
    let dialogs = input
        .take_list("input_string")?
        .ok_or_else(|| fields::missing(&at, wanted))?
        .into_iter()
        .enumerate()
        .map(|(i, value)| match value {
            Value::Array(messages) => parse_messages(&format!("{at}[{i}]"), messages),
            other => Err(fields::wrong_shape(&format!("{at}[{i}]"), "a dialog, a list of messages", &other)),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let mut parameters = body.take_object("parameters")?.unwrap_or_default();
    if let Some(inner) = input.take_object("parameters")? {
        parameters.absorb(inner)?;
    }
    let stream = take_stream(&mut body, &mut parameters)?;
    input.deny_rest(&["input_string", "parameters"])?;
    deny_rest(body, &["input_data", "parameters", "stream"])?;
    let options = parse_options(parameters)?;
    Ok((stream, ChatRequest { dialogs, options }))
}

/// What is left of the body is unknown, or in the wrong place.
fn deny_rest(body: Fields, known: &[&str]) -> Result<(), ApiError> {
    match PARAMETERS.iter().find(|name| body.contains(name)) {
        Some(name) => {
            Err(ApiError::bad_request(format!("`{name}` stands at the top level; it belongs under `parameters`.")))
        }
        None => body.deny_rest(known),
    }
}

/// `stream` may stand in the body or among its parameters.
fn take_stream(body: &mut Fields, parameters: &mut Fields) -> Result<bool, ApiError> {
    match (body.take_flag("stream")?, parameters.take_flag("stream")?) {
        (Some(_), Some(_)) => Err(ApiError::bad_request("`stream` also stands among the parameters; give it once.")),
        (outer, inner) => Ok(outer.or(inner).unwrap_or(false)),
    }
}

fn parse_options(mut parameters: Fields) -> Result<MetaOptions, ApiError> {
    let count = |value: Option<u64>| value.map(|n| usize::try_from(n).unwrap_or(usize::MAX));
    let options = MetaOptions {
        temperature: parameters.take_number("temperature")?,
        top_p: parameters.take_number("top_p")?,
        max_gen_len: count(parameters.take_count("max_gen_len")?),
        max_seq_len: count(parameters.take_count("max_seq_len")?),
        max_batch_size: count(parameters.take_count("max_batch_size")?),
        seed: parameters.take_count("seed")?,
    };
    parameters.deny_rest(&PARAMETERS)?;
    Ok(options)
}

impl Work for CompletionRequest {
    fn prepare(self: Box<Self>, context: &Context<'_>, cancel: &Cancel) -> Result<Task, ApiError> {
        let prompts = CompletionRequest::prepare(&self, context.request, cancel)?;
        Ok(Task::Generate { prompts, reply: Arc::new(Completions { prompts: self.prompts }) })
    }
}

impl Work for ChatRequest {
    fn prepare(self: Box<Self>, context: &Context<'_>, cancel: &Cancel) -> Result<Task, ApiError> {
        let prompts = ChatRequest::prepare(&self, context.request, cancel)?;
        Ok(Task::Generate { prompts, reply: Arc::new(Dialogs { dialogs: self.dialogs }) })
    }
}

/// The answer to `/generate`: each prompt with its response.
struct Completions {
    prompts: Vec<String>,
}

impl Reply for Completions {
    fn size(&self, output: &Output) -> usize {
        self.prompts.iter().map(String::len).sum::<usize>() + texts_len(output)
    }

    fn body(&self, output: &Output) -> String {
        let pairs = self.prompts.iter().zip(&output.sequences);
        let results: Vec<_> =
            pairs.map(|(prompt, answer)| json!({ "prompt": prompt, "response": answer.text })).collect();
        json!({ "results": results }).to_string()
    }

    fn streaming(self: Arc<Self>) -> Box<dyn Streaming> {
        stream::kaito(self)
    }
}

/// The answer to dialogs: each dialog as it came, with the answer appended and the roles capitalised.
struct Dialogs {
    dialogs: Vec<Vec<ChatMessage>>,
}

impl Reply for Dialogs {
    fn size(&self, output: &Output) -> usize {
        let messages = self.dialogs.iter().flatten().map(|message| message.role.len() + message.content.len());
        messages.sum::<usize>() + texts_len(output)
    }

    fn body(&self, output: &Output) -> String {
        let message = |role: &str, content: &str| json!({ "content": content, "role": capitalise(role) });
        let pairs = self.dialogs.iter().zip(&output.sequences);
        let results: Vec<Vec<_>> = pairs
            .map(|(dialog, answer)| {
                let mut messages: Vec<_> = dialog.iter().map(|m| message(&m.role, &m.content)).collect();
                messages.push(message("assistant", &answer.text));
                messages
            })
            .collect();
        json!({ "results": results }).to_string()
    }

    fn streaming(self: Arc<Self>) -> Box<dyn Streaming> {
        stream::kaito(self)
    }
}

fn texts_len(output: &Output) -> usize {
    output.sequences.iter().map(|sequence| sequence.text.len()).sum()
}

/// The first letter large, the others small.
fn capitalise(role: &str) -> String {
    let mut letters = role.chars();
    match letters.next() {
        None => String::new(),
        Some(first) => first.to_uppercase().chain(letters.flat_map(char::to_lowercase)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dialogs(body: &str) -> ChatRequest {
        read_dialogs(Fields::root(crate::json::parse_object(body.as_bytes()).unwrap())).unwrap().1
    }

    #[test]
    fn parameters_stand_beside_input_data_or_inside_it() {
        for body in [
            r#"{"input_data":{"input_string":[]},"parameters":{"temperature":0.5,"max_gen_len":7}}"#,
            r#"{"input_data":{"input_string":[],"parameters":{"temperature":0.5,"max_gen_len":7}}}"#,
            r#"{"input_data":{"input_string":[],"parameters":{"temperature":0.5}},"parameters":{"max_gen_len":7}}"#,
        ] {
            let options = dialogs(body).options;
            assert_eq!((options.temperature, options.max_gen_len, options.top_p), (Some(0.5), Some(7), None));
        }
    }

    #[test]
    fn stream_stands_in_the_body_or_among_the_parameters() {
        for body in [r#"{"prompts":["a"],"stream":true}"#, r#"{"prompts":["a"],"parameters":{"stream":true}}"#] {
            assert!(parse_completion(body.as_bytes()).unwrap().stream);
        }
        assert!(!parse_completion(br#"{"prompts":["a"],"stream":null}"#).unwrap().stream);
    }

    #[test]
    fn roles_are_capitalised() {
        for (role, shown) in [("user", "User"), ("ASSISTANT", "Assistant"), ("ßa", "SSa"), ("", "")] {
            assert_eq!(capitalise(role), shown);
        }
    }
}

//! What was said: Ollama's messages as chat completions have them.

use kaito_engine::Ending;
use serde_json::{Map, Value};

use super::options::refuse_images;
use crate::error::ApiError;
use crate::fields::{self, Fields};
use crate::openai::messages;
use crate::openai::tools::Tools;

/// Reads `messages`; none where there are none, which asks for no answer.
///
/// # Errors
/// 400 for messages of the wrong shape, and for images.
pub(super) fn take(body: &mut Fields) -> Result<Vec<Map<String, Value>>, ApiError> {
    let at = body.path("messages");
    let list = body.take_list("messages")?.unwrap_or_default();
    if list.is_empty() {
        return Ok(Vec::new());
    }
    let list: Vec<Value> = list
        .into_iter()
        .enumerate()
        .map(|(i, message)| translate(&format!("{at}[{i}]"), message).map(Value::Object))
        .collect::<Result<_, _>>()?;
    messages::take(&mut Fields::root(Map::from_iter([("messages".to_owned(), Value::Array(list))])))
}

/// Whether the answer begins with the last message, as it does where that is the assistant's.
pub(super) fn ending(messages: &[Map<String, Value>]) -> Ending {
    let text = |message: &Map<String, Value>, name: &str| message.get(name).and_then(Value::as_str).map(str::to_owned);
    let begins = |message: &Map<String, Value>| {
        text(message, "role").as_deref() == Some("assistant")
            && !message.contains_key("tool_calls")
            && text(message, "content").is_some_and(|content| !content.is_empty())
    };
    if messages.last().is_some_and(begins) { Ending::ContinueFinalMessage } else { Ending::AddGenerationPrompt }
}

/// Reads `tools`.
///
/// # Errors
/// 400 for what is wrong with them.
pub(super) fn take_tools(body: &mut Fields) -> Result<Option<Tools>, ApiError> {
    let at = body.path("tools");
    // Clients that have no tools send an empty list.
    let list = body.take_list("tools")?.unwrap_or_default();
    if list.is_empty() {
        return Ok(None);
    }
    let with_type = |(i, tool): (usize, Value)| {
        let mut tool = Fields::object(&format!("{at}[{i}]"), tool)?.into_rest();
        tool.entry("type").or_insert_with(|| "function".into());
        Ok(Value::Object(tool))
    };
    let list = list.into_iter().enumerate().map(with_type).collect::<Result<Vec<_>, ApiError>>()?;
    Tools::parse(&mut Fields::root(Map::from_iter([("tools".to_owned(), Value::Array(list))])))
}

fn translate(at: &str, message: Value) -> Result<Map<String, Value>, ApiError> {
    let mut message = Fields::object(at, message)?;
    refuse_images(&mut message)?;
    // What a model has thought is not told it again.
    message.take("thinking");
    let tool = message.take_string("tool_name")?;
    let calls_at = message.path("tool_calls");
    let calls = message.take_list("tool_calls")?.unwrap_or_default();
    let calls: Vec<Value> = calls
        .into_iter()
        .enumerate()
        .map(|(i, call)| translate_call(&format!("{calls_at}[{i}]"), call))
        .collect::<Result<_, _>>()?;
    let mut message = message.into_rest();
    if message.get("content").is_none_or(Value::is_null) {
        message.insert("content".to_owned(), "".into());
    }
    if let Some(tool) = tool {
        message.entry("name").or_insert_with(|| tool.into());
    }
    if !calls.is_empty() {
        message.insert("tool_calls".to_owned(), calls.into());
    }
    Ok(message)
}

/// A call whose arguments are an object, as one whose arguments are its JSON.
fn translate_call(at: &str, call: Value) -> Result<Value, ApiError> {
    let mut call = Fields::object(at, call)?;
    let function_at = call.path("function");
    let wanted = "an object with `name` and `arguments`";
    let mut function = call.take_object("function")?.ok_or_else(|| fields::missing(&function_at, wanted))?;
    let arguments_at = function.path("arguments");
    let arguments = match function.take("arguments") {
        None => "{}".to_owned(),
        Some(arguments @ Value::Object(_)) => arguments.to_string(),
        Some(Value::String(text)) => text,
        Some(other) => return Err(fields::wrong_shape(&arguments_at, "an object", &other)),
    };
    let mut function = function.into_rest();
    function.shift_remove("index");
    function.insert("arguments".to_owned(), arguments.into());
    let mut call = call.into_rest();
    call.entry("type").or_insert_with(|| "function".into());
    call.insert("function".to_owned(), function.into());
    Ok(Value::Object(call))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(messages: Value) -> Result<Vec<Map<String, Value>>, ApiError> {
        take(&mut Fields::root(json!({ "messages": messages }).as_object().unwrap().clone()))
    }

    #[test]
    fn calls_and_results_are_those_of_chat_completions() {
        let call = json!({ "function": { "name": "f", "arguments": { "x": 1 } } });
        let read = read(json!([
            { "role": "user", "content": "Hi", "images": [] },
            { "role": "assistant", "thinking": "Hm", "tool_calls": [call] },
            { "role": "tool", "content": "5", "tool_name": "f" },
        ]));
        assert_eq!(
            json!(read.unwrap()),
            json!([
                { "role": "user", "content": "Hi" },
                {
                    "role": "assistant", "content": "",
                    "tool_calls": [{ "type": "function", "function": { "name": "f", "arguments": "{\"x\":1}" } }],
                },
                { "role": "tool", "content": "5", "name": "f" },
            ])
        );
    }

    #[test]
    fn an_answer_that_is_begun_is_continued() {
        let [user, begun, empty] = [("user", "a"), ("assistant", "b"), ("assistant", "")]
            .map(|(role, content)| json!({ "role": role, "content": content }));
        for (last, expected) in [
            (&user, Ending::AddGenerationPrompt),
            (&begun, Ending::ContinueFinalMessage),
            (&empty, Ending::AddGenerationPrompt),
        ] {
            assert_eq!(ending(&read(json!([user, last])).unwrap()), expected, "{last}");
        }
    }
}

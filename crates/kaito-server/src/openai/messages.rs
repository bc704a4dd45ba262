//! The messages of a conversation, from what clients send to what a chat template sees.

use serde_json::{Map, Value};

use super::parameters::unsupported;
use crate::error::ApiError;
use crate::fields::{self, Fields};

/// Reads `messages`: each with a `role`, and with `content` as one text.
///
/// # Errors
/// 400 for a list that is missing or empty, for messages of the wrong shape and for what this server cannot honour: images and
/// the like.
pub(crate) fn take(body: &mut Fields) -> Result<Vec<Map<String, Value>>, ApiError> {
    let at = body.path("messages");
    let list = body.take_list("messages")?.ok_or_else(|| fields::missing(&at, "a list of messages"))?;
    if list.is_empty() {
        return Err(fields::invalid(&at, "[]", "a list of at least one message"));
    }
    list.into_iter().enumerate().map(|(i, message)| read(&format!("{at}[{i}]"), message)).collect()
}

fn read(at: &str, message: Value) -> Result<Map<String, Value>, ApiError> {
    let mut message = Fields::object(at, message)?;
    let role = message.take_string("role")?.ok_or_else(|| fields::missing(&message.path("role"), "a string"))?;
    // OpenAI's newer models call the system so.
    let role = if role == "developer" { "system".to_owned() } else { role };
    if message.contains("audio") {
        return Err(unsupported(&message.path("audio"), "this server reads texts alone"));
    }
    if message.contains("function_call") {
        return Err(unsupported(&message.path("function_call"), "`tool_calls` has taken its place"));
    }
    let calls = take_calls(&mut message)?;
    let content = take_content(&mut message, role == "assistant" && calls.is_some())?;
    if message.contains("tool_call_id") {
        let id = message.take_string("tool_call_id")?.unwrap_or_default();
        let mut read = seen_by_template(role, content, calls, message);
        read.insert("tool_call_id".to_owned(), id.into());
        return Ok(read);
    }
    Ok(seen_by_template(role, content, calls, message))
}

fn seen_by_template(role: String, content: Option<String>, calls: Option<Value>, rest: Fields) -> Map<String, Value> {
    let mut read = Map::new();
    read.insert("role".to_owned(), role.into());
    read.insert("content".to_owned(), content.map_or(Value::Null, Value::String));
    read.extend(calls.map(|calls| ("tool_calls".to_owned(), calls)));
    read.extend(rest.into_rest().into_iter().filter(|(_, value)| !value.is_null()));
    read
}

/// `content`: a text, parts that are texts, or nothing where a message has calls or a refusal.
fn take_content(message: &mut Fields, may_be_absent: bool) -> Result<Option<String>, ApiError> {
    let at = message.path("content");
    let refusal = message.take_string("refusal")?;
    match message.take("content") {
        Some(Value::String(text)) => Ok(Some(text)),
        Some(Value::Array(parts)) => {
            let mut text = String::new();
            for (i, part) in parts.into_iter().enumerate() {
                text.push_str(&part_text(&format!("{at}[{i}]"), part)?);
            }
            Ok(Some(text))
        }
        Some(other) => Err(fields::wrong_shape(&at, "a string or a list of parts", &other)),
        None if refusal.is_some() => Ok(refusal),
        None if may_be_absent => Ok(None),
        None => Err(fields::missing(&at, "a string or a list of parts")),
    }
}

fn part_text(at: &str, part: Value) -> Result<String, ApiError> {
    // Some clients send texts among the parts.
    if let Value::String(text) = part {
        return Ok(text);
    }
    let mut part = Fields::object(at, part)?;
    let kind =
        part.take_string("type")?.ok_or_else(|| fields::missing(&part.path("type"), "\"text\" or \"refusal\""))?;
    let name = match kind.as_str() {
        "text" | "input_text" | "output_text" => "text",
        "refusal" => "refusal",
        other => {
            let shown: String = other.chars().take(60).collect();
            let detail = format!(
                "`{}` is \"{shown}\": only parts of the types \"text\" and \"refusal\" are supported.",
                part.path("type")
            );
            return Err(ApiError::bad_request(detail).with_code("unsupported_parameter").with_param(part.path("type")));
        }
    };
    part.take_string(name)?.ok_or_else(|| fields::missing(&part.path(name), "a string"))
}

/// `tool_calls` of an earlier answer, checked for the shape that every client sends; none where the list is empty.
fn take_calls(message: &mut Fields) -> Result<Option<Value>, ApiError> {
    let at = message.path("tool_calls");
    let Some(list) = message.take_list("tool_calls")? else { return Ok(None) };
    for (i, call) in list.iter().enumerate() {
        let mut call = Fields::object(&format!("{at}[{i}]"), call.clone())?;
        call.take_string("id")?;
        let wanted = "an object with `name` and `arguments`";
        let function_at = call.path("function");
        let mut function = call.take_object("function")?.ok_or_else(|| fields::missing(&function_at, wanted))?;
        for name in ["name", "arguments"] {
            let at = function.path(name);
            function.take_string(name)?.ok_or_else(|| fields::missing(&at, "a string"))?;
        }
    }
    Ok((!list.is_empty()).then_some(Value::Array(list)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read_all(messages: Value) -> Result<Value, ApiError> {
        let body = json!({ "messages": messages });
        take(&mut Fields::root(body.as_object().unwrap().clone())).map(|list| json!(list))
    }

    #[test]
    fn parts_are_joined_and_developers_are_the_system() {
        let read = read_all(json!([
            { "role": "developer", "content": [{ "type": "text", "text": "Be" }, { "type": "text", "text": " brief." }] },
            { "role": "user", "content": "Hi", "name": "Ann", "refusal": null },
            { "role": "assistant", "content": [{ "type": "refusal", "refusal": "No." }] },
            { "role": "assistant", "refusal": "Never." },
            { "role": "critic", "content": [] },
        ]));
        assert_eq!(
            read.unwrap(),
            json!([
                { "role": "system", "content": "Be brief." },
                { "role": "user", "content": "Hi", "name": "Ann" },
                { "role": "assistant", "content": "No." },
                { "role": "assistant", "content": "Never." },
                { "role": "critic", "content": "" },
            ])
        );
    }

    #[test]
    fn an_assistant_with_calls_needs_no_content() {
        let calls = json!([{ "id": "a", "type": "function", "function": { "name": "f", "arguments": "{}" } }]);
        let read = read_all(json!([
            { "role": "assistant", "content": null, "tool_calls": calls },
            { "role": "tool", "tool_call_id": "a", "content": "5" },
        ]));
        assert_eq!(
            read.unwrap(),
            json!([
                { "role": "assistant", "content": null, "tool_calls": calls },
                { "role": "tool", "content": "5", "tool_call_id": "a" },
            ])
        );
    }

    #[test]
    fn errors_name_the_place() {
        for (messages, detail) in [
            (json!([]), "`messages` is []: it must be a list of at least one message."),
            (json!([5]), "`messages[0]` is 5: it must be an object."),
            (json!([{ "content": "a" }]), "`messages[0].role` is missing: it must be a string."),
            (json!([{ "role": "user" }]), "`messages[0].content` is missing: it must be a string or a list of parts."),
            (
                json!([{ "role": "user", "content": "a" }, { "role": "assistant", "content": null }]),
                "`messages[1].content` is missing: it must be a string or a list of parts.",
            ),
            (
                json!([{ "role": "user", "content": [{ "type": "image_url" }] }]),
                "`messages[0].content[0].type` is \"image_url\": only parts of the types \"text\" and \"refusal\" are supported.",
            ),
            (
                json!([{ "role": "assistant", "tool_calls": [{ "function": { "name": "f" } }] }]),
                "`messages[0].tool_calls[0].function.arguments` is missing: it must be a string.",
            ),
        ] {
            assert_eq!(read_all(messages).unwrap_err().detail(), detail);
        }
    }
}

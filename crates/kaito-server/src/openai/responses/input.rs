//! What a response is asked for with: `instructions` and `input`, as messages.

use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::fields::{self, Fields};

/// What stands between instructions and a system message that follows them.
const BREAK: &str = "\n\n";
const ITEMS: &str = "\"message\", \"function_call\", \"function_call_output\" or \"reasoning\"";
const PARTS: &str = "\"input_text\", \"output_text\", \"text\" or \"refusal\"";

/// Reads `input`, a text or a list of items, after `instructions`.
///
/// # Errors
/// 400 for items of the wrong shape and for those that this server cannot honour: images, files, stored items, other tools.
pub(super) fn take(body: &mut Fields, instructions: Option<&str>) -> Result<Vec<Map<String, Value>>, ApiError> {
    let at = body.path("input");
    let mut messages: Vec<Map<String, Value>> =
        instructions.map(|text| message("system", text.into())).into_iter().collect();
    match body.take("input") {
        Some(Value::String(text)) => messages.push(message("user", text.into())),
        Some(Value::Array(items)) => {
            if items.is_empty() {
                return Err(fields::invalid(&at, "[]", "a string or a list of at least one item"));
            }
            for (i, item) in items.into_iter().enumerate() {
                read(&format!("{at}[{i}]"), item, &mut messages)?;
            }
        }
        Some(other) => return Err(fields::wrong_shape(&at, "a string or a list of items", &other)),
        None => return Err(fields::missing(&at, "a string or a list of items")),
    }
    Ok(messages)
}

fn message(role: &str, content: Value) -> Map<String, Value> {
    Map::from_iter([("role".to_owned(), role.into()), ("content".to_owned(), content)])
}

fn role(message: &Map<String, Value>) -> &str {
    message.get("role").and_then(Value::as_str).unwrap_or_default()
}

/// Adds what an item says to the messages.
fn read(at: &str, item: Value, messages: &mut Vec<Map<String, Value>>) -> Result<(), ApiError> {
    let mut item = Fields::object(at, item)?;
    let kind_at = item.path("type");
    let kind = item.take_string("type")?;
    match kind.as_deref() {
        // Clients leave the type of a message out.
        Some("message") => read_message(item, messages),
        None if item.contains("role") => read_message(item, messages),
        Some("function_call") => read_call(item, messages),
        Some("function_call_output") => read_result(item, messages),
        // The models here do not reason aloud, and thoughts are no part of a conversation.
        Some("reasoning") => Ok(()),
        None => Err(fields::missing(&kind_at, ITEMS)),
        Some("item_reference") => {
            Err(unsupported(&kind_at, "item_reference", "items are not stored here; send them whole"))
        }
        Some(other) => Err(unsupported(&kind_at, other, &format!("items here are {ITEMS}"))),
    }
}

fn unsupported(at: &str, kind: &str, why: &str) -> ApiError {
    let shown: String = kind.chars().take(60).collect();
    let error = ApiError::bad_request(format!("`{at}` is \"{shown}\", which is not supported: {why}."));
    error.with_code("unsupported_parameter").with_param(at)
}

fn read_message(mut item: Fields, messages: &mut Vec<Map<String, Value>>) -> Result<(), ApiError> {
    let at = item.path("role");
    let roles = "\"user\", \"assistant\", \"system\" or \"developer\"";
    let given = item.take_string("role")?.ok_or_else(|| fields::missing(&at, roles))?;
    let given = match given.as_str() {
        "developer" => "system",
        "user" | "assistant" | "system" => &given,
        other => {
            return Err(fields::unknown_value(&at, other, roles));
        }
    };
    let at = item.path("content");
    let content = item.take("content").ok_or_else(|| fields::missing(&at, "a string or a list of parts"))?;
    let text = text(&at, content)?;
    // Templates take one system message, and at the beginning alone: instructions and it are one.
    match messages.last_mut() {
        Some(last) if given == "system" && role(last) == "system" => {
            let before = last.get("content").and_then(Value::as_str).unwrap_or_default();
            let joined = format!("{before}{BREAK}{text}");
            last.insert("content".to_owned(), joined.into());
        }
        _ => messages.push(message(given, text.into())),
    }
    Ok(())
}

/// A text, or parts that are texts.
fn text(at: &str, content: Value) -> Result<String, ApiError> {
    match content {
        Value::String(text) => Ok(text),
        Value::Array(parts) => {
            parts.into_iter().enumerate().map(|(i, part)| part_text(&format!("{at}[{i}]"), part)).collect()
        }
        other => Err(fields::wrong_shape(at, "a string or a list of parts", &other)),
    }
}

fn part_text(at: &str, part: Value) -> Result<String, ApiError> {
    let mut part = Fields::object(at, part)?;
    let kind_at = part.path("type");
    let name = match part.take_string("type")?.as_deref() {
        Some("input_text" | "output_text" | "text") => "text",
        Some("refusal") => "refusal",
        Some(other) => return Err(unsupported(&kind_at, other, &format!("parts here are {PARTS}"))),
        None => return Err(fields::missing(&kind_at, PARTS)),
    };
    let at = part.path(name);
    part.take_string(name)?.ok_or_else(|| fields::missing(&at, "a string"))
}

/// A call that an earlier answer made. Calls that follow each other, and the text before them, are one message.
fn read_call(mut item: Fields, messages: &mut Vec<Map<String, Value>>) -> Result<(), ApiError> {
    let mut string = |name: &str| {
        let at = item.path(name);
        item.take_string(name)?.ok_or_else(|| fields::missing(&at, "a string"))
    };
    let (id, name, arguments) = (string("call_id")?, string("name")?, string("arguments")?);
    if !arguments.trim().is_empty() && serde_json::from_str::<Map<String, Value>>(&arguments).is_err() {
        let shown: String = arguments.chars().take(60).collect();
        return Err(fields::invalid(&item.path("arguments"), Value::from(shown), "a JSON object, as text"));
    }
    let call = json!({ "id": id, "type": "function", "function": { "name": name, "arguments": arguments } });
    match messages.last_mut() {
        Some(last) if role(last) == "assistant" => {
            let calls = last.entry("tool_calls").or_insert_with(|| json!([]));
            if let Value::Array(calls) = calls {
                calls.push(call);
            }
        }
        _ => {
            let mut calling = message("assistant", Value::Null);
            calling.insert("tool_calls".to_owned(), json!([call]));
            messages.push(calling);
        }
    }
    Ok(())
}

/// The result of a call.
fn read_result(mut item: Fields, messages: &mut Vec<Map<String, Value>>) -> Result<(), ApiError> {
    let at = item.path("call_id");
    let id = item.take_string("call_id")?.ok_or_else(|| fields::missing(&at, "a string"))?;
    let at = item.path("output");
    let output = item.take("output").ok_or_else(|| fields::missing(&at, "a string or a list of parts"))?;
    let mut result = message("tool", text(&at, output)?.into());
    result.insert("tool_call_id".to_owned(), id.into());
    messages.push(result);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(body: Value) -> Result<Value, ApiError> {
        let mut fields = Fields::root(body.as_object().unwrap().clone());
        let instructions = fields.take_string("instructions")?;
        take(&mut fields, instructions.as_deref()).map(|messages| json!(messages))
    }

    #[test]
    fn a_text_is_the_users_and_instructions_are_the_systems() {
        assert_eq!(read_all(json!({ "input": "Hi" })).unwrap(), json!([{ "role": "user", "content": "Hi" }]));
        let read = read_all(json!({
            "instructions": "Be brief.",
            "input": [
                { "role": "developer", "content": "And polite." },
                { "type": "message", "role": "user", "content": [
                    { "type": "input_text", "text": "One" }, { "type": "input_text", "text": " two" },
                ] },
                { "type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": [
                    { "type": "output_text", "text": "Three", "annotations": [] }, { "type": "refusal", "refusal": "!" },
                ] },
                { "role": "system", "content": "Now." },
            ],
        }));
        assert_eq!(
            read.unwrap(),
            json!([
                { "role": "system", "content": "Be brief.\n\nAnd polite." },
                { "role": "user", "content": "One two" },
                { "role": "assistant", "content": "Three!" },
                { "role": "system", "content": "Now." },
            ])
        );
    }

    #[test]
    fn calls_stand_in_the_message_before_them() {
        let call =
            |id: &str| json!({ "type": "function_call", "id": "fc", "call_id": id, "name": "f", "arguments": "{}" });
        let called = |id: &str| json!({ "id": id, "type": "function", "function": { "name": "f", "arguments": "{}" } });
        let read = read_all(json!({ "input": [
            { "role": "user", "content": "Hi" },
            { "type": "reasoning", "summary": [] },
            call("a"),
            call("b"),
            { "type": "function_call_output", "call_id": "a", "output": "1" },
            { "type": "function_call_output", "call_id": "b", "output": [{ "type": "input_text", "text": "2" }] },
            { "role": "assistant", "content": "Wait" },
            call("c"),
        ] }));
        assert_eq!(
            read.unwrap(),
            json!([
                { "role": "user", "content": "Hi" },
                { "role": "assistant", "content": null, "tool_calls": [called("a"), called("b")] },
                { "role": "tool", "content": "1", "tool_call_id": "a" },
                { "role": "tool", "content": "2", "tool_call_id": "b" },
                { "role": "assistant", "content": "Wait", "tool_calls": [called("c")] },
            ])
        );
    }

    #[test]
    fn errors_name_the_place() {
        for (input, detail) in [
            (json!(null), "`input` is missing: it must be a string or a list of items."),
            (json!([]), "`input` is []: it must be a string or a list of at least one item."),
            (json!(5), "`input` is 5: it must be a string or a list of items."),
            (json!([5]), "`input[0]` is 5: it must be an object."),
            (
                json!([{ "content": "a" }]),
                "`input[0].type` is missing: it must be \"message\", \"function_call\", \"function_call_output\" or \"reasoning\".",
            ),
            (
                json!([{ "type": "item_reference", "id": "x" }]),
                "`input[0].type` is \"item_reference\", which is not supported: items are not stored here; send them whole.",
            ),
            (json!([{ "role": "user" }]), "`input[0].content` is missing: it must be a string or a list of parts."),
            (
                json!([{ "role": "critic", "content": "a" }]),
                "`input[0].role` is \"critic\": it must be \"user\", \"assistant\", \"system\" or \"developer\".",
            ),
            (
                json!([{ "role": "user", "content": [{ "type": "input_image" }] }]),
                "`input[0].content[0].type` is \"input_image\", which is not supported: parts here are \"input_text\", \
                 \"output_text\", \"text\" or \"refusal\".",
            ),
            (
                json!([{ "type": "function_call", "call_id": "a", "name": "f" }]),
                "`input[0].arguments` is missing: it must be a string.",
            ),
            (
                json!([{ "type": "function_call", "call_id": "a", "name": "f", "arguments": "[1]" }]),
                "`input[0].arguments` is \"[1]\": it must be a JSON object, as text.",
            ),
            (
                json!([{ "type": "function_call_output", "output": "1" }]),
                "`input[0].call_id` is missing: it must be a string.",
            ),
        ] {
            assert_eq!(read_all(json!({ "input": input })).unwrap_err().detail(), detail);
        }
    }
}

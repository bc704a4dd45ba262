//! What was said: `system` and `messages`, as a chat template sees them.

use kaito_engine::Ending;
use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::fields::{self, Fields};

/// What stands between two turns of one role, which are one turn.
const BREAK: &str = "\n\n";
const BLOCKS: &str = "a string or a list of blocks";

/// A conversation that is to be continued.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) messages: Vec<Map<String, Value>>,
    /// A last turn of the assistant is the beginning of the answer.
    pub(super) ending: Ending,
}

/// Reads `system` and `messages`.
///
/// # Errors
/// 400 for messages of the wrong shape, and for images and documents.
pub(super) fn take(body: &mut Fields) -> Result<Said, ApiError> {
    let mut turns = Turns::default();
    let at = body.path("system");
    if let Some(system) = body.take("system") {
        turns.say("system", &text(&at, system)?);
    }
    let at = body.path("messages");
    let list = body.take_list("messages")?.ok_or_else(|| fields::missing(&at, "a list of messages"))?;
    if list.is_empty() {
        return Err(fields::invalid(&at, "[]", "a list of at least one message"));
    }
    for (i, message) in list.into_iter().enumerate() {
        read(&format!("{at}[{i}]"), message, &mut turns)?;
    }
    let Turns { messages } = turns;
    let last = messages.last();
    let ending = match last.map(role) {
        Some("assistant") if last.is_some_and(|message| message.contains_key("tool_calls")) => {
            let detail = format!(
                "`{at}` ends with calls of tools; their results must follow, as blocks of the type \"tool_result\"."
            );
            return Err(ApiError::bad_request(detail).with_param(at));
        }
        Some("assistant") => Ending::ContinueFinalMessage,
        _ => Ending::AddGenerationPrompt,
    };
    Ok(Said { messages, ending })
}

/// The messages so far.
#[derive(Debug, Default)]
struct Turns {
    messages: Vec<Map<String, Value>>,
}

fn role(message: &Map<String, Value>) -> &str {
    message.get("role").and_then(Value::as_str).unwrap_or_default()
}

fn message(role: &str, content: Value) -> Map<String, Value> {
    Map::from_iter([("role".to_owned(), role.into()), ("content".to_owned(), content)])
}

impl Turns {
    /// Adds a text to the turn of `role`, or begins one.
    fn say(&mut self, speaker: &str, text: &str) {
        match self.messages.last_mut() {
            Some(last) if role(last) == speaker && !last.contains_key("tool_calls") => {
                let before = last.get("content").and_then(Value::as_str).unwrap_or_default();
                let joined = format!("{before}{BREAK}{text}");
                last.insert("content".to_owned(), joined.into());
            }
            _ => self.messages.push(message(speaker, text.into())),
        }
    }

    /// Adds a call to the assistant's turn.
    fn call(&mut self, call: Value) {
        match self.messages.last_mut() {
            Some(last) if role(last) == "assistant" => {
                if let Value::Array(calls) = last.entry("tool_calls").or_insert_with(|| json!([])) {
                    calls.push(call);
                }
            }
            _ => {
                let mut calling = message("assistant", Value::Null);
                calling.insert("tool_calls".to_owned(), json!([call]));
                self.messages.push(calling);
            }
        }
    }

    fn result(&mut self, id: &str, text: &str) {
        let mut result = message("tool", text.into());
        result.insert("tool_call_id".to_owned(), id.into());
        self.messages.push(result);
    }
}

fn read(at: &str, given: Value, turns: &mut Turns) -> Result<(), ApiError> {
    let mut given = Fields::object(at, given)?;
    let role_at = given.path("role");
    let roles = "\"user\" or \"assistant\"";
    let speaker = given.take_string("role")?.ok_or_else(|| fields::missing(&role_at, roles))?;
    if !matches!(speaker.as_str(), "user" | "assistant" | "system") {
        return Err(fields::unknown_value(&role_at, &speaker, roles));
    }
    let at = given.path("content");
    match given.take("content") {
        None => Err(fields::missing(&at, BLOCKS)),
        Some(Value::String(text)) => {
            turns.say(&speaker, &text);
            Ok(())
        }
        Some(Value::Array(blocks)) => {
            // Texts of one turn follow each other directly.
            let mut said = String::new();
            for (i, block) in blocks.into_iter().enumerate() {
                read_block(&format!("{at}[{i}]"), block, &speaker, &mut said, turns)?;
            }
            if !said.is_empty() {
                turns.say(&speaker, &said);
            }
            Ok(())
        }
        Some(other) => Err(fields::wrong_shape(&at, BLOCKS, &other)),
    }
}

/// Adds what a block says: a text to those `said`, anything else to the turns.
fn read_block(at: &str, block: Value, speaker: &str, said: &mut String, turns: &mut Turns) -> Result<(), ApiError> {
    let mut block = Fields::object(at, block)?;
    let kind_at = block.path("type");
    let kinds = match speaker {
        "assistant" => "\"text\" or \"tool_use\"",
        "user" => "\"text\" or \"tool_result\"",
        _ => "\"text\"",
    };
    let kind = block.take_string("type")?.ok_or_else(|| fields::missing(&kind_at, kinds))?;
    match (kind.as_str(), speaker) {
        ("text", _) => {
            said.push_str(&take_string(&mut block, "text")?);
            Ok(())
        }
        ("tool_use", "assistant") => {
            let (id, name) = (take_string(&mut block, "id")?, take_string(&mut block, "name")?);
            let at = block.path("input");
            let input = match block.take("input") {
                None => Map::new(),
                Some(Value::Object(input)) => input,
                Some(other) => return Err(fields::wrong_shape(&at, "an object", &other)),
            };
            if !said.is_empty() {
                turns.say(speaker, &std::mem::take(said));
            }
            let arguments = Value::Object(input).to_string();
            turns.call(json!({ "id": id, "type": "function", "function": { "name": name, "arguments": arguments } }));
            Ok(())
        }
        ("tool_result", "user") => {
            let id = take_string(&mut block, "tool_use_id")?;
            let at = block.path("content");
            let result = block.take("content").map_or_else(|| Ok(String::new()), |content| text(&at, content))?;
            if !said.is_empty() {
                turns.say(speaker, &std::mem::take(said));
            }
            turns.result(&id, &result);
            Ok(())
        }
        // The models here do not think aloud, and thoughts are no part of a conversation.
        ("thinking" | "redacted_thinking", _) => Ok(()),
        (other, _) => Err(unsupported(&kind_at, other, &format!("blocks here are {kinds}"))),
    }
}

fn take_string(block: &mut Fields, name: &str) -> Result<String, ApiError> {
    let at = block.path(name);
    block.take_string(name)?.ok_or_else(|| fields::missing(&at, "a string"))
}

fn unsupported(at: &str, kind: &str, why: &str) -> ApiError {
    let shown: String = kind.chars().take(60).collect();
    ApiError::bad_request(format!("`{at}` is \"{shown}\", which is not supported: {why}.")).with_param(at)
}

/// A text, or blocks that are texts.
fn text(at: &str, content: Value) -> Result<String, ApiError> {
    let blocks = match content {
        Value::String(text) => return Ok(text),
        Value::Array(blocks) => blocks,
        other => return Err(fields::wrong_shape(at, BLOCKS, &other)),
    };
    let read = |(i, block)| {
        let mut block = Fields::object(&format!("{at}[{i}]"), block)?;
        let kind_at = block.path("type");
        match block.take_string("type")?.as_deref() {
            Some("text") => take_string(&mut block, "text"),
            Some(other) => Err(unsupported(&kind_at, other, "blocks here are \"text\"")),
            None => Err(fields::missing(&kind_at, "\"text\"")),
        }
    };
    blocks.into_iter().enumerate().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(body: Value) -> Result<(Value, Ending), ApiError> {
        let said = take(&mut Fields::root(body.as_object().unwrap().clone()))?;
        Ok((json!(said.messages), said.ending))
    }

    #[test]
    fn turns_of_one_role_are_one() {
        let (messages, ending) = read_all(json!({
            "system": [{ "type": "text", "text": "Be ", "cache_control": { "type": "ephemeral" } }, { "type": "text", "text": "brief." }],
            "messages": [
                { "role": "user", "content": "Hi" },
                { "role": "user", "content": [{ "type": "text", "text": "How are" }, { "type": "text", "text": " you?" }] },
                { "role": "assistant", "content": [{ "type": "thinking", "thinking": "Hm", "signature": "s" }, { "type": "text", "text": "I" }] },
            ],
        }))
        .unwrap();
        assert_eq!(
            messages,
            json!([
                { "role": "system", "content": "Be brief." },
                { "role": "user", "content": "Hi\n\nHow are you?" },
                { "role": "assistant", "content": "I" },
            ])
        );
        assert!(matches!(ending, Ending::ContinueFinalMessage));
    }

    #[test]
    fn calls_and_results_are_messages_of_their_own() {
        let (messages, ending) = read_all(json!({ "messages": [
            { "role": "user", "content": "Hi" },
            { "role": "assistant", "content": [
                { "type": "text", "text": "Wait" },
                { "type": "tool_use", "id": "a", "name": "f", "input": { "x": 1 } },
                { "type": "tool_use", "id": "b", "name": "g", "input": {} },
            ] },
            { "role": "user", "content": [
                { "type": "tool_result", "tool_use_id": "a", "content": "1" },
                { "type": "tool_result", "tool_use_id": "b", "content": [{ "type": "text", "text": "2" }], "is_error": true },
                { "type": "text", "text": "Well?" },
            ] },
        ] }))
        .unwrap();
        let call = |id: &str, name: &str, arguments: &str| json!({ "id": id, "type": "function", "function": { "name": name, "arguments": arguments } });
        assert_eq!(
            messages,
            json!([
                { "role": "user", "content": "Hi" },
                { "role": "assistant", "content": "Wait", "tool_calls": [call("a", "f", "{\"x\":1}"), call("b", "g", "{}")] },
                { "role": "tool", "content": "1", "tool_call_id": "a" },
                { "role": "tool", "content": "2", "tool_call_id": "b" },
                { "role": "user", "content": "Well?" },
            ])
        );
        assert!(matches!(ending, Ending::AddGenerationPrompt));
    }

    #[test]
    fn errors_name_the_place() {
        for (messages, detail) in [
            (json!(null), "`messages` is missing: it must be a list of messages."),
            (json!([]), "`messages` is []: it must be a list of at least one message."),
            (json!([5]), "`messages[0]` is 5: it must be an object."),
            (json!([{ "content": "a" }]), "`messages[0].role` is missing: it must be \"user\" or \"assistant\"."),
            (
                json!([{ "role": "tool", "content": "a" }]),
                "`messages[0].role` is \"tool\": it must be \"user\" or \"assistant\".",
            ),
            (json!([{ "role": "user" }]), "`messages[0].content` is missing: it must be a string or a list of blocks."),
            (
                json!([{ "role": "user", "content": [{ "text": "a" }] }]),
                "`messages[0].content[0].type` is missing: it must be \"text\" or \"tool_result\".",
            ),
            (
                json!([{ "role": "user", "content": [{ "type": "image", "source": {} }] }]),
                "`messages[0].content[0].type` is \"image\", which is not supported: blocks here are \"text\" or \"tool_result\".",
            ),
            (
                json!([{ "role": "assistant", "content": [{ "type": "tool_use", "id": "a", "name": "f", "input": "x" }] }]),
                "`messages[0].content[0].input` is \"x\": it must be an object.",
            ),
            (
                json!([{ "role": "user", "content": [{ "type": "tool_result" }] }]),
                "`messages[0].content[0].tool_use_id` is missing: it must be a string.",
            ),
            (
                json!([{ "role": "assistant", "content": [{ "type": "tool_use", "id": "a", "name": "f", "input": {} }] }]),
                "`messages` ends with calls of tools; their results must follow, as blocks of the type \"tool_result\".",
            ),
        ] {
            assert_eq!(read_all(json!({ "messages": messages })).unwrap_err().detail(), detail);
        }
    }
}

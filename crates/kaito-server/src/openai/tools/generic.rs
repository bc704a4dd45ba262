//! Tools for any model: described in its instructions, called in JSON, with results that the user seems to send.

use std::fmt::Write as _;
use std::io;

use kaito_engine::{Conversation, Ending, Tokenizer};
use serde_json::ser::Formatter;
use serde_json::{Map, Value};

use super::history::{Call, Calls, content, role};
use super::ids::IdStyle;
use super::reader::Syntax;
use super::{Choice, Tools};
use crate::error::ApiError;

pub(super) const SYNTAX: Syntax =
    Syntax { open: &["{", "\"tool_calls\"", ":", "["], close: &["]", "}"], ids: IdStyle::Generic };

/// What stands between joined texts.
const BREAK: &str = "\n\n";
/// The system message with which a template is tried out.
const PROBE: &str = "kaito-probe-7f3a";

/// Rewrites the history as plain turns, and writes the tools into the instructions.
pub(super) fn apply(
    tools: Option<&Tools>,
    conversation: &mut Conversation,
    tokenizer: &Tokenizer,
) -> Result<(), ApiError> {
    let mut calls = Calls::default();
    let mut messages: Vec<Map<String, Value>> = Vec::with_capacity(conversation.messages.len());
    for (index, mut message) in std::mem::take(&mut conversation.messages).into_iter().enumerate() {
        if role(&message) == "tool" {
            let call = calls.answered_by(&message);
            let field = |name: &str| message.get(name).and_then(Value::as_str);
            let name = call.as_ref().map(|call| call.name.as_str()).or(field("name")).or(field("tool_call_id"));
            let text = format!("Result of {}: {}", name.unwrap_or("the call"), content(&message));
            message = self::message("user", &text);
        } else {
            let made = calls.take(index, &mut message)?;
            if !made.is_empty() {
                let written = write_calls(&made);
                let before = content(&message);
                let text = if before.is_empty() { written } else { format!("{before}{BREAK}{written}") };
                message.insert("content".to_owned(), text.into());
            }
        }
        match messages.last_mut() {
            Some(last) if role(last) == role(&message) => join(last, content(&message)),
            _ => messages.push(message),
        }
    }
    if let Some(tools) = tools {
        let instructions = instructions(tools);
        instruct(&mut messages, &instructions, takes_system(conversation, tokenizer));
    }
    conversation.messages = messages;
    conversation.tools = None;
    Ok(())
}

/// Adds a text to that of a message.
fn join(message: &mut Map<String, Value>, more: &str) {
    match message.get_mut("content") {
        Some(Value::String(text)) => {
            if !text.is_empty() && !more.is_empty() {
                text.push_str(BREAK);
            }
            text.push_str(more);
        }
        _ => {
            message.insert("content".to_owned(), more.into());
        }
    }
}

/// Puts the instructions into the system message, or before the first user message.
fn instruct(messages: &mut Vec<Map<String, Value>>, instructions: &str, system: bool) {
    if system {
        match messages.first_mut() {
            Some(first) if role(first) == "system" => join(first, instructions),
            _ => messages.insert(0, message("system", instructions)),
        }
        return;
    }
    match messages.iter_mut().find(|message| role(message) == "user") {
        Some(first) => {
            let text = format!("{instructions}{BREAK}{}", content(first));
            first.insert("content".to_owned(), text.into());
        }
        None => messages.insert(0, message("user", instructions)),
    }
}

/// Whether the template writes a system message, which some refuse and others leave out.
fn takes_system(conversation: &Conversation, tokenizer: &Tokenizer) -> bool {
    let probe = Conversation {
        messages: vec![message("system", PROBE), message("user", "a"), message("assistant", "b"), message("user", "c")],
        tools: None,
        documents: conversation.documents.clone(),
        variables: conversation.variables.clone(),
        template: conversation.template.clone(),
        ending: Ending::AddGenerationPrompt,
    };
    tokenizer.render(&probe, &|| false).is_ok_and(|text| text.contains(PROBE))
}

fn message(role: &str, content: &str) -> Map<String, Value> {
    let fields = [("role", role), ("content", content)];
    fields.into_iter().map(|(name, text)| (name.to_owned(), text.into())).collect()
}

/// What the model is told about its tools.
fn instructions(tools: &Tools) -> String {
    let mut text = String::from("You can call these functions, each described by a JSON Schema:\n");
    for function in &tools.functions {
        let _ = writeln!(text, "{}", to_json(&function.described));
    }
    let several = tools.parallel && tools.choice != Choice::Named;
    let what = if several { "functions" } else { "a function" };
    let _ = write!(
        text,
        "To call {what}, answer with nothing but JSON of this form:\n\
         {{\"tool_calls\": [{{\"name\": \"function name\", \"arguments\": {{\"argument name\": \"value\"}}}}]}}\n\
         The results come in the next message. "
    );
    match (tools.choice, tools.callable().next()) {
        (Choice::Named, Some((_, function))) => {
            let _ = write!(text, "Now call the function {}.", function.name);
        }
        (Choice::Required, _) => {
            let what = if several { "one or more functions" } else { what };
            let _ = write!(text, "Now call {what}.");
        }
        _ => text.push_str("If no function is needed, answer without JSON."),
    }
    text
}

/// Calls in the form that answers have.
fn write_calls(calls: &[Call]) -> String {
    let mut text = String::from("{\"tool_calls\": [");
    for (index, call) in calls.iter().enumerate() {
        let separator = if index == 0 { "" } else { ", " };
        let name = to_json(&call.name);
        let _ = write!(text, "{separator}{{\"name\": {name}, \"arguments\": {}}}", to_json(&call.arguments));
    }
    text.push_str("]}");
    text
}

/// JSON as Python's `json.dumps` writes it, which is what models have seen most of.
fn to_json(value: &impl serde::Serialize) -> String {
    let mut bytes = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, Spaced);
    // Writing JSON into memory does not fail.
    let _ = value.serialize(&mut serializer);
    String::from_utf8(bytes).unwrap_or_default()
}

/// A space after each comma and colon.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: io::Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: io::Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

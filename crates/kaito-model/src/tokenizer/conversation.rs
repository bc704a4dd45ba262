//! Conversations as a chat template sees them.

use kaito_jinja::Data;
use serde_json::{Map, Value};

/// The variables that the fields of a [`Conversation`] are, so that it has no others of these names.
pub const CONVERSATION_VARIABLES: [&str; 4] = ["messages", "tools", "documents", "add_generation_prompt"];

/// A conversation with all that a chat template may be given. Objects keep the order of their keys.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Conversation {
    /// The messages, with whatever fields the template reads: `role`, `content`, `tool_calls`, `tool_call_id`, `name` and so on.
    pub messages: Vec<Map<String, Value>>,
    /// The tools that the model may call.
    pub tools: Option<Vec<Value>>,
    /// Documents that the answer may be taken from.
    pub documents: Option<Vec<Value>>,
    /// Further variables of the template. They go before the special tokens of the tokenizer, and may not have the names in
    /// [`CONVERSATION_VARIABLES`].
    pub variables: Map<String, Value>,
    /// A template to render this conversation with, in place of the model's.
    pub template: Option<String>,
    /// How the text ends.
    pub ending: Ending,
}

/// How the text of a conversation ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ending {
    /// With what begins the assistant's turn.
    #[default]
    AddGenerationPrompt,
    /// Within the last message, behind its content, so that it is continued.
    ContinueFinalMessage,
    /// As the last message ends.
    Complete,
}

impl Conversation {
    /// A conversation of these messages alone.
    pub fn new(messages: Vec<Map<String, Value>>) -> Self {
        Self { messages, ..Self::default() }
    }

    /// Bytes of all texts in it, and an estimate of what holds them.
    pub(super) fn size(&self) -> usize {
        let lists = [&self.tools, &self.documents].into_iter().flatten().flatten();
        let values: usize = lists.map(size).sum();
        let maps: usize = self.messages.iter().chain([&self.variables]).map(map_size).sum();
        values + maps
    }
}

/// Bytes that a value costs beside its texts.
const VALUE: usize = 64;

fn size(value: &Value) -> usize {
    VALUE
        + match value {
            Value::Null | Value::Bool(_) | Value::Number(_) => 0,
            Value::String(text) => text.len(),
            Value::Array(items) => items.iter().map(size).sum(),
            Value::Object(map) => map_size(map),
        }
}

fn map_size(map: &Map<String, Value>) -> usize {
    map.iter().map(|(key, value)| key.len() + size(value)).sum()
}

/// A value of JSON, as Python's `json` reads it.
pub(super) fn data(value: &Value) -> Data {
    match value {
        Value::Null => Data::None,
        Value::Bool(value) => Data::Bool(*value),
        Value::Number(number) => {
            let whole = number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from));
            whole.map_or_else(|| Data::Float(number.as_f64().unwrap_or(f64::NAN)), Data::Int)
        }
        Value::String(text) => Data::from(text.as_str()),
        Value::Array(items) => list(items),
        Value::Object(map) => dict(map),
    }
}

pub(super) fn list(items: &[Value]) -> Data {
    Data::List(items.iter().map(data).collect())
}

pub(super) fn dict(map: &Map<String, Value>) -> Data {
    Data::Dict(map.iter().map(|(key, value)| (key.clone(), data(value))).collect())
}

//! The calls and results in a conversation's history, as a request has them.

use std::collections::HashMap;

use kaito_engine::{Conversation, ParameterError};
use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::fields::{Fields, missing, wrong_shape};

/// A call that the assistant made.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) arguments: Map<String, Value>,
}

/// A call, as its result knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Made {
    pub(super) id: String,
    pub(super) name: String,
}

/// The calls that some messages have made, for the results in later ones.
#[derive(Debug, Default)]
pub(super) struct Calls {
    /// With whether their result has come.
    made: Vec<(Made, bool)>,
    /// The last of each id.
    by_id: HashMap<String, usize>,
    /// Those before have results.
    next: usize,
}

impl Calls {
    /// Takes the calls of a message. Those without an id get one by their place.
    ///
    /// # Errors
    /// A call without a name, arguments that are no object.
    pub(super) fn take(&mut self, index: usize, message: &mut Map<String, Value>) -> Result<Vec<Call>, ApiError> {
        let at = format!("messages[{index}].tool_calls");
        let list = match message.shift_remove("tool_calls") {
            None | Some(Value::Null) => return Ok(Vec::new()),
            Some(Value::Array(list)) => list,
            Some(other) => return Err(wrong_shape(&at, "a list of calls", &other)),
        };
        let mut calls = Vec::with_capacity(list.len());
        for (place, call) in list.into_iter().enumerate() {
            let call = read(&format!("{at}[{place}]"), index, place, call)?;
            self.by_id.insert(call.id.clone(), self.made.len());
            self.made.push((Made { id: call.id.clone(), name: call.name.clone() }, false));
            calls.push(call);
        }
        Ok(calls)
    }

    /// The call whose result a message is: by its id, or else the first that has no result.
    pub(super) fn answered_by(&mut self, message: &Map<String, Value>) -> Option<Made> {
        let index = match message.get("tool_call_id").and_then(Value::as_str) {
            Some(id) => *self.by_id.get(id)?,
            None => {
                while self.made.get(self.next)?.1 {
                    self.next += 1;
                }
                self.next
            }
        };
        let (made, answered) = self.made.get_mut(index)?;
        *answered = true;
        Some(made.clone())
    }
}

fn read(at: &str, message: usize, place: usize, call: Value) -> Result<Call, ApiError> {
    let mut call = Fields::object(at, call)?;
    let id =
        call.take_string("id")?.filter(|id| !id.is_empty()).unwrap_or_else(|| format!("message{message}call{place}"));
    let function_at = call.path("function");
    let mut function =
        call.take_object("function")?.ok_or_else(|| missing(&function_at, "an object with the function's name"))?;
    let name_at = function.path("name");
    let name = function.take_string("name")?.ok_or_else(|| missing(&name_at, "the function's name"))?;
    let arguments_at = function.path("arguments");
    let arguments = match function.take("arguments") {
        None => Map::new(),
        Some(Value::Object(arguments)) => arguments,
        Some(Value::String(text)) if text.trim().is_empty() => Map::new(),
        Some(Value::String(text)) => serde_json::from_str(&text)
            .map_err(|_| ParameterError::invalid(&arguments_at, Value::from(text), "a JSON object, as text"))?,
        Some(other) => return Err(wrong_shape(&arguments_at, "a JSON object, as text", &other)),
    };
    Ok(Call { id, name, arguments })
}

pub(super) fn role(message: &Map<String, Value>) -> &str {
    message.get("role").and_then(Value::as_str).unwrap_or_default()
}

pub(super) fn content(message: &Map<String, Value>) -> &str {
    message.get("content").and_then(Value::as_str).unwrap_or_default()
}

/// Whether a conversation has calls or results.
pub(super) fn has_calls(conversation: &Conversation) -> bool {
    let called = |message: &Map<String, Value>| message.get("tool_calls").is_some_and(|calls| !calls.is_null());
    conversation.messages.iter().any(|message| role(message) == "tool" || called(message))
}

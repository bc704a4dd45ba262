//! Tools for models whose chat template writes them and that were trained to call them: Mistral 7B v0.3.

use kaito_engine::{Conversation, Tokenizer};
use serde_json::{Value, json};

use super::Tools;
use super::history::{Calls, role};
use super::ids::{IdStyle, NativeIds};
use super::reader::Syntax;
use crate::error::ApiError;

/// The token that begins an answer of calls.
pub(super) const MARKER: &str = "[TOOL_CALLS]";

pub(super) const SYNTAX: Syntax = Syntax { open: &[MARKER, "["], close: &["]"], ids: IdStyle::Native };

/// The token that begins calls, where a tokenizer has it and the conversation's template writes tools.
pub(super) fn call_token(conversation: &Conversation, tokenizer: &Tokenizer) -> Option<u32> {
    if !tokenizer.template_reads(conversation, "tools") {
        return None;
    }
    tokenizer.added_token(MARKER)
}

/// Gives the template the tools, and the history as it expects that: arguments as objects, ids of its own kind.
pub(super) fn apply(tools: Option<&Tools>, conversation: &mut Conversation) -> Result<(), ApiError> {
    let mut calls = Calls::default();
    let mut ids = NativeIds::default();
    for (index, message) in conversation.messages.iter_mut().enumerate() {
        if role(message) == "tool" {
            let call = calls.answered_by(message);
            let id = call.map(|call| call.id).or_else(|| message.get("tool_call_id")?.as_str().map(str::to_owned));
            message.insert("tool_call_id".to_owned(), ids.of(id.as_deref().unwrap_or("result")).into());
            continue;
        }
        let made = calls.take(index, message)?;
        if made.is_empty() {
            continue;
        }
        let made: Vec<Value> = made
            .into_iter()
            .map(|call| {
                json!({"id": ids.of(&call.id), "type": "function",
                       "function": {"name": call.name, "arguments": call.arguments}})
            })
            .collect();
        message.insert("tool_calls".to_owned(), made.into());
        message.entry("content").or_insert(Value::Null);
    }
    conversation.tools = tools.map(|tools| tools.functions.iter().map(|function| function.original.clone()).collect());
    Ok(())
}

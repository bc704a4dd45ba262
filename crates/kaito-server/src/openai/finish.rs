//! Why a choice ended.

use kaito_engine::{FinishReason, StopReason};
use serde::Serialize;

/// `finish_reason`. A choice that calls ended for its calls, unless it was cut.
pub(crate) fn reason(reason: FinishReason, called: bool) -> &'static str {
    match reason {
        FinishReason::Length => "length",
        FinishReason::EndToken | FinishReason::Stop if called => "tool_calls",
        FinishReason::EndToken | FinishReason::Stop => "stop",
    }
}

/// Whether the last token ended the text, which has none of it.
pub(crate) fn by_token(reason: FinishReason, stop: Option<&StopReason>) -> bool {
    reason == FinishReason::EndToken || matches!(stop, Some(StopReason::Token(_)))
}

/// `stop_reason`: which stop string or token it was; null for the model's own end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(crate) enum Stop<'a> {
    /// A stop string.
    Text(&'a str),
    /// A token of `stop_token_ids`.
    Token(u32),
}

impl<'a> From<&'a StopReason> for Stop<'a> {
    fn from(reason: &'a StopReason) -> Self {
        match reason {
            StopReason::StopString(text) => Self::Text(text),
            StopReason::Token(id) => Self::Token(*id),
        }
    }
}

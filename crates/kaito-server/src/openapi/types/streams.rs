//! What answers that stream are made of.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde_json::Value;

use super::OrNull;
use super::openai::{ChatLogProbs, CompletionLogProbs, FinishReason, StopReason, Usage};

/// A piece of a chat completion. Without choices it says what the request took.
#[derive(JsonSchema)]
#[schemars(rename = "CreateChatCompletionStreamResponse")]
pub(in super::super) struct ChatChunk {
    id: String,
    /// `chat.completion.chunk`
    object: String,
    created: u64,
    model: String,
    system_fingerprint: Option<String>,
    choices: Vec<ChatChunkChoice>,
    /// With `stream_options.include_usage`: null in all but the last.
    usage: Option<Usage>,
}

/// What is new of one of the answers.
#[derive(JsonSchema)]
struct ChatChunkChoice {
    index: u64,
    delta: ChatDelta,
    logprobs: OrNull<ChatLogProbs>,
    /// In the last chunk of the answer.
    finish_reason: OrNull<FinishReason>,
    /// The stop string or token that ended the text.
    stop_reason: Option<StopReason>,
}

/// New text or a part of a call.
#[derive(JsonSchema)]
#[schemars(rename = "ChatCompletionStreamResponseDelta")]
struct ChatDelta {
    /// `assistant`, in the first chunk of the answer.
    role: Option<String>,
    content: Option<String>,
    tool_calls: Option<Vec<CallDelta>>,
}

/// A part of a call: name and id come once, then the arguments in pieces.
#[derive(JsonSchema)]
#[schemars(rename = "ChatCompletionMessageToolCallChunk")]
struct CallDelta {
    index: u64,
    id: Option<String>,
    /// `function`
    r#type: Option<String>,
    function: FunctionDelta,
}

/// The function of a call.
#[derive(JsonSchema)]
struct FunctionDelta {
    name: Option<String>,
    arguments: String,
}

/// A piece of a completion. Without choices it says what the request took.
#[derive(JsonSchema)]
#[schemars(rename = "CreateCompletionStreamResponse")]
pub(in super::super) struct CompletionChunk {
    id: String,
    /// `text_completion`
    object: String,
    created: u64,
    model: String,
    system_fingerprint: Option<String>,
    choices: Vec<CompletionChunkChoice>,
    /// With `stream_options.include_usage`: null in all but the last.
    usage: Option<Usage>,
}

/// What is new of one of the texts.
#[derive(JsonSchema)]
struct CompletionChunkChoice {
    index: u64,
    text: String,
    logprobs: OrNull<CompletionLogProbs>,
    /// In the last chunk of the text.
    finish_reason: OrNull<FinishReason>,
    /// The stop string or token that ended the text.
    stop_reason: Option<StopReason>,
}

/// An event of a response. Its `type` says which other fields it has.
#[derive(JsonSchema)]
pub(in super::super) struct ResponseStreamEvent {
    /// From `response.created` to `response.completed`, `response.incomplete` or `response.failed`.
    r#type: String,
    /// Rises by one with each event.
    sequence_number: u64,
}

/// An event of a message. Its `type` says which other fields it has.
#[derive(JsonSchema)]
#[schemars(rename = "MessageStreamEvent")]
pub(in super::super) struct MessageEvent {
    /// From `message_start` to `message_stop`, or `error`.
    r#type: String,
}

/// A token, or text that no token completes.
#[derive(JsonSchema)]
#[schemars(rename = "KaitoTokenEvent", deny_unknown_fields)]
pub(in super::super) struct KaitoToken {
    /// Which of the texts, prompts or dialogs it belongs to.
    sequence: u64,
    /// Empty while a character is incomplete.
    text: String,
    token: Option<u32>,
}

/// Why an answer broke off.
#[derive(JsonSchema)]
#[schemars(rename = "KaitoErrorEvent", deny_unknown_fields)]
pub(in super::super) struct KaitoFailure {
    detail: String,
    /// The status that the answer would have had.
    status: u16,
}

/// A token, or an error that is the last event.
#[derive(JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "TgiEvent")]
pub(in super::super) enum TgiEvent {
    Token(TgiToken),
    Error(TgiError),
}

/// A token; the last one comes with the whole text.
#[derive(JsonSchema)]
#[schemars(rename = "TgiTokenEvent")]
pub(in super::super) struct TgiToken {
    index: u64,
    token: BTreeMap<String, Value>,
    generated_text: OrNull<String>,
    details: OrNull<BTreeMap<String, Value>>,
}

/// Why the answer broke off.
#[derive(JsonSchema)]
#[schemars(rename = "TgiErrorEvent")]
pub(in super::super) struct TgiError {
    error: String,
    error_type: String,
}

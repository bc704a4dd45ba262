//! The Messages API of Anthropic.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde_json::Value;

use super::OrNull;

/// A conversation, as both routes take it.
#[derive(JsonSchema)]
#[schemars(inline)]
struct Conversation {
    /// The model's name or an adapter's; absent or empty is the base model.
    model: Option<String>,
    messages: Vec<InputMessage>,
    system: Option<Content>,
    tools: Option<Vec<Tool>>,
    tool_choice: Option<ToolChoice>,
}

/// A conversation to continue.
#[derive(JsonSchema)]
#[schemars(rename = "CreateMessageRequest")]
pub(in super::super) struct MessageRequest {
    #[serde(flatten)]
    conversation: Conversation,
    /// The longest answer in tokens.
    #[schemars(range(min = 1))]
    max_tokens: u64,
    #[schemars(range(min = 0))]
    temperature: Option<f64>,
    #[schemars(range(max = 1))]
    top_p: Option<f64>,
    top_k: Option<i64>,
    /// The text ends before the first of these that occurs.
    stop_sequences: Option<Vec<String>>,
    /// Answer by server-sent events.
    stream: Option<bool>,
}

/// A conversation to count.
#[derive(JsonSchema)]
#[schemars(rename = "CountMessageTokensRequest")]
pub(in super::super) struct CountRequest {
    #[serde(flatten)]
    conversation: Conversation,
}

/// A message of a conversation.
#[derive(JsonSchema)]
struct InputMessage {
    /// `user` or `assistant`.
    role: String,
    content: Content,
}

#[derive(JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
enum Content {
    Text(String),
    /// `text`, `tool_use`, `tool_result`; `thinking` is ignored.
    Blocks(Vec<BTreeMap<String, Value>>),
}

/// A function that the model may call.
#[derive(JsonSchema)]
#[schemars(rename = "MessagesTool")]
struct Tool {
    name: String,
    description: Option<String>,
    /// The schema of its arguments, which always match it.
    input_schema: BTreeMap<String, Value>,
}

/// Whether the model must call one.
#[derive(JsonSchema)]
#[schemars(rename = "MessagesToolChoice")]
struct ToolChoice {
    /// `auto`, `any`, `tool` or `none`.
    r#type: String,
    name: Option<String>,
    disable_parallel_tool_use: Option<bool>,
}

/// What continues a conversation.
#[derive(JsonSchema)]
pub(in super::super) struct Message {
    id: String,
    /// `message`
    r#type: String,
    /// `assistant`
    role: String,
    /// `text` and `tool_use`.
    content: Vec<BTreeMap<String, Value>>,
    model: String,
    /// `end_turn`, `max_tokens`, `stop_sequence` or `tool_use`.
    stop_reason: OrNull<String>,
    stop_sequence: OrNull<String>,
    usage: Usage,
}

/// How many tokens a request took.
#[derive(JsonSchema)]
#[schemars(rename = "MessageUsage")]
struct Usage {
    input_tokens: u64,
    output_tokens: u64,
}

/// How many tokens a conversation has.
#[derive(JsonSchema)]
#[schemars(rename = "MessageTokensCount")]
pub(in super::super) struct Count {
    input_tokens: u64,
}

//! The Responses API.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde_json::Value;

/// An input to answer.
#[derive(JsonSchema)]
#[schemars(rename = "CreateResponseRequest")]
pub(in super::super) struct ResponseRequest {
    /// The model's name or an adapter's; absent or empty is the base model.
    model: Option<String>,
    input: Input,
    /// What stands before the input.
    instructions: Option<String>,
    /// The longest answer in tokens.
    #[schemars(range(min = 1))]
    max_output_tokens: Option<u64>,
    #[schemars(range(min = 0, max = 2))]
    temperature: Option<f64>,
    #[schemars(range(max = 1))]
    top_p: Option<f64>,
    text: Option<TextOptions>,
    tools: Option<Vec<BTreeMap<String, Value>>>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    /// Accepted; nothing is stored.
    store: Option<bool>,
    /// Answer by server-sent events.
    stream: Option<bool>,
}

#[derive(JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
enum Input {
    Text(String),
    /// `message`, `function_call`, `function_call_output`; `reasoning` is ignored.
    Items(Vec<BTreeMap<String, Value>>),
}

/// What the text must be.
#[derive(JsonSchema)]
#[schemars(rename = "ResponseTextOptions")]
struct TextOptions {
    format: Option<Format>,
}

/// What the text must be.
#[derive(JsonSchema)]
#[schemars(rename = "ResponseTextFormat")]
struct Format {
    /// `text`, `json_object` or `json_schema`.
    r#type: String,
    name: Option<String>,
    schema: Option<BTreeMap<String, Value>>,
    strict: Option<bool>,
}

/// An answer.
#[derive(JsonSchema)]
#[schemars(rename = "Response")]
pub(in super::super) struct Response {
    id: String,
    /// `response`
    object: String,
    created_at: f64,
    status: Status,
    error: Option<Value>,
    incomplete_details: Option<Incomplete>,
    model: String,
    /// `message` and `function_call`.
    output: Vec<BTreeMap<String, Value>>,
    usage: Option<Usage>,
}

#[derive(JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
enum Status {
    Completed,
    Incomplete,
    Failed,
    InProgress,
}

/// Why an answer is not complete.
#[derive(JsonSchema)]
#[schemars(rename = "ResponseIncompleteDetails")]
struct Incomplete {
    /// `max_output_tokens`
    reason: String,
}

/// How many tokens a request took.
#[derive(JsonSchema)]
#[schemars(rename = "ResponseUsage")]
struct Usage {
    input_tokens: u64,
    input_tokens_details: BTreeMap<String, u64>,
    output_tokens: u64,
    output_tokens_details: BTreeMap<String, u64>,
    total_tokens: u64,
}

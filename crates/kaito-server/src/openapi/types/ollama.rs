//! Ollama's API.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde_json::Value;

/// What both routes that generate take.
#[derive(JsonSchema)]
#[schemars(inline)]
struct Common {
    /// The model's name, with or without `:latest`; absent or empty is the base model.
    model: Option<String>,
    /// Answer line by line, unless it is false.
    stream: Option<bool>,
    /// `json`, or a JSON schema that the answer follows.
    format: Option<Value>,
    options: Option<Options>,
    /// Ignored: the model stays loaded.
    keep_alive: Option<Value>,
}

/// How the text is made. Others are ignored.
#[derive(JsonSchema)]
#[schemars(rename = "OllamaOptions")]
struct Options {
    /// Most tokens of the answer; 0 and less are as many as fit.
    num_predict: Option<i64>,
    #[schemars(range(min = 0, max = 2))]
    temperature: Option<f64>,
    top_k: Option<i64>,
    top_p: Option<f64>,
    min_p: Option<f64>,
    /// -1 is a new one each time.
    seed: Option<i64>,
    /// A text or up to 16; the answer ends before the first that occurs.
    stop: Option<Value>,
    repeat_penalty: Option<f64>,
    presence_penalty: Option<f64>,
    frequency_penalty: Option<f64>,
}

/// A conversation to continue.
#[derive(JsonSchema)]
#[schemars(rename = "OllamaChatRequest")]
pub(in super::super) struct ChatRequest {
    #[serde(flatten)]
    common: Common,
    /// None, or an empty list, asks whether the model is loaded.
    messages: Option<Vec<Message>>,
    tools: Option<Vec<BTreeMap<String, Value>>>,
}

/// A message of a conversation.
#[derive(JsonSchema)]
#[schemars(rename = "OllamaMessage")]
pub(in super::super) struct Message {
    role: String,
    content: Option<String>,
    tool_calls: Option<Vec<Call>>,
    /// The function whose result the message is.
    tool_name: Option<String>,
}

/// A call of a function.
#[derive(JsonSchema)]
#[schemars(rename = "OllamaToolCall")]
struct Call {
    function: Function,
}

/// What is called.
#[derive(JsonSchema)]
#[schemars(rename = "OllamaFunctionCall")]
struct Function {
    name: String,
    arguments: BTreeMap<String, Value>,
}

/// A prompt to answer.
#[derive(JsonSchema)]
#[schemars(rename = "OllamaGenerateRequest")]
pub(in super::super) struct GenerateRequest {
    #[serde(flatten)]
    common: Common,
    /// None, or an empty one, asks whether the model is loaded.
    prompt: Option<String>,
    system: Option<String>,
    /// Continue the prompt as it is, without the chat template.
    raw: Option<bool>,
}

/// How an answer ended, and what it took.
#[derive(JsonSchema)]
#[schemars(inline)]
struct End {
    model: String,
    created_at: String,
    done: bool,
    /// `stop`, `length` or `load`.
    done_reason: Option<String>,
    /// All durations are in nanoseconds.
    total_duration: Option<u64>,
    load_duration: Option<u64>,
    prompt_eval_count: Option<u64>,
    prompt_eval_duration: Option<u64>,
    eval_count: Option<u64>,
    eval_duration: Option<u64>,
}

/// What was answered in a conversation.
#[derive(JsonSchema)]
#[schemars(rename = "OllamaChatAnswer")]
pub(in super::super) struct ChatAnswer {
    message: Message,
    #[serde(flatten)]
    end: End,
}

/// What was answered to a prompt.
#[derive(JsonSchema)]
#[schemars(rename = "OllamaGenerateAnswer")]
pub(in super::super) struct GenerateAnswer {
    response: String,
    #[serde(flatten)]
    end: End,
}

/// Texts whose vectors are asked for.
#[derive(JsonSchema)]
#[schemars(rename = "OllamaEmbedRequest")]
pub(in super::super) struct EmbedRequest {
    model: Option<String>,
    input: Texts,
    /// Cut what is too long, at its end; otherwise it is refused.
    truncate: Option<bool>,
}

/// One text or several.
#[derive(JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
enum Texts {
    One(String),
    Several(Vec<String>),
}

/// Vectors of length 1, and what they took.
#[derive(JsonSchema)]
#[schemars(rename = "OllamaEmbedAnswer")]
pub(in super::super) struct EmbedAnswer {
    model: String,
    embeddings: Vec<Vec<f32>>,
    /// Durations are in nanoseconds.
    total_duration: u64,
    load_duration: u64,
    prompt_eval_count: u64,
}

/// Which model is to be shown.
#[derive(JsonSchema)]
#[schemars(rename = "OllamaShowRequest")]
pub(in super::super) struct ShowRequest {
    model: Option<String>,
    /// What `model` was called before.
    name: Option<String>,
}

/// Models, each with its names, size and details.
#[derive(JsonSchema)]
#[schemars(rename = "OllamaModels")]
pub(in super::super) struct Models {
    models: Vec<BTreeMap<String, Value>>,
}

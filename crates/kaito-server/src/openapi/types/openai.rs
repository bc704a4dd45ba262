//! The OpenAI API: chat completions, completions, models, embeddings.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde_json::Value;

use super::OrNull;
use super::kaito::OneOrMany;

/// What requests to chat completions and completions have in common: OpenAI's parameters, then vLLM's.
#[derive(JsonSchema)]
#[schemars(inline)]
struct Sampling {
    /// The model's name or an adapter's; absent or empty is the base model.
    model: Option<String>,
    /// The longest answer in tokens.
    #[schemars(range(min = 0))]
    max_tokens: Option<u64>,
    /// 0 takes the likeliest token each time.
    #[schemars(range(min = 0, max = 2))]
    temperature: Option<f64>,
    /// Sample among the likeliest tokens that together have this probability.
    #[schemars(range(max = 1))]
    top_p: Option<f64>,
    /// Sample among so many likeliest tokens; -1 and 0 are no limit.
    #[schemars(range(min = -1))]
    top_k: Option<i64>,
    /// Sample among tokens that are at least so likely, as a part of the likeliest one's probability.
    #[schemars(range(min = 0, max = 1))]
    min_p: Option<f64>,
    /// Above 1, a factor against tokens that are in the text already.
    repetition_penalty: Option<f64>,
    /// Subtracted from the scores of tokens that were generated.
    #[schemars(range(min = -2, max = 2))]
    presence_penalty: Option<f64>,
    /// Subtracted for each time that a token was generated.
    #[schemars(range(min = -2, max = 2))]
    frequency_penalty: Option<f64>,
    /// Token ids, and what is added to their scores: -100 to 100.
    logit_bias: Option<BTreeMap<String, f64>>,
    /// The same seed and request have the same text.
    seed: Option<i64>,
    /// How many choices.
    #[schemars(range(min = 0, max = 128))]
    n: Option<u64>,
    /// The text ends before the first of these that occurs; at most 16.
    stop: Option<OneOrMany<String>>,
    /// Tokens that end the text.
    stop_token_ids: Option<Vec<u32>>,
    /// Keep the stop string in the text.
    include_stop_str_in_output: Option<bool>,
    /// Until so many tokens are generated, nothing ends the text.
    min_tokens: Option<u64>,
    /// The model's end tokens do not end the text.
    ignore_eos: Option<bool>,
    /// The only tokens that may be generated.
    allowed_token_ids: Option<Vec<u32>>,
    /// Words that are not generated.
    bad_words: Option<Vec<String>>,
    /// Leave special tokens out of the text; true unless set.
    skip_special_tokens: Option<bool>,
    /// Whether the prompt gets the tokenizer's special tokens.
    add_special_tokens: Option<bool>,
    /// Keep so many of the prompt's last tokens.
    truncate_prompt_tokens: Option<i64>,
    /// Log-probabilities of the prompt's tokens, with so many likeliest ones.
    prompt_logprobs: Option<i64>,
    /// Add the token ids.
    return_token_ids: Option<bool>,
    /// Answer by server-sent events.
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    response_format: Option<ResponseFormat>,
    structured_outputs: Option<StructuredOutputs>,
}

/// What a stream has besides.
#[derive(JsonSchema)]
struct StreamOptions {
    /// The last chunk has `usage`.
    include_usage: Option<bool>,
    /// With `include_usage`: every chunk has it.
    continuous_usage_stats: Option<bool>,
}

/// What the text must be.
#[derive(JsonSchema)]
struct ResponseFormat {
    r#type: FormatType,
    json_schema: Option<NamedSchema>,
}

#[derive(JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
enum FormatType {
    Text,
    JsonObject,
    JsonSchema,
}

/// A schema that the text must match.
#[derive(JsonSchema)]
struct NamedSchema {
    name: String,
    description: Option<String>,
    schema: BTreeMap<String, Value>,
    /// Refuse keywords that the server cannot keep, instead of ignoring them.
    strict: Option<bool>,
}

/// What the text must be, in vLLM's words: exactly one of `json`, `regex`, `choice`, `grammar` and `json_object`.
#[derive(JsonSchema)]
struct StructuredOutputs {
    json: Option<Value>,
    regex: Option<String>,
    choice: Option<Vec<String>>,
    /// A grammar of Lark.
    grammar: Option<String>,
    json_object: Option<bool>,
    whitespace_pattern: Option<String>,
}

/// A conversation to continue.
#[derive(JsonSchema)]
#[schemars(rename = "CreateChatCompletionRequest")]
pub(in super::super) struct ChatCompletionRequest {
    #[schemars(length(min = 1))]
    messages: Vec<RequestMessage>,
    #[serde(flatten)]
    sampling: Sampling,
    /// Wins over `max_tokens`.
    #[schemars(range(min = 1))]
    max_completion_tokens: Option<u64>,
    /// Add the log-probability of each token.
    logprobs: Option<bool>,
    /// With `logprobs`: so many likeliest tokens for each.
    #[schemars(range(min = 0, max = 20))]
    top_logprobs: Option<u64>,
    #[schemars(length(max = 128))]
    tools: Option<Vec<Tool>>,
    tool_choice: Option<ToolChoice>,
    /// Whether an answer may have several calls; true unless set.
    parallel_tool_calls: Option<bool>,
    /// Begin a turn of the assistant; true unless set.
    add_generation_prompt: Option<bool>,
    /// Continue the last message instead.
    continue_final_message: Option<bool>,
    /// Begin the answer with the message that it continues.
    echo: Option<bool>,
    /// Variables of the chat template.
    chat_template_kwargs: Option<BTreeMap<String, Value>>,
    /// Documents for the chat template.
    documents: Option<Vec<BTreeMap<String, Value>>>,
}

/// A message of a conversation.
#[derive(JsonSchema)]
#[schemars(rename = "ChatCompletionRequestMessage")]
pub(super) struct RequestMessage {
    /// `system`, `developer`, `user`, `assistant`, `tool`, or what the chat template knows besides.
    role: String,
    content: Option<Content>,
    name: Option<String>,
    /// Calls of an assistant's message.
    tool_calls: Option<Vec<ToolCall>>,
    /// The call that a tool's message answers.
    tool_call_id: Option<String>,
}

#[derive(JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

/// A part of a message: text.
#[derive(JsonSchema)]
#[schemars(rename = "ContentPart")]
struct Part {
    /// `text` or `refusal`.
    r#type: String,
    text: Option<String>,
    refusal: Option<String>,
}

/// A function that the model may call.
#[derive(JsonSchema)]
struct Tool {
    /// `function`
    r#type: String,
    function: Function,
}

/// A function that the model may call.
#[derive(JsonSchema)]
struct Function {
    #[schemars(regex(pattern = "^[A-Za-z0-9_-]{1,64}$"))]
    name: String,
    description: Option<String>,
    /// The schema of its arguments, which always match it.
    parameters: Option<BTreeMap<String, Value>>,
    strict: Option<bool>,
}

#[derive(JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
enum ToolChoice {
    /// `none`, `auto` or `required`.
    Word(String),
    Named(NamedTool),
}

/// The function that the model must call.
#[derive(JsonSchema)]
struct NamedTool {
    /// `function`
    r#type: String,
    function: FunctionName,
}

/// The name of a function.
#[derive(JsonSchema)]
struct FunctionName {
    name: String,
}

/// A call of a function.
#[derive(JsonSchema)]
struct ToolCall {
    id: String,
    /// `function`
    r#type: String,
    function: Called,
}

/// A function that is called.
#[derive(JsonSchema)]
struct Called {
    name: String,
    /// The arguments, as JSON.
    arguments: String,
}

/// Prompts to continue.
#[derive(JsonSchema)]
#[schemars(rename = "CreateCompletionRequest")]
pub(in super::super) struct CompletionRequest {
    prompt: PromptShapes,
    #[serde(flatten)]
    sampling: Sampling,
    /// Add the log-probability of each token, and so many likeliest ones.
    #[schemars(range(min = 0, max = 20))]
    logprobs: Option<u64>,
    /// Put the prompt before the text.
    echo: Option<bool>,
    /// Generate so many texts, and answer the `n` likeliest.
    best_of: Option<u64>,
}

#[derive(JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
enum PromptShapes {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    TokenLists(Vec<Vec<u32>>),
}

/// How many tokens a request took.
#[derive(JsonSchema)]
#[schemars(rename = "CompletionUsage")]
pub(super) struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
    prompt_tokens_details: Option<PromptTokens>,
    completion_tokens_details: Option<BTreeMap<String, u64>>,
}

/// Tokens of the prompt.
#[derive(JsonSchema)]
#[schemars(rename = "PromptTokensDetails")]
struct PromptTokens {
    /// Those that were found in the prefix cache.
    cached_tokens: u64,
}

#[derive(JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub(super) enum FinishReason {
    Stop,
    Length,
    ToolCalls,
}

#[derive(JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
pub(super) enum StopReason {
    Text(String),
    Token(u32),
}

/// What continues a conversation.
#[derive(JsonSchema)]
#[schemars(rename = "CreateChatCompletionResponse")]
pub(in super::super) struct ChatCompletion {
    id: String,
    /// `chat.completion`
    object: String,
    created: u64,
    model: String,
    system_fingerprint: Option<String>,
    choices: Vec<ChatChoice>,
    usage: Usage,
}

/// One of the answers.
#[derive(JsonSchema)]
#[schemars(rename = "ChatChoice")]
struct ChatChoice {
    index: u64,
    message: AnswerMessage,
    logprobs: OrNull<ChatLogProbs>,
    finish_reason: FinishReason,
    /// The stop string or token that ended the text.
    stop_reason: Option<StopReason>,
}

/// The assistant's message.
#[derive(JsonSchema)]
#[schemars(rename = "ChatCompletionResponseMessage")]
struct AnswerMessage {
    /// `assistant`
    role: String,
    content: OrNull<String>,
    refusal: OrNull<String>,
    tool_calls: Option<Vec<ToolCall>>,
}

/// Log-probabilities of a message.
#[derive(JsonSchema)]
pub(super) struct ChatLogProbs {
    content: OrNull<Vec<TokenLogProb>>,
    refusal: OrNull<Vec<TokenLogProb>>,
}

/// A token, and the likeliest in its place.
#[derive(JsonSchema)]
struct TokenLogProb {
    token: String,
    logprob: f64,
    bytes: OrNull<Vec<u8>>,
    top_logprobs: Vec<LikelyToken>,
}

/// A token that might have been chosen.
#[derive(JsonSchema)]
struct LikelyToken {
    token: String,
    logprob: f64,
    bytes: OrNull<Vec<u8>>,
}

/// What continues prompts.
#[derive(JsonSchema)]
#[schemars(rename = "CreateCompletionResponse")]
pub(in super::super) struct CompletionAnswer {
    id: String,
    /// `text_completion`
    object: String,
    created: u64,
    model: String,
    system_fingerprint: Option<String>,
    choices: Vec<CompletionChoice>,
    usage: Usage,
}

/// One of the answers: that of prompt `index / n`.
#[derive(JsonSchema)]
struct CompletionChoice {
    index: u64,
    text: String,
    logprobs: OrNull<CompletionLogProbs>,
    finish_reason: FinishReason,
    /// The stop string or token that ended the text.
    stop_reason: Option<StopReason>,
}

/// Log-probabilities of a text.
#[derive(JsonSchema)]
pub(super) struct CompletionLogProbs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f64>>,
    top_logprobs: Option<Vec<Option<BTreeMap<String, f64>>>>,
    /// Where each token begins, in characters.
    text_offset: Vec<u64>,
}

/// The names that the model answers to.
#[derive(JsonSchema)]
#[schemars(rename = "ListModelsResponse")]
pub(in super::super) struct ModelList {
    /// `list`
    object: String,
    data: Vec<Model>,
}

/// A name that the model answers to.
#[derive(JsonSchema)]
pub(in super::super) struct Model {
    id: String,
    /// `model`
    object: String,
    created: u64,
    owned_by: String,
    root: Option<String>,
    parent: Option<String>,
    /// The longest sequence in tokens.
    max_model_len: Option<u64>,
    permission: Option<Vec<Value>>,
}

/// An adapter that is to be loaded.
#[derive(JsonSchema)]
pub(in super::super) struct LoadAdapterRequest {
    /// The name by which requests will ask for it.
    lora_name: String,
    /// Its folder, below the one that the server loads adapters from.
    lora_path: String,
    /// Replace the adapter that has this name.
    load_inplace: Option<bool>,
}

/// An adapter that is to go.
#[derive(JsonSchema)]
pub(in super::super) struct UnloadAdapterRequest {
    lora_name: String,
}

/// Texts to embed.
#[derive(JsonSchema)]
#[schemars(rename = "CreateEmbeddingRequest")]
pub(in super::super) struct EmbeddingRequest {
    input: PromptShapes,
    model: Option<String>,
    encoding_format: Option<EmbeddingEncoding>,
    add_special_tokens: Option<bool>,
    /// So many tokens of each text, its last ones; -1 for as many as fit.
    truncate_prompt_tokens: Option<i64>,
}

/// How vectors are written: as a list of numbers, or as base64 of 32-bit floats with the lowest byte first.
#[derive(JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(in super::super) enum EmbeddingEncoding {
    Float,
    Base64,
}

/// Embeddings.
#[derive(JsonSchema)]
#[schemars(rename = "CreateEmbeddingResponse")]
pub(in super::super) struct Embeddings {
    /// `list`
    object: String,
    data: Vec<Embedding>,
    model: String,
    usage: EmbeddingUsage,
}

/// One of them.
#[derive(JsonSchema)]
pub(in super::super) struct Embedding {
    /// `embedding`
    object: String,
    index: u64,
    embedding: EmbeddingVector,
}

/// Numbers, or their bytes in base64.
#[derive(JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
pub(in super::super) enum EmbeddingVector {
    Float(Vec<f32>),
    Base64(String),
}

/// What they took.
#[derive(JsonSchema)]
pub(in super::super) struct EmbeddingUsage {
    prompt_tokens: u64,
    total_tokens: u64,
}

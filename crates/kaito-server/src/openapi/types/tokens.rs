//! `/tokenize`, `/detokenize` and `/apply-template`, as vLLM and llama.cpp have them.

use schemars::JsonSchema;

use super::openai::RequestMessage;

/// A text or a conversation.
#[derive(JsonSchema)]
pub(in super::super) struct TokenizeRequest {
    model: Option<String>,
    /// A text, as vLLM names it.
    prompt: Option<String>,
    /// A conversation, as vLLM names it.
    messages: Option<Vec<RequestMessage>>,
    /// A text, as llama.cpp names it.
    content: Option<String>,
    add_special_tokens: Option<bool>,
    add_special: Option<bool>,
    /// Add each token's text.
    return_token_strs: Option<bool>,
    with_pieces: Option<bool>,
}

#[derive(JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
enum TokenOrPiece {
    Token(u32),
    Piece(Piece),
}

/// A token with its text, or with its bytes where these are no text.
#[derive(JsonSchema)]
struct Piece {
    id: u32,
    piece: TextOrBytes,
}

#[derive(JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
enum TextOrBytes {
    Text(String),
    Bytes(Vec<u8>),
}

/// Tokens.
#[derive(JsonSchema)]
pub(in super::super) struct Tokens {
    tokens: Vec<TokenOrPiece>,
    count: Option<u64>,
    max_model_len: Option<u64>,
    token_strs: Option<Vec<String>>,
}

/// Tokens to turn into text.
#[derive(JsonSchema)]
pub(in super::super) struct DetokenizeRequest {
    model: Option<String>,
    tokens: Vec<u32>,
}

/// The text of tokens: `prompt` is vLLM's name, `content` llama.cpp's.
#[derive(JsonSchema)]
pub(in super::super) struct Detokenized {
    prompt: Option<String>,
    content: Option<String>,
}

/// A conversation.
#[derive(JsonSchema)]
pub(in super::super) struct ApplyTemplateRequest {
    messages: Vec<RequestMessage>,
}

/// What the chat template makes of it.
#[derive(JsonSchema)]
#[schemars(rename = "AppliedTemplate")]
pub(in super::super) struct Prompt {
    prompt: String,
}

//! What the tokenizer and the chat template make of texts: `POST /tokenize`, `/detokenize` and `/apply-template`, in vLLM's bodies
//! and in llama.cpp's.

use kaito_engine::{Cancel, DecodeOptions, Special, Tokenizer};
use serde_json::{Value, json};

use super::chat::{ChatRequest, take_conversation};
use super::tools::Tools;
use super::{body, parameters};
use crate::dialect::{Context, Request, Task, Work};
use crate::error::ApiError;
use crate::fields;

/// How many times the longest sequence a text may have: it need not fit.
const LONGEST: usize = 8;

/// A text that is to be tokenised.
#[derive(Debug)]
enum Tokenize {
    /// vLLM's `prompt`.
    Prompt { model: Option<String>, text: String, special: bool, texts: bool },
    /// vLLM's `messages`.
    Messages { request: Box<ChatRequest>, texts: bool },
    /// llama.cpp's `content`.
    Content { text: String, special: bool, pieces: bool },
}

/// Token ids that are to become text.
#[derive(Debug)]
struct Detokenize {
    model: Option<String>,
    tokens: Vec<u32>,
}

/// A conversation that is to be written down.
#[derive(Debug)]
struct ApplyTemplate(ChatRequest);

/// Reads the body of `/tokenize`.
pub(crate) fn parse_tokenize(bytes: &[u8]) -> Result<Request, ApiError> {
    let mut body = body::parse(bytes)?;
    let mut given = ["prompt", "messages", "content"].into_iter().filter(|name| body.contains(name));
    let work = match (given.next(), given.next()) {
        (Some(first), Some(second)) => {
            let detail = format!("The body has both `{first}` and `{second}`; /tokenize takes one of them.");
            return Err(ApiError::bad_request(detail).with_param(second));
        }
        (Some("messages"), None) => {
            let texts = body.take_flag("return_token_strs")?.unwrap_or(false);
            Tokenize::Messages { request: Box::new(take_chat(&mut body)?), texts }
        }
        (Some("content"), None) => Tokenize::Content {
            text: body.take_string("content")?.unwrap_or_default(),
            special: body.take_flag("add_special")?.unwrap_or(false),
            pieces: body.take_flag("with_pieces")?.unwrap_or(false),
        },
        (Some(_), None) => Tokenize::Prompt {
            model: body.take_string("model")?,
            text: body.take_string("prompt")?.unwrap_or_default(),
            special: body.take_flag("add_special_tokens")?.unwrap_or(true),
            texts: body.take_flag("return_token_strs")?.unwrap_or(false),
        },
        (None, _) => return Err(fields::missing("prompt", "a string, or else give `messages` or `content`")),
    };
    parameters::ignore_rest(body);
    Ok(Request { stream: false, work: Box::new(work) })
}

/// Reads the body of `/detokenize`.
pub(crate) fn parse_detokenize(bytes: &[u8]) -> Result<Request, ApiError> {
    let mut body = body::parse(bytes)?;
    let tokens = body.take_token_ids("tokens")?.ok_or_else(|| fields::missing("tokens", "a list of token ids"))?;
    let work = Detokenize { model: body.take_string("model")?, tokens };
    parameters::ignore_rest(body);
    Ok(Request { stream: false, work: Box::new(work) })
}

/// Reads the body of `/apply-template`.
pub(crate) fn parse_apply_template(bytes: &[u8]) -> Result<Request, ApiError> {
    let mut body = body::parse(bytes)?;
    let work = ApplyTemplate(take_chat(&mut body)?);
    parameters::ignore_rest(body);
    Ok(Request { stream: false, work: Box::new(work) })
}

/// What of a chat completion decides its prompt.
fn take_chat(body: &mut fields::Fields) -> Result<ChatRequest, ApiError> {
    let model = body.take_string("model")?;
    let (conversation, add_special_tokens) = take_conversation(body)?;
    Ok(ChatRequest {
        model,
        conversation,
        add_special_tokens,
        tools: Tools::parse(body)?,
        ..ChatRequest::new(Vec::new())
    })
}

fn special(add: bool) -> Special {
    if add { Special::Add } else { Special::Skip }
}

impl Work for Tokenize {
    fn prepare(self: Box<Self>, context: &Context<'_>, cancel: &Cancel) -> Result<Task, ApiError> {
        let tokenizer = &context.request.tokenizer;
        let limit = context.request.max_seq_len.saturating_mul(LONGEST);
        let encode = |text: &str, special: Special| context.request.encode(text, special, limit, cancel);
        let answer = match *self {
            Self::Prompt { model, text, special, texts } => {
                context.names().resolve(model.as_deref())?;
                counted(tokenizer, &encode(&text, self::special(special))?, texts, context)
            }
            Self::Messages { request, texts } => {
                let special = if request.add_special_tokens { Special::Add } else { Special::Rendered };
                let text = request.render(context, cancel)?;
                counted(tokenizer, &encode(&text, special)?, texts, context)
            }
            Self::Content { text, special, pieces } => {
                let tokens = encode(&text, self::special(special))?;
                let piece = |id: &u32| json!({ "id": id, "piece": piece(tokenizer, *id) });
                let tokens = if pieces { tokens.iter().map(piece).collect() } else { json!(tokens) };
                json!({ "tokens": tokens })
            }
        };
        Ok(Task::Known(answer))
    }
}

fn counted(tokenizer: &Tokenizer, tokens: &[u32], texts: bool, context: &Context<'_>) -> Value {
    let text = |id: &u32| tokenizer.token_text(*id).unwrap_or_default();
    let texts: Option<Vec<_>> = texts.then(|| tokens.iter().map(text).collect());
    json!({
        "count": tokens.len(),
        "max_model_len": context.info.max_seq_len,
        "tokens": tokens,
        "token_strs": texts,
    })
}

/// What a token adds to a text: its text, or its bytes where they are no whole character.
fn piece(tokenizer: &Tokenizer, id: u32) -> Value {
    match String::from_utf8(tokenizer.token_bytes(id).unwrap_or_default()) {
        Ok(text) => text.into(),
        Err(error) => json!(error.into_bytes()),
    }
}

impl Work for Detokenize {
    fn prepare(self: Box<Self>, context: &Context<'_>, _: &Cancel) -> Result<Task, ApiError> {
        context.names().resolve(self.model.as_deref())?;
        let known = context.request.vocab_size;
        if let Some((i, id)) = self.tokens.iter().enumerate().find(|(_, id)| **id as usize >= known) {
            let allowed = format!("a token id below {known}, the size of the vocabulary");
            return Err(fields::invalid(&format!("tokens[{i}]"), id, &allowed));
        }
        let options = DecodeOptions { skip_special_tokens: false, clean_up_tokenization_spaces: false };
        let text = context.request.tokenizer.decode(&self.tokens, options);
        // vLLM's clients name a model and read `prompt`; llama.cpp's don't and read `content`.
        Ok(Task::Known(match self.model {
            Some(_) => json!({ "prompt": text }),
            None => json!({ "content": text, "prompt": text }),
        }))
    }
}

impl Work for ApplyTemplate {
    fn prepare(self: Box<Self>, context: &Context<'_>, cancel: &Cancel) -> Result<Task, ApiError> {
        let Self(request) = *self;
        Ok(Task::Known(json!({ "prompt": request.render(context, cancel)? })))
    }
}

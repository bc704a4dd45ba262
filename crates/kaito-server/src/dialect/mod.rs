//! The three shapes of a request, told apart by route and body.

pub(crate) mod llama;
pub(crate) mod text_generation;

use kaito_engine::{ChatRequest, CompletionRequest, TextRequest};

use crate::error::ApiError;
use crate::fields::{self, Fields};
use crate::json;

/// A route that generates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// `POST /generate`
    Generate,
    /// `POST /chat`
    Chat,
}

/// A request as the client wrote it: well-formed, its values not yet judged against the model.
#[derive(Debug)]
pub struct Request {
    /// Whether the answer is to come piece by piece, as server-sent events.
    pub stream: bool,
    /// What is asked for.
    pub work: Work,
}

/// What a request asks for.
#[derive(Debug)]
pub enum Work {
    /// `prompts`: Meta's text completion.
    Completion(CompletionRequest),
    /// `input_data`: Meta's chat completion.
    Dialogs(ChatRequest),
    /// `prompt` or `messages`: text generation with Hugging Face's semantics.
    Text(Box<TextRequest>),
}

/// Reads the body of a request to `endpoint`.
///
/// # Errors
/// 422 when the body is not JSON or has the wrong shape, 400 for unknown parameters and ones given twice.
pub fn parse(endpoint: Endpoint, body: &[u8]) -> Result<Request, ApiError> {
    let fields = Fields::root(json::parse_object(body)?);
    match endpoint {
        Endpoint::Generate => llama::parse_completion(fields),
        Endpoint::Chat => {
            let mut given = ["prompt", "messages", "input_data"].into_iter().filter(|name| fields.contains(name));
            match (given.next(), given.next()) {
                (Some(first), Some(second)) => Err(ApiError::bad_request(format!(
                    "The body has both `{first}` and `{second}`; /chat takes one of them."
                ))),
                (Some("input_data"), None) => llama::parse_dialogs(fields),
                (Some(_), None) => text_generation::parse(fields),
                (None, _) if fields.contains("prompts") => Err(ApiError::wrong_shape(
                    "The body has `prompts`, which /generate takes; /chat takes `prompt`, `messages` or `input_data`.",
                )),
                (None, _) => Err(fields::missing("prompt", "a string, or else give `messages` or `input_data`")),
            }
        }
    }
}

/// Reads a list of `{"role", "content"}` objects that stands at `at`.
fn parse_messages(at: &str, list: Vec<serde_json::Value>) -> Result<Vec<kaito_engine::ChatMessage>, ApiError> {
    let parse = |(i, value)| {
        let mut message = Fields::object(&format!("{at}[{i}]"), value)?;
        let mut text =
            |name| message.take_string(name)?.ok_or_else(|| fields::missing(&message.path(name), "a string"));
        let (role, content) = (text("role")?, text("content")?);
        message.deny_rest(&["role", "content"])?;
        Ok(kaito_engine::ChatMessage { role, content })
    };
    list.into_iter().enumerate().map(parse).collect()
}

//! The shapes of a request, told apart by route and body.
//!
//! A dialect is a reader, from bytes to [`Work`], and a writer, a [`Reply`]. What lies between them, the way through the model,
//! is the same for all.

pub(crate) mod llama;
pub(crate) mod text_generation;

use std::fmt;
use std::sync::Arc;

use axum::response::sse::Event;
use kaito_engine::{Cancel, ChatMessage, Delta, Output, Prepared, RequestContext};

use crate::error::ApiError;
use crate::fields::{self, Fields};
use crate::{json, stream};

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
    pub work: Box<dyn Work>,
}

/// What a request asks for.
pub trait Work: fmt::Debug + Send {
    /// Turns it into prompts for a model. Looks at `cancel` between one stage and the next.
    ///
    /// # Errors
    /// A request that can't be served as it stands, and [`kaito_engine::Error::Cancelled`].
    fn prepare(self: Box<Self>, context: &RequestContext, cancel: &Cancel) -> Result<Task, kaito_engine::Error>;
}

/// A request that is ready for the model.
pub struct Task {
    /// Its prompts.
    pub prompts: Vec<Prepared>,
    /// Who writes what comes of them.
    pub reply: Arc<dyn Reply>,
}

/// Writes what comes of a request, as its dialect has it.
pub trait Reply: Send + Sync {
    /// About how many bytes the whole answer has.
    fn size(&self, output: &Output) -> usize;

    /// The body of an answer that does not stream.
    fn body(&self, output: &Output) -> String;

    /// The event of a stream for new text, if there is one.
    fn delta(&self, delta: &Delta) -> Option<Event> {
        stream::delta(delta)
    }

    /// The last events of a stream that came to its end.
    fn finished(&self, output: &Output) -> Vec<Event> {
        vec![stream::result(self.body(output))]
    }

    /// The last events of a stream that broke off.
    fn failed(&self, error: &ApiError) -> Vec<Event> {
        vec![stream::error(error)]
    }
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
fn parse_messages(at: &str, list: Vec<serde_json::Value>) -> Result<Vec<ChatMessage>, ApiError> {
    let parse = |(i, value)| {
        let mut message = Fields::object(&format!("{at}[{i}]"), value)?;
        let mut text =
            |name| message.take_string(name)?.ok_or_else(|| fields::missing(&message.path(name), "a string"));
        let (role, content) = (text("role")?, text("content")?);
        message.deny_rest(&["role", "content"])?;
        Ok(ChatMessage { role, content })
    };
    list.into_iter().enumerate().map(parse).collect()
}

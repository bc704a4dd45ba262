//! The shapes of a request, told apart by route and body.
//!
//! A dialect is a reader, from bytes to [`Work`], and a writer, a [`Reply`]. What lies between them, the way through the model,
//! is the same for all.

pub(crate) mod llama;
pub(crate) mod text_generation;

use std::fmt;
use std::sync::Arc;

use kaito_engine::{
    Cancel, ChatMessage, Delta, ModelInfo, Output, Prepared, PromptScored, RequestContext, StreamEvent,
};
use kaito_grammar::Grammars;
use serde_json::Value;

use crate::error::ApiError;
use crate::fields::{self, Fields};
use crate::model::Model;
use crate::openai::names::Names;
use crate::options::ServerOptions;

/// Reads the body of a request.
///
/// # Errors
/// 422 when the body is not JSON or has the wrong shape, 400 for what its dialect refuses.
pub(crate) type Parse = fn(&[u8]) -> Result<Request, ApiError>;

/// A request as the client wrote it: well-formed, its values not yet judged against the model.
#[derive(Debug)]
pub struct Request {
    /// Whether the answer is to come piece by piece.
    pub stream: bool,
    /// What is asked for.
    pub work: Box<dyn Work>,
}

/// What a request is judged against.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// What of the model decides how requests become tokens.
    pub request: &'a RequestContext,
    /// What the model is.
    pub info: &'a ModelInfo,
    /// The server's options.
    pub options: &'a ServerOptions,
    /// What compiles grammars for the model.
    pub grammars: &'a Grammars,
    /// The model itself.
    pub model: &'a dyn Model,
}

impl<'a> Context<'a> {
    /// The names that the model and its adapters are served by.
    pub(crate) fn names(&self) -> Names<'a> {
        self.model.names(self.options)
    }
}

/// What a request asks for.
pub trait Work: fmt::Debug + Send {
    /// Turns it into prompts for a model. Looks at `cancel` between one stage and the next.
    ///
    /// # Errors
    /// A request that can't be served as it stands, and [`kaito_engine::Error::Cancelled`].
    fn prepare(self: Box<Self>, context: &Context<'_>, cancel: &Cancel) -> Result<Task, ApiError>;
}

/// What is left to do for a request.
pub enum Task {
    /// The model continues prompts.
    Generate {
        /// The prompts.
        prompts: Vec<Prepared>,
        /// Who writes what comes of them.
        reply: Arc<dyn Reply>,
    },
    /// Nothing: this is the answer.
    Known(Value),
    /// Nothing: this is the answer, and no JSON.
    Text(String),
}

/// Writes what comes of a request, as its dialect has it.
pub trait Reply: Send + Sync {
    /// About how many bytes the whole answer has.
    fn size(&self, output: &Output) -> usize;

    /// The body of an answer that does not stream.
    fn body(&self, output: &Output) -> String;

    /// A writer for one stream.
    fn streaming(self: Arc<Self>) -> Box<dyn Streaming>;

    /// How the events of a stream are told apart.
    fn framing(&self) -> Framing {
        Framing::ServerSentEvents
    }

    /// Hears what the model does, before anything is written of it: for answers that say how long that took.
    fn note(&self, _event: &StreamEvent) {}
}

/// How the events of a stream are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// `text/event-stream`.
    ServerSentEvents,
    /// `application/x-ndjson`: the data alone, each on a line.
    Lines,
}

/// One piece of what a stream sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What kind of piece it is, where the framing has a place for it.
    pub name: Option<&'static str>,
    /// What it says: JSON, on one line.
    pub data: String,
}

impl Event {
    /// A nameless event.
    pub(crate) fn data(data: impl Into<String>) -> Self {
        Self { name: None, data: data.into() }
    }

    /// An event with a name.
    pub(crate) fn named(name: &'static str, data: impl Into<String>) -> Self {
        Self { name: Some(name), data: data.into() }
    }
}

/// Writes the events of one answer. Each method returns those that are to be sent now.
pub trait Streaming: Send {
    /// The request left the queue.
    fn started(&mut self) -> Vec<Event> {
        Vec::new()
    }

    /// The tokens of a prompt have their log-probabilities.
    fn prompt_scored(&mut self, _scored: &PromptScored) -> Vec<Event> {
        Vec::new()
    }

    /// There is new text.
    fn delta(&mut self, delta: &Delta) -> Vec<Event>;

    /// The answer is complete: the last events.
    fn finished(&mut self, output: &Output) -> Vec<Event>;

    /// The answer broke off: the last events.
    fn failed(&mut self, error: &ApiError) -> Vec<Event>;
}

/// Reads the body of a request to the route at `path`. `None` if that does not generate.
///
/// # Errors
/// As [`Parse`].
pub fn parse(path: &str, body: &[u8]) -> Option<Result<Request, ApiError>> {
    crate::routes::parser(path).map(|parse| parse(body))
}

/// Reads a list of `{"role", "content"}` objects that stands at `at`.
fn parse_messages(at: &str, list: Vec<Value>) -> Result<Vec<ChatMessage>, ApiError> {
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

//! A conversation that is continued: `POST /api/chat`.

use std::sync::Arc;
use std::time::Instant;

use kaito_engine::Cancel;

use super::answer::{Answer, Shape};
use super::options::Common;
use super::{messages, models, options};
use crate::dialect::{Context, Request, Task, Work};
use crate::error::ApiError;
use crate::openai::body;
use crate::openai::chat::{ChatRequest, PreparedChat};

/// A conversation as the client wrote it.
#[derive(Debug)]
struct Chat {
    request: ChatRequest,
    came: Instant,
}

/// Reads the body of `/api/chat`.
///
/// # Errors
/// 422 for a body that is no JSON object, 400 for what cannot be done.
pub(crate) fn parse(bytes: &[u8]) -> Result<Request, ApiError> {
    let came = Instant::now();
    let mut body = body::parse(bytes)?;
    let Common { model, stream, parameters, format } = Common::take(&mut body)?;
    let messages = messages::take(&mut body)?;
    let tools = messages::take_tools(&mut body)?;
    options::ignore(body);
    let ending = messages::ending(&messages);
    let mut request = ChatRequest { model, parameters, format, tools, ..ChatRequest::new(messages) };
    request.conversation.ending = ending;
    Ok(Request { stream, work: Box::new(Chat { request, came }) })
}

impl Work for Chat {
    fn prepare(self: Box<Self>, context: &Context<'_>, cancel: &Cancel) -> Result<Task, ApiError> {
        let Self { mut request, came } = *self;
        let served = models::resolve(context.names(), request.model.as_deref())?;
        request.model = Some(served.name.clone());
        if request.conversation.messages.is_empty() {
            return Ok(Task::Known(Answer::loaded(Shape::Chat, served.name)));
        }
        let PreparedChat { prompt, choices } = request.prepare(context, cancel)?;
        let reply = Answer::new(Shape::Chat, served.name, Some(choices), came);
        Ok(Task::Generate { prompts: vec![prompt], reply: Arc::new(reply) })
    }
}

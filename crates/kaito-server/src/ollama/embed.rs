//! Vectors of texts: `POST /api/embed`, as [`crate::openai::embeddings`] has them.

use std::sync::Arc;
use std::time::Instant;

use kaito_engine::{Cancel, Output, Special};
use serde::Serialize;

use super::{models, options};
use crate::dialect::{Context, Reply, Request, Streaming, Task, Work};
use crate::error::ApiError;
use crate::fields::{self, Fields};
use crate::openai::input::{self, Input};
use crate::openai::names::Served;
use crate::openai::parameters::{Parameters, Truncation, unsupported};
use crate::openai::{body, embeddings};

/// A request as the client wrote it.
#[derive(Debug)]
struct Embed {
    body: Fields,
    came: Instant,
}

/// Reads the body of `/api/embed`.
///
/// # Errors
/// 422 for a body that is no JSON object.
pub(crate) fn parse(bytes: &[u8]) -> Result<Request, ApiError> {
    let came = Instant::now();
    let work = Embed { body: body::parse(bytes)?, came };
    Ok(Request { stream: false, work: Box::new(work) })
}

impl Work for Embed {
    fn prepare(self: Box<Self>, context: &Context<'_>, cancel: &Cancel) -> Result<Task, ApiError> {
        embeddings::pooling(context)?;
        let Self { mut body, came } = *self;
        let Served { name: model, adapter } = models::resolve(context.names(), body.take_string("model")?.as_deref())?;
        if body.take_count("dimensions")?.is_some_and(|dimensions| dimensions > 0) {
            return Err(unsupported(&body.path("dimensions"), "the model's vectors have one size"));
        }
        let inputs = input::take(&mut body, "input")?;
        if inputs.iter().any(|input| matches!(input, Input::Tokens(_))) {
            return Err(fields::invalid(&body.path("input"), "a list of token ids", "a string or a list of strings"));
        }
        // What is too long is cut, unless that is forbidden.
        let cut = body.take_flag("truncate")?.unwrap_or(true);
        options::ignore(body);
        let parameters =
            Parameters { truncate_prompt_tokens: cut.then_some(Truncation::First), ..Parameters::of_prompt_alone() };
        let prompts = embeddings::prepare(inputs, "input", Special::Add, &parameters, adapter, context, cancel)?;
        let reply = Answer { model, came };
        Ok(Task::Generate { prompts, reply: Arc::new(reply) })
    }
}

/// Writes the answer.
struct Answer {
    model: String,
    came: Instant,
}

#[derive(Serialize)]
struct Embeddings<'a> {
    model: &'a str,
    embeddings: Vec<Vec<f32>>,
    total_duration: u64,
    load_duration: u64,
    prompt_eval_count: usize,
}

impl Reply for Answer {
    fn size(&self, output: &Output) -> usize {
        embeddings::size(output)
    }

    fn body(&self, output: &Output) -> String {
        body::write(&Embeddings {
            model: &self.model,
            embeddings: embeddings::vectors(output).collect(),
            total_duration: u64::try_from(self.came.elapsed().as_nanos()).unwrap_or(u64::MAX),
            load_duration: 0,
            prompt_eval_count: output.usage.prompt_tokens,
        })
    }

    fn streaming(self: Arc<Self>) -> Box<dyn Streaming> {
        crate::stream::kaito(self)
    }
}

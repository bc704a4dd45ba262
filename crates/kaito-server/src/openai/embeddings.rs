//! Embeddings: `POST /v1/embeddings`. A text's vector is made of the model's hidden states, if the server is told to make any.

use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use kaito_engine::{Adapter, Cancel, Output, Pooling, Prepared, Special};
use serde::Serialize;

use super::body;
use super::input::{self, Input};
use super::names::Served;
use super::parameters::{self, Parameters};
use crate::dialect::{Context, Reply, Request, Streaming, Task, Work};
use crate::error::ApiError;
use crate::fields::{self, Fields};

/// What is known and cannot be honoured.
const UNSUPPORTED: &[(&str, &str)] =
    &[("dimensions", "the model's vectors have one size, and their beginnings do not stand for them")];

/// A request for embeddings. What stands in it is looked at once it is known that there are any.
#[derive(Debug)]
struct Embed(Fields);

/// How vectors are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    /// A list of numbers.
    Float,
    /// Base64 of 32-bit floats, the lowest byte of each first.
    Base64,
}

/// Reads the body of a request for embeddings.
///
/// # Errors
/// 422 for a body that is no JSON object.
pub(crate) fn parse(bytes: &[u8]) -> Result<Request, ApiError> {
    let work = Embed(body::parse(bytes)?);
    Ok(Request { stream: false, work: Box::new(work) })
}

/// How vectors are made.
///
/// # Errors
/// 400 where there are none. No model family was trained to describe texts by vectors; what hidden states give looks like it, and
/// misleads those who expect that.
pub(crate) fn pooling(context: &Context<'_>) -> Result<Pooling, ApiError> {
    context.options.embeddings.ok_or_else(|| {
        let detail = "This server gives no embeddings: its model writes text and was not trained to describe it by \
                      vectors. Its hidden states are given by a server that is started with --embeddings mean or last.";
        ApiError::bad_request(detail).with_code("unsupported_parameter").with_param("model")
    })
}

/// The prompts whose hidden states are pooled, those that the model has with `adapter`. `name` is the field that `inputs` stand in.
///
/// # Errors
/// 400 for texts that are empty or do not fit, and cancellation.
pub(crate) fn prepare(
    inputs: Vec<Input>,
    name: &str,
    special: Special,
    parameters: &Parameters,
    adapter: Option<Adapter>,
    context: &Context<'_>,
    cancel: &Cancel,
) -> Result<Vec<Prepared>, ApiError> {
    let pooling = pooling(context)?;
    let count = inputs.len();
    let prepare = |(i, input): (usize, Input)| {
        let at = input::place(name, count, i);
        if input == Input::Text(String::new()) {
            return Err(fields::invalid(&at, "\"\"", "a text of at least one character"));
        }
        let tokens = input.tokens(special, &at, parameters, context, cancel)?;
        let tokens = context.request.or_begin(tokens)?;
        Ok(Prepared::pooled(context.request, tokens, pooling)?.with_adapter(adapter.clone()))
    };
    inputs.into_iter().enumerate().map(prepare).collect()
}

impl Work for Embed {
    fn prepare(self: Box<Self>, context: &Context<'_>, cancel: &Cancel) -> Result<Task, ApiError> {
        pooling(context)?;
        let Self(mut body) = *self;
        let Served { name: model, adapter } = context.names().resolve(body.take_string("model")?.as_deref())?;
        parameters::refuse(&body, UNSUPPORTED)?;
        let inputs = input::take(&mut body, "input")?;
        let encoding = take_encoding(&mut body)?;
        let special = if body.take_flag("add_special_tokens")?.unwrap_or(true) { Special::Add } else { Special::Skip };
        let parameters = Parameters::take_of_prompt_alone(&mut body)?;
        parameters::ignore_rest(body);
        let prompts = prepare(inputs, "input", special, &parameters, adapter, context, cancel)?;
        Ok(Task::Generate { prompts, reply: Arc::new(Answer { model, encoding }) })
    }
}

/// `encoding_format`: clients of OpenAI ask for base64 unasked, and would take a list of numbers in its place for its bytes.
fn take_encoding(body: &mut Fields) -> Result<Encoding, ApiError> {
    let at = body.path("encoding_format");
    match body.take_string("encoding_format")?.as_deref() {
        None | Some("float") => Ok(Encoding::Float),
        Some("base64") => Ok(Encoding::Base64),
        Some(other) => Err(fields::invalid(&at, format_args!("{other:?}"), "\"float\" or \"base64\"")),
    }
}

/// A vector of length 1 in the direction of `pooled`, or of zeros where that has none.
pub(crate) fn normalized(pooled: &[f32]) -> impl Iterator<Item = f32> {
    let length = pooled.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    let divisor = if length > 0.0 { length } else { 1.0 };
    pooled.iter().map(move |&x| (f64::from(x) / divisor) as f32)
}

/// About how many bytes the vectors of an output are as text.
pub(crate) fn size(output: &Output) -> usize {
    /// A number with its comma.
    const NUMBER: usize = 13;
    output.prompts.iter().map(|prompt| prompt.pooled.as_ref().map_or(0, Vec::len) * NUMBER).sum()
}

/// The vectors of an answer, in the order of its prompts.
pub(crate) fn vectors(output: &Output) -> impl Iterator<Item = Vec<f32>> {
    output.prompts.iter().map(|prompt| normalized(prompt.pooled.as_deref().unwrap_or_default()).collect())
}

/// Writes the answer.
struct Answer {
    model: String,
    encoding: Encoding,
}

#[derive(Serialize)]
struct List<'a> {
    object: &'static str,
    data: Vec<Embedding>,
    model: &'a str,
    usage: Usage,
}

#[derive(Serialize)]
struct Embedding {
    object: &'static str,
    index: usize,
    embedding: Vector,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Vector {
    Float(Vec<f32>),
    Base64(String),
}

impl Vector {
    fn new(vector: Vec<f32>, encoding: Encoding) -> Self {
        match encoding {
            Encoding::Float => Self::Float(vector),
            Encoding::Base64 => {
                let bytes: Vec<u8> = vector.into_iter().flat_map(f32::to_le_bytes).collect();
                Self::Base64(BASE64_STANDARD.encode(bytes))
            }
        }
    }
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

impl Reply for Answer {
    fn size(&self, output: &Output) -> usize {
        size(output)
    }

    fn body(&self, output: &Output) -> String {
        let embedding = |(index, vector)| {
            let embedding = Vector::new(vector, self.encoding);
            Embedding { object: "embedding", index, embedding }
        };
        let tokens = output.usage.prompt_tokens;
        body::write(&List {
            object: "list",
            data: vectors(output).enumerate().map(embedding).collect(),
            model: &self.model,
            usage: Usage { prompt_tokens: tokens, total_tokens: tokens },
        })
    }

    fn streaming(self: Arc<Self>) -> Box<dyn Streaming> {
        crate::stream::kaito(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_has_length_one_or_none_at_all() {
        let normalized = |pooled: &[f32]| normalized(pooled).collect::<Vec<_>>();
        assert_eq!(normalized(&[3.0, -4.0]), [0.6, -0.8]);
        assert_eq!(normalized(&[0.0, 0.0]), [0.0, 0.0]);
        // Squares that f32 has no room for.
        let large = 2f32.powi(100);
        assert_eq!(normalized(&[3.0 * large, 4.0 * large]), [0.6, 0.8]);
    }

    /// RFC 4648, section 4: the bytes of 1.0 are 00 00 80 3f, those of -2.0 are 00 00 00 c0.
    #[test]
    fn base64_is_of_floats_with_the_lowest_byte_first() {
        let Vector::Base64(text) = Vector::new(vec![1.0, -2.0], Encoding::Base64) else { panic!("no text") };
        assert_eq!(text, "AACAPwAAAMA=");
    }
}

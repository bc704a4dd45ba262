//! Bodies of text-generation-inference.

use std::sync::Arc;

use kaito_engine::dialects::openai::SamplingOptions;
use kaito_engine::{Cancel, Special};
use serde_json::Value;

use super::answer::Answer;
use crate::dialect::{Context, Request, Task, Work};
use crate::error::ApiError;
use crate::fields::{self, Fields};
use crate::openai::parameters::{Parameters, Truncation, ignore_rest, unsupported};
use crate::openai::tools::Grammar;
use crate::openai::{body, prompt};

/// Most stop strings of a request.
pub(super) const MAX_STOPS: usize = 16;
/// New tokens where a request says nothing.
const DEFAULT_NEW_TOKENS: usize = 100;

/// A text that is to be continued.
#[derive(Debug)]
struct Generate {
    inputs: String,
    parameters: Parameters,
    grammar: Option<Grammar>,
    return_full_text: bool,
    details: bool,
    prefill: bool,
}

/// Whether a body at a path of Kaito's own is of this dialect.
pub(crate) fn is_ours(body: &Fields) -> bool {
    body.contains("inputs") && !body.contains("prompts")
}

/// Reads a body of `/generate`.
pub(crate) fn parse_generate(body: Fields) -> Result<Request, ApiError> {
    parse(body, false)
}

/// Reads the body of a POST of `/`, where huggingface_hub sends what `/generate` takes.
pub(crate) fn parse_root(bytes: &[u8]) -> Result<Request, ApiError> {
    parse(body::parse(bytes)?, false)
}

/// Reads the body of `/generate_stream`.
pub(crate) fn parse_stream(bytes: &[u8]) -> Result<Request, ApiError> {
    parse(body::parse(bytes)?, true)
}

fn parse(mut body: Fields, stream: bool) -> Result<Request, ApiError> {
    let inputs = body.take_string("inputs")?.ok_or_else(|| fields::missing("inputs", "a string"))?;
    if inputs.is_empty() {
        return Err(fields::invalid("inputs", "\"\"", "a string of at least one character"));
    }
    let mut given = body.take_object("parameters")?.unwrap_or_default();
    let stream = stream | body.take_flag("stream")?.unwrap_or(false);
    let details = given.take_flag("details")?.unwrap_or(false);
    let prefill = given.take_flag("decoder_input_details")?.unwrap_or(false);
    if prefill && stream {
        return Err(unsupported("parameters.decoder_input_details", "a stream says nothing of its prompt"));
    }
    let return_full_text = given.take_flag("return_full_text")?.unwrap_or(false);
    let grammar = take_grammar(&mut given)?;
    let mut parameters = take_parameters(&mut given, stream)?;
    let scored = details || stream;
    parameters.sampling.logprobs = scored.then_some(given_top(&mut given)?);
    parameters.sampling.prompt_logprobs = prefill.then_some(0);
    if given.take_flag("watermark")?.unwrap_or(false) {
        return Err(unsupported("parameters.watermark", "texts carry no mark"));
    }
    ignore_rest(given);
    ignore_rest(body);
    let work = Generate { inputs, parameters, grammar, return_full_text, details, prefill };
    Ok(Request { stream, work: Box::new(work) })
}

fn given_top(given: &mut Fields) -> Result<usize, ApiError> {
    Ok(crate::openai::parameters::take_likely(given, "top_n_tokens")?.unwrap_or(0))
}

/// The likeliest tokens are taken unless something asks for sampling.
fn take_parameters(given: &mut Fields, stream: bool) -> Result<Parameters, ApiError> {
    let samples = given.take_flag("do_sample")?.unwrap_or(false);
    let (temperature, top_p) = (given.take_number("temperature")?, given.take_number("top_p")?);
    let top_k = given.take_integer("top_k")?;
    if given.take_number("typical_p")?.is_some_and(|typical| typical < 1.0) {
        return Err(unsupported("parameters.typical_p", "`top_p` and `top_k` narrow what is sampled from"));
    }
    let best_of = given.take_count("best_of")?.map(|count| usize::try_from(count).unwrap_or(usize::MAX));
    let best_of = best_of.filter(|count| *count > 1);
    if best_of.is_some() && stream {
        return Err(unsupported("parameters.best_of", "an answer that streams cannot choose among texts"));
    }
    let sampled = samples || temperature.is_some() || top_p.is_some() || top_k.is_some();
    let new_tokens = match given.take_integer("max_new_tokens")? {
        None => DEFAULT_NEW_TOKENS,
        Some(count) => usize::try_from(count)
            .ok()
            .filter(|count| *count > 0)
            .ok_or_else(|| fields::invalid("parameters.max_new_tokens", count, "an integer of at least 1"))?,
    };
    let stop = given.take_strings("stop")?.unwrap_or_default();
    if stop.len() > MAX_STOPS || stop.iter().any(String::is_empty) {
        let found = format!("a list of {}", stop.len());
        return Err(fields::invalid("parameters.stop", found, "a list of up to 16 strings, none of them empty"));
    }
    let truncation = given.take_count("truncate")?.map(|count| usize::try_from(count).unwrap_or(usize::MAX));
    Ok(Parameters {
        sampling: SamplingOptions {
            max_tokens: Some(new_tokens),
            temperature: if sampled { Some(temperature.unwrap_or(1.0)) } else { Some(0.0) },
            top_p: Some(top_p.unwrap_or(1.0)),
            top_k: Some(top_k.unwrap_or(0)),
            min_p: Some(0.0),
            repetition_penalty: Some(given.take_number("repetition_penalty")?.unwrap_or(1.0)),
            frequency_penalty: given.take_number("frequency_penalty")?.unwrap_or(0.0),
            seed: given.take_integer("seed")?,
            n: 1,
            best_of,
            ..SamplingOptions::default()
        },
        stop,
        // The text keeps what ended it.
        include_stop: true,
        truncate_prompt_tokens: truncation.filter(|count| *count > 0).map(Truncation::Tokens),
        ..Parameters::default()
    })
}

/// `grammar`: a schema or a regular expression, by its type.
fn take_grammar(given: &mut Fields) -> Result<Option<Grammar>, ApiError> {
    let Some(mut grammar) = given.take_object("grammar")? else { return Ok(None) };
    let kinds = "\"json\", \"json_schema\" or \"regex\"";
    let at = grammar.path("value");
    let kind = grammar.take_string("type")?.ok_or_else(|| fields::missing(&grammar.path("type"), kinds))?;
    match kind.as_str() {
        "regex" => {
            Ok(Some(Grammar::Regex(grammar.take_string("value")?.ok_or_else(|| fields::missing(&at, "a string"))?)))
        }
        "json" | "json_schema" => match grammar.take("value") {
            Some(schema @ Value::Object(_)) => {
                Ok(Some(Grammar::JsonSchema { schema, strict: false, whitespace: None }))
            }
            Some(other) => Err(fields::wrong_shape(&at, "a JSON schema, which is an object", &other)),
            None => Err(fields::missing(&at, "a JSON schema")),
        },
        other => Err(fields::unknown_value(&grammar.path("type"), other, kinds)),
    }
}

impl Work for Generate {
    fn prepare(self: Box<Self>, context: &Context<'_>, cancel: &Cancel) -> Result<Task, ApiError> {
        let Self { inputs, parameters, grammar, return_full_text, details, prefill } = *self;
        let tokens = prompt::encode(&inputs, Special::Add, "inputs", &parameters, context, cancel)?;
        let grammar = grammar.as_ref().map(|grammar| ("parameters.grammar", grammar));
        let likely = parameters.sampling.logprobs.unwrap_or(0);
        let seed = parameters.sampling.seed;
        let prompt = prompt::prepare(parameters, tokens, grammar, context, cancel)?;
        let reply = Answer {
            tokenizer: context.request.tokenizer.clone(),
            shown: if return_full_text { inputs } else { String::new() },
            prompt: prompt.prompt().to_vec(),
            details,
            prefill,
            likely,
            seed,
        };
        Ok(Task::Generate { prompts: vec![prompt], reply: Arc::new(reply) })
    }
}

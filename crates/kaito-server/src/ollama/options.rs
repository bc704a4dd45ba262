//! How a text is made: `options`, `format`, and what else both routes that generate have in common.

use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::fields::{self, Fields};
use crate::openai::format::Format;
use crate::openai::parameters::{self, Parameters, StreamOptions, ignore_rest, unsupported};
use crate::openai::tools::Grammar;

/// Options that are honoured: Ollama's names and ours.
const OPTIONS: [(&str, &str); 9] = [
    ("temperature", "temperature"),
    ("top_k", "top_k"),
    ("top_p", "top_p"),
    ("min_p", "min_p"),
    ("seed", "seed"),
    ("stop", "stop"),
    ("repeat_penalty", "repetition_penalty"),
    ("presence_penalty", "presence_penalty"),
    ("frequency_penalty", "frequency_penalty"),
];

/// What both routes take.
#[derive(Debug)]
pub(super) struct Common {
    pub(super) model: Option<String>,
    pub(super) stream: bool,
    pub(super) parameters: Parameters,
    pub(super) format: Option<Format>,
}

impl Common {
    /// Reads it.
    ///
    /// # Errors
    /// 400 for values of the wrong type or out of range, and for what this server cannot honour.
    pub(super) fn take(body: &mut Fields) -> Result<Self, ApiError> {
        refuse_unless_off(body, "think", "its model answers without thoughts before")?;
        refuse_unless_off(body, "logprobs", "log-probabilities are given by /v1/chat/completions")?;
        Ok(Self {
            model: body.take_string("model")?,
            stream: body.take_flag("stream")?.unwrap_or(true),
            parameters: take_options(body)?,
            format: take_format(body)?,
        })
    }
}

fn refuse_unless_off(body: &mut Fields, name: &str, why: &str) -> Result<(), ApiError> {
    match body.take(name) {
        None | Some(Value::Bool(false)) => Ok(()),
        Some(_) => Err(unsupported(&body.path(name), why)),
    }
}

/// Refuses images, which come as a list beside a text.
pub(super) fn refuse_images(body: &mut Fields) -> Result<(), ApiError> {
    match body.take_list("images")? {
        Some(images) if !images.is_empty() => {
            Err(unsupported(&body.path("images"), "the model of this server reads texts alone"))
        }
        _ => Ok(()),
    }
}

fn take_options(body: &mut Fields) -> Result<Parameters, ApiError> {
    let at = body.path("options");
    let mut options = body.take_object("options")?.unwrap_or_default();
    let mut known = Map::new();
    for (theirs, ours) in OPTIONS {
        known.extend(options.take(theirs).map(|value| (ours.to_owned(), value)));
    }
    // Their seed for a new one each time.
    if known.get("seed") == Some(&Value::from(-1)) {
        known.shift_remove("seed");
    }
    let limit = options.take_integer("num_predict")?;
    ignore_rest(options);
    let mut known = Fields::object(&at, Value::Object(known))?;
    let parameters = Parameters::take(&mut known, StreamOptions::default());
    let mut parameters = parameters.map_err(|error| error.renamed(&[("repetition_penalty", "repeat_penalty")]))?;
    // 0 and less are as many as fit.
    parameters.sampling.max_tokens = limit.and_then(|limit| usize::try_from(limit).ok()).filter(|limit| *limit > 0);
    Ok(parameters)
}

/// `format`: `json`, or a schema.
fn take_format(body: &mut Fields) -> Result<Option<Format>, ApiError> {
    const WANTED: &str = "\"json\" or a JSON schema, which is an object";
    let parameter = body.path("format");
    let grammar = match body.take("format") {
        None => return Ok(None),
        Some(Value::String(none)) if none.is_empty() => return Ok(None),
        Some(Value::String(json)) if json == "json" => Grammar::JsonObject,
        Some(schema @ Value::Object(_)) => Grammar::JsonSchema { schema, strict: false, whitespace: None },
        Some(Value::String(other)) => {
            return Err(fields::unknown_value(&parameter, &other, WANTED));
        }
        Some(other) => return Err(fields::wrong_shape(&parameter, WANTED, &other)),
    };
    Ok(Some(Format { parameter, grammar }))
}

/// Ends the reading.
pub(super) fn ignore(body: Fields) {
    parameters::ignore_rest(body);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn common(body: Value) -> Result<Common, ApiError> {
        Common::take(&mut Fields::root(body.as_object().unwrap().clone()))
    }

    #[test]
    fn options_have_names_of_their_own() {
        let options = json!({
            "num_predict": 7, "temperature": 0.5, "top_k": 3, "top_p": 0.9, "min_p": 0.1, "seed": 5, "stop": ["a"],
            "repeat_penalty": 1.5, "presence_penalty": 0.5, "frequency_penalty": -0.5, "num_ctx": 4096, "mirostat": "any",
        });
        let Common { stream, parameters, .. } = common(json!({ "options": options })).unwrap();
        let sampling = &parameters.sampling;
        assert!(stream);
        assert_eq!((sampling.max_tokens, sampling.temperature, sampling.top_k), (Some(7), Some(0.5), Some(3)));
        assert_eq!((sampling.top_p, sampling.min_p, sampling.seed), (Some(0.9), Some(0.1), Some(5)));
        assert_eq!((sampling.repetition_penalty, sampling.presence_penalty), (Some(1.5), 0.5));
        assert_eq!((sampling.frequency_penalty, parameters.stop), (-0.5, vec!["a".to_owned()]));
    }

    #[test]
    fn none_and_less_are_no_limit_and_a_seed_of_minus_one_is_none() {
        for limit in [-2, -1, 0] {
            let options = json!({ "options": { "num_predict": limit, "seed": -1 } });
            let sampling = common(options).unwrap().parameters.sampling;
            assert_eq!((sampling.max_tokens, sampling.seed), (None, None), "{limit}");
        }
    }
}

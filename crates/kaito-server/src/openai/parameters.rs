//! The parameters that chat completions and completions have in common.

use kaito_engine::dialects::openai::{BeamOptions, SamplingOptions};
use serde_json::Value;

use crate::error::ApiError;
use crate::fields::{self, Fields};

/// Most sequences of a prompt.
const MAX_CHOICES: u64 = 128;
/// Most stop strings of a request.
const MAX_STOPS: usize = 16;
/// Most entries of `logit_bias`.
const MAX_BIASES: usize = 1024;
/// Most of the likeliest tokens that are given with a chosen one.
const MAX_LIKELY: u64 = 20;

/// How a text is continued, what ends it, and what of it is shown.
#[derive(Debug, Clone)]
pub(crate) struct Parameters {
    /// How tokens are chosen. Its constraint is set when the request is prepared.
    pub(crate) sampling: SamplingOptions,
    /// Texts that end a sequence where they appear.
    pub(crate) stop: Vec<String>,
    /// Whether the text keeps the stop string that ended it.
    pub(crate) include_stop: bool,
    /// Whether special tokens have no text.
    pub(crate) skip_special_tokens: bool,
    /// How many tokens of the prompt are kept: its last ones, unless it says otherwise.
    pub(crate) truncate_prompt_tokens: Option<Truncation>,
    /// Whether token ids are shown beside the texts.
    pub(crate) return_token_ids: bool,
    /// Whether log-probabilities name tokens by their ids.
    pub(crate) tokens_as_ids: bool,
}

/// How many tokens of a prompt are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Truncation {
    /// As many as leave room for one more.
    Longest,
    /// So many.
    Tokens(usize),
    /// As many of the first ones as fit.
    First,
}

/// Whether and how an answer comes in pieces.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct StreamOptions {
    /// Whether it does.
    pub(crate) stream: bool,
    /// Whether its last chunk says what the request took.
    pub(crate) include_usage: bool,
    /// Whether each chunk does.
    pub(crate) continuous_usage: bool,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            sampling: SamplingOptions::default(),
            stop: Vec::new(),
            include_stop: false,
            skip_special_tokens: true,
            truncate_prompt_tokens: None,
            return_token_ids: false,
            tokens_as_ids: false,
        }
    }
}

impl Parameters {
    /// Those of a prompt that nothing is to follow.
    pub(crate) fn of_prompt_alone() -> Self {
        Self { sampling: SamplingOptions { max_tokens: Some(0), ..SamplingOptions::default() }, ..Self::default() }
    }

    /// The same, with what a request says of it.
    ///
    /// # Errors
    /// 400 for values of the wrong type and out of range.
    pub(crate) fn take_of_prompt_alone(body: &mut Fields) -> Result<Self, ApiError> {
        Ok(Self { truncate_prompt_tokens: take_truncation(body)?, ..Self::of_prompt_alone() })
    }

    /// Reads all but how many tokens there may be and which log-probabilities are shown.
    ///
    /// # Errors
    /// 400 for values of the wrong type and out of range.
    pub(crate) fn take(body: &mut Fields, stream: StreamOptions) -> Result<Self, ApiError> {
        let n = take_choices(body, "n")?;
        let best_of = take_choices(body, "best_of")?;
        if let Some(best_of) = best_of {
            if best_of < n.unwrap_or(1) {
                let allowed = format!("an integer of at least `n`, which is {}", n.unwrap_or(1));
                return Err(fields::invalid(&body.path("best_of"), best_of, &allowed));
            }
            if stream.stream && best_of > n.unwrap_or(1) {
                return Err(unsupported(&body.path("best_of"), "an answer that streams cannot choose among texts"));
            }
        }
        let priority = body.take_integer("priority")?.unwrap_or(0);
        if priority != 0 {
            return Err(fields::invalid(&body.path("priority"), priority, "0: all requests have the same priority"));
        }
        let beams = take_beams(body, stream)?;
        let sampling = SamplingOptions {
            temperature: within(body, "temperature", "a number from 0 to 2", |x| (0.0..=2.0).contains(&x))?,
            top_p: within(body, "top_p", "a number above 0 and at most 1", |x| x > 0.0 && x <= 1.0)?,
            top_k: take_top_k(body)?,
            min_p: within(body, "min_p", "a number from 0 to 1", |x| (0.0..=1.0).contains(&x))?,
            repetition_penalty: within(body, "repetition_penalty", "a number above 0", |x| x > 0.0 && x.is_finite())?,
            presence_penalty: take_penalty(body, "presence_penalty")?,
            frequency_penalty: take_penalty(body, "frequency_penalty")?,
            logit_bias: take_bias(body)?,
            seed: body.take_integer("seed")?,
            n: n.map_or(1, to_usize),
            best_of: best_of.map(to_usize),
            stop_token_ids: body.take_token_ids("stop_token_ids")?.unwrap_or_default(),
            min_tokens: body.take_count("min_tokens")?.map_or(0, to_usize),
            ignore_eos: body.take_flag("ignore_eos")?.unwrap_or(false),
            allowed_token_ids: take_allowed(body)?,
            bad_words: body.take_strings("bad_words")?.unwrap_or_default(),
            beams,
            cache_salt: take_salt(body)?,
            ..SamplingOptions::default()
        };
        Ok(Self {
            sampling,
            stop: take_stop(body)?,
            include_stop: body.take_flag("include_stop_str_in_output")?.unwrap_or(false),
            skip_special_tokens: body.take_flag("skip_special_tokens")?.unwrap_or(true),
            truncate_prompt_tokens: take_truncation(body)?,
            return_token_ids: body.take_flag("return_token_ids")?.unwrap_or(false),
            tokens_as_ids: body.take_flag("return_tokens_as_token_ids")?.unwrap_or(false),
        })
    }
}

/// `stream` and `stream_options`.
///
/// # Errors
/// 400 for values of the wrong type, and options of a stream for an answer that does not stream.
pub(crate) fn take_stream(body: &mut Fields) -> Result<StreamOptions, ApiError> {
    let stream = body.take_flag("stream")?.unwrap_or(false);
    let at = body.path("stream_options");
    let Some(mut options) = body.take_object("stream_options")? else {
        return Ok(StreamOptions { stream, ..StreamOptions::default() });
    };
    if !stream {
        return Err(ApiError::bad_request(format!("`{at}` is given without `stream`: true.")).with_param(at));
    }
    let include_usage = options.take_flag("include_usage")?.unwrap_or(false);
    let continuous = options.take_flag("continuous_usage_stats")?.unwrap_or(false);
    Ok(StreamOptions { stream, include_usage, continuous_usage: include_usage && continuous })
}

/// So many of the likeliest tokens, at most 20.
///
/// # Errors
/// 400 for anything else.
pub(crate) fn take_likely(body: &mut Fields, name: &str) -> Result<Option<usize>, ApiError> {
    let given = body.take_integer(name)?;
    let check = |count: i64| {
        u64::try_from(count)
            .ok()
            .filter(|count| *count <= MAX_LIKELY)
            .map(to_usize)
            .ok_or_else(|| fields::invalid(&body.path(name), count, "an integer from 0 to 20"))
    };
    given.map(check).transpose()
}

/// `prompt_logprobs`, which no answer that streams has.
///
/// # Errors
/// 400 for anything but an integer from 0 to 20, and beside `stream`.
pub(crate) fn take_prompt_log_probs(body: &mut Fields, stream: StreamOptions) -> Result<Option<usize>, ApiError> {
    let likely = take_likely(body, "prompt_logprobs")?;
    if likely.is_some() && stream.stream {
        let at = body.path("prompt_logprobs");
        return Err(ApiError::bad_request(format!("`{at}` can't stand beside `stream`: true.")).with_param(at));
    }
    Ok(likely)
}

/// 400 for a field that is known and cannot be honoured.
pub(crate) fn unsupported(at: &str, why: &str) -> ApiError {
    ApiError::bad_request(format!("`{at}` is not supported: {why}.")).with_code("unsupported_parameter").with_param(at)
}

/// 400 for the first of `table` that the body has: names, and why they cannot be honoured.
pub(crate) fn refuse(body: &Fields, table: &[(&str, &str)]) -> Result<(), ApiError> {
    match table.iter().find(|(name, _)| body.contains(name)) {
        Some((name, why)) => Err(unsupported(&body.path(name), why)),
        None => Ok(()),
    }
}

/// Ends the reading: the rest is of clients that know more than this server, and is ignored.
pub(crate) fn ignore_rest(body: Fields) {
    let rest = body.into_rest();
    if !rest.is_empty() {
        let names = rest.keys().take(20).map(|name| name.chars().take(60).collect::<String>());
        tracing::debug!(fields = %names.collect::<Vec<_>>().join(", "), "unknown fields of a request were ignored");
    }
}

fn within(body: &mut Fields, name: &str, allowed: &str, is: fn(f64) -> bool) -> Result<Option<f64>, ApiError> {
    match body.take_number(name)? {
        Some(value) if !is(value) => Err(fields::invalid(&body.path(name), value, allowed)),
        value => Ok(value),
    }
}

fn take_penalty(body: &mut Fields, name: &str) -> Result<f64, ApiError> {
    Ok(within(body, name, "a number from -2 to 2", |x| (-2.0..=2.0).contains(&x))?.unwrap_or(0.0))
}

fn take_top_k(body: &mut Fields) -> Result<Option<i64>, ApiError> {
    match body.take_integer("top_k")? {
        Some(top_k) if top_k < -1 => Err(fields::invalid(
            &body.path("top_k"),
            top_k,
            "an integer of at least -1, where -1 and 0 mean all tokens",
        )),
        top_k => Ok(top_k),
    }
}

fn take_choices(body: &mut Fields, name: &str) -> Result<Option<u64>, ApiError> {
    let given = body.take_integer(name)?;
    let check = |count: i64| {
        u64::try_from(count)
            .ok()
            .filter(|count| (1..=MAX_CHOICES).contains(count))
            .ok_or_else(|| fields::invalid(&body.path(name), count, "an integer from 1 to 128"))
    };
    given.map(check).transpose()
}

/// `use_beam_search` with its own parameters.
fn take_beams(body: &mut Fields, stream: StreamOptions) -> Result<Option<BeamOptions>, ApiError> {
    let searches = body.take_flag("use_beam_search")?.unwrap_or(false);
    let length_penalty = within(body, "length_penalty", "a finite number", f64::is_finite)?.unwrap_or(1.0);
    let early_stopping = body.take_flag("early_stopping")?.unwrap_or(false);
    if searches && stream.stream {
        return Err(unsupported(
            &body.path("use_beam_search"),
            "the texts of a beam search are known at its end, not in a stream",
        ));
    }
    Ok(searches.then_some(BeamOptions { length_penalty, early_stopping }))
}

fn take_allowed(body: &mut Fields) -> Result<Option<Vec<u32>>, ApiError> {
    match body.take_token_ids("allowed_token_ids")? {
        Some(ids) if ids.is_empty() => {
            Err(fields::invalid(&body.path("allowed_token_ids"), "[]", "a list of at least one token id"))
        }
        ids => Ok(ids),
    }
}

fn take_salt(body: &mut Fields) -> Result<Option<String>, ApiError> {
    match body.take_string("cache_salt")? {
        Some(salt) if salt.is_empty() => {
            Err(fields::invalid(&body.path("cache_salt"), "\"\"", "a string of at least one character"))
        }
        salt => Ok(salt),
    }
}

fn take_truncation(body: &mut Fields) -> Result<Option<Truncation>, ApiError> {
    const NAME: &str = "truncate_prompt_tokens";
    match body.take_integer(NAME)? {
        None => Ok(None),
        Some(-1) => Ok(Some(Truncation::Longest)),
        Some(count) => match usize::try_from(count).ok().filter(|count| *count > 0) {
            Some(count) => Ok(Some(Truncation::Tokens(count))),
            None => Err(fields::invalid(&body.path(NAME), count, "an integer of at least 1, or -1 for as many as fit")),
        },
    }
}

/// `stop`: a string or a list of strings.
fn take_stop(body: &mut Fields) -> Result<Vec<String>, ApiError> {
    let at = body.path("stop");
    let wanted = "a string or a list of up to 16 strings";
    let texts = match body.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::String(text)) => vec![text],
        Some(Value::Array(list)) if list.len() > MAX_STOPS => {
            let count = list.len();
            return Err(fields::invalid(&at, format_args!("a list of {count}"), wanted));
        }
        Some(Value::Array(list)) => {
            let text = |(i, value)| fields::string(&format!("{at}[{i}]"), value);
            list.into_iter().enumerate().map(text).collect::<Result<_, _>>()?
        }
        Some(other) => return Err(fields::wrong_shape(&at, wanted, &other)),
    };
    if texts.iter().any(String::is_empty) {
        let error =
            ApiError::bad_request(format!("`{at}` holds an empty string, which would end every answer at once."));
        return Err(error.with_param(at));
    }
    Ok(texts)
}

/// `logit_bias`: an object from token ids to numbers, or a list of pairs of them.
fn take_bias(body: &mut Fields) -> Result<Vec<(u32, f32)>, ApiError> {
    let at = body.path("logit_bias");
    let pairs: Vec<(Value, Value)> = match body.take("logit_bias") {
        None => return Ok(Vec::new()),
        Some(Value::Object(entries)) => entries.into_iter().map(|(id, bias)| (Value::String(id), bias)).collect(),
        Some(Value::Array(list)) => list
            .into_iter()
            .enumerate()
            .map(|(i, pair)| match pair {
                Value::Array(pair) => <[Value; 2]>::try_from(pair).map(|[id, bias]| (id, bias)).map_err(|pair| {
                    fields::wrong_shape(&format!("{at}[{i}]"), "a token id and a number", &Value::Array(pair))
                }),
                other => Err(fields::wrong_shape(&format!("{at}[{i}]"), "a token id and a number", &other)),
            })
            .collect::<Result<_, _>>()?,
        Some(other) => return Err(fields::wrong_shape(&at, "an object from token ids to numbers", &other)),
    };
    if pairs.len() > MAX_BIASES {
        let count = pairs.len();
        return Err(fields::invalid(&at, format_args!("of {count} tokens"), "of at most 1024"));
    }
    pairs
        .into_iter()
        .map(|(id, bias)| {
            let token = match &id {
                Value::String(text) => text.trim().parse().ok(),
                other => other.as_u64().and_then(|id| u32::try_from(id).ok()),
            };
            let token = token.ok_or_else(|| {
                let error = ApiError::bad_request(format!("`{at}` has the key {id}: it must be a token id."));
                error.with_param(at.clone())
            })?;
            let within = bias.as_f64().filter(|bias| (-100.0..=100.0).contains(bias));
            let bias =
                within.ok_or_else(|| fields::invalid(&format!("{at}.{token}"), &bias, "a number from -100 to 100"))?;
            Ok((token, bias as f32))
        })
        .collect()
}

fn to_usize(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(body: &Value) -> Fields {
        Fields::root(body.as_object().unwrap().clone())
    }

    fn take(body: Value) -> Result<Parameters, ApiError> {
        Parameters::take(&mut fields(&body), StreamOptions::default())
    }

    #[test]
    fn what_is_not_given_is_left_to_the_model() {
        let parameters = take(json!({})).unwrap();
        assert_eq!(parameters.sampling.n, 1);
        assert_eq!(
            (parameters.sampling.temperature, parameters.sampling.top_k, parameters.sampling.seed),
            (None, None, None)
        );
        assert!(parameters.skip_special_tokens && parameters.stop.is_empty());
    }

    #[test]
    fn seeds_are_any_integer_of_64_bits() {
        for seed in [i64::MIN, -1, 0, i64::MAX] {
            assert_eq!(take(json!({ "seed": seed })).unwrap().sampling.seed, Some(seed));
        }
        assert!(take(json!({ "seed": u64::MAX })).is_err());
        assert!(take(json!({ "seed": 1.5 })).is_err());
    }

    #[test]
    fn stop_is_one_string_or_up_to_16() {
        assert_eq!(take(json!({ "stop": "a" })).unwrap().stop, ["a"]);
        assert_eq!(take(json!({ "stop": ["a", "b"] })).unwrap().stop, ["a", "b"]);
        assert!(take(json!({ "stop": [] })).unwrap().stop.is_empty());
        assert!(take(json!({ "stop": vec!["a"; 16] })).is_ok());
        assert!(take(json!({ "stop": vec!["a"; 17] })).is_err());
    }

    #[test]
    fn biases_come_as_an_object_or_as_pairs() {
        for body in [json!({ "logit_bias": { "5": 1.5, "7": -100 } }), json!({ "logit_bias": [[5, 1.5], ["7", -100]] })]
        {
            let mut bias = take(body).unwrap().sampling.logit_bias;
            bias.sort_by_key(|(id, _)| *id);
            assert_eq!(bias, [(5, 1.5), (7, -100.0)]);
        }
    }

    #[test]
    fn usage_is_continuous_only_where_it_is_included() {
        for (options, expected) in [
            (json!({}), (false, false)),
            (json!({ "include_usage": true }), (true, false)),
            (json!({ "include_usage": true, "continuous_usage_stats": true }), (true, true)),
            (json!({ "continuous_usage_stats": true }), (false, false)),
        ] {
            let options = take_stream(&mut fields(&json!({ "stream": true, "stream_options": options }))).unwrap();
            assert_eq!((options.include_usage, options.continuous_usage), expected);
        }
        assert!(take_stream(&mut fields(&json!({ "stream_options": {} }))).is_err());
    }
}

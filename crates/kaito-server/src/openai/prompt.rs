//! From text to a prompt that is ready for the model: what chat completions and completions have in common.

use super::tools::Grammar;
use axum::http::StatusCode;
use kaito_engine::{Cancel, Decoding, Error, Prepared, Special, StopStrings};

use super::parameters::{Parameters, Truncation};
use crate::dialect::Context;
use crate::error::ApiError;
use crate::fields;

/// How many times the longest sequence a text may have of which only the end is kept: it need not fit, but all of it is
/// tokenised.
const WHOLE: usize = 8;

/// Checks that as many sequences can run as are asked for.
///
/// # Errors
/// 400.
pub(crate) fn check_choices(parameters: &Parameters, context: &Context<'_>) -> Result<(), ApiError> {
    let most = context.request.max_batch_size;
    let allowed =
        format!("at most {most}, which is how many sequences this server runs at the same time (--max-batch-size)");
    let sampling = &parameters.sampling;
    match sampling.best_of {
        _ if sampling.n > most => Err(fields::invalid("n", sampling.n, &allowed)),
        Some(best_of) if best_of > most => Err(fields::invalid("best_of", best_of, &allowed)),
        _ => Ok(()),
    }
}

/// The tokens of a prompt's text, which stands at `at` in the request.
///
/// # Errors
/// 400 for a text that leaves no room for an answer, and cancellation.
pub(crate) fn encode(
    text: &str,
    special: Special,
    at: &str,
    parameters: &Parameters,
    context: &Context<'_>,
    cancel: &Cancel,
) -> Result<Vec<u32>, ApiError> {
    let longest = context.request.max_seq_len;
    let limit = if parameters.truncate_prompt_tokens.is_some() { longest.saturating_mul(WHOLE) } else { longest };
    let tokens = context.request.encode(text, special, limit, cancel).map_err(|error| match error {
        // What the bytes alone say.
        Error::InvalidRequest(detail) => {
            ApiError::bad_request(detail).with_code("context_length_exceeded").with_param(at)
        }
        error => error.into(),
    })?;
    fit(tokens, at, parameters, context)
}

/// `tokens`, cut as the request says. They must leave room for at least one more, unless none is to be generated.
///
/// # Errors
/// 400 with both lengths.
pub(crate) fn fit(
    mut tokens: Vec<u32>,
    at: &str,
    parameters: &Parameters,
    context: &Context<'_>,
) -> Result<Vec<u32>, ApiError> {
    let longest = context.request.max_seq_len;
    let room = longest.saturating_sub(usize::from(parameters.sampling.max_tokens != Some(0)));
    let kept = match parameters.truncate_prompt_tokens {
        None => usize::MAX,
        Some(Truncation::Longest) => room,
        Some(Truncation::First) => {
            tokens.truncate(room);
            room
        }
        Some(Truncation::Tokens(count)) if count > longest => {
            let allowed = format!("at most {longest}, which is this model's longest sequence, or -1");
            return Err(fields::invalid("truncate_prompt_tokens", count, &allowed));
        }
        Some(Truncation::Tokens(count)) => count,
    };
    tokens.drain(..tokens.len().saturating_sub(kept));
    if tokens.len() <= room {
        return Ok(tokens);
    }
    let rest = if room < longest { ", and at least one must be left for the answer" } else { "" };
    let detail =
        format!("This model's maximum context length is {longest} tokens, but the prompt has {}{rest}.", tokens.len());
    Err(ApiError::bad_request(detail).with_code("context_length_exceeded").with_param(at))
}

/// The refusal of a grammar, which the field at `at` asks for.
fn refused(error: kaito_grammar::Error, at: &str) -> ApiError {
    use kaito_grammar::Error as Reason;

    let sentence = error.to_string();
    match error {
        Reason::InvalidSchema { .. } => ApiError::bad_request(sentence).with_code("invalid_json_schema").with_param(at),
        Reason::Invalid { .. } => ApiError::bad_request(sentence).with_param(at),
        Reason::TimedOut { .. } => ApiError::bad_request(sentence).with_code("invalid_json_schema").with_param(at),
        Reason::Busy { .. } => ApiError::new(StatusCode::TOO_MANY_REQUESTS, sentence),
        Reason::Cancelled => Error::Cancelled.into(),
        Reason::Tokenizer { .. } | Reason::Internal { .. } => ApiError::internal(sentence),
    }
}

/// A prompt of these tokens, continued as `parameters` say in texts that `grammar` describes, which comes with the field that asks
/// for it.
///
/// # Errors
/// 400 for what the model cannot do, and cancellation.
pub(crate) fn prepare(
    parameters: Parameters,
    tokens: Vec<u32>,
    grammar: Option<(&str, &Grammar)>,
    context: &Context<'_>,
    cancel: &Cancel,
) -> Result<Prepared, ApiError> {
    cancel.check()?;
    let Parameters { mut sampling, stop, include_stop, skip_special_tokens, return_token_ids, .. } = parameters;
    let scored = sampling.logprobs.is_some() || sampling.prompt_logprobs.is_some();
    if let Some((at, grammar)) = grammar {
        sampling.constraint = Some(context.grammars.constraint(grammar, cancel).map_err(|error| refused(error, at))?);
    }
    let tokens = context.request.or_begin(tokens)?;
    let params = sampling.resolve(context.request, &tokens)?;
    let decoding = Decoding {
        skip_special_tokens,
        skip_end_tokens: true,
        token_bytes: scored,
        by_token: scored || return_token_ids,
        include_stop_string: include_stop,
        ..Decoding::default()
    };
    Ok(Prepared::new(context.request, tokens, params, decoding, StopStrings::new(&stop)?))
}

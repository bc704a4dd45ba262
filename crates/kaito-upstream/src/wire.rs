//! What the engine answers, as vLLM's `/v1/completions` writes it. Nothing of it is believed before it is checked.

use std::collections::BTreeMap;

use kaito_engine::remote::TokenScore;
use serde::Deserialize;
use serde_json::Value;

/// What stands before the id of a token where `return_tokens_as_token_ids` is set.
const TOKEN_ID: &str = "token_id:";

/// An event of a stream.
#[derive(Debug, Deserialize)]
pub(crate) struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    error: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Choice {
    index: u64,
    token_ids: Option<Vec<u32>>,
    logprobs: Option<LogProbs>,
    finish_reason: Option<String>,
    prompt_logprobs: Option<Vec<Option<BTreeMap<String, PromptLogProb>>>>,
}

#[derive(Debug, Deserialize)]
struct LogProbs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f64>>,
    top_logprobs: Vec<Option<BTreeMap<String, f64>>>,
}

#[derive(Debug, Deserialize)]
struct PromptLogProb {
    logprob: f64,
    rank: Option<usize>,
}

#[derive(Debug, Deserialize)]
struct Usage {
    prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Debug, Deserialize)]
struct PromptDetails {
    cached_tokens: Option<usize>,
}

/// What an event says of its only sequence.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Piece {
    /// New tokens, each with its score where scores were asked for.
    pub(crate) tokens: Vec<(u32, Option<TokenScore>)>,
    /// Why the sequence ended, if it did.
    pub(crate) finish: Option<Finish>,
    /// Tokens of the prompt that were in the engine's prefix cache, if it tells.
    pub(crate) cached: Option<usize>,
}

/// Why a sequence ended, in the engine's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finish {
    /// By a token that ends it.
    Stop,
    /// By its length.
    Length,
    /// The engine gave it up.
    GivenUp,
}

/// What is wrong with an answer.
#[derive(Debug, PartialEq)]
pub(crate) enum Wrong {
    /// It is no answer of this API; the rest of a sentence that begins with the engine.
    Fault(String),
    /// It is an error that the engine reports.
    Error(Value),
}

fn fault<T>(what: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong::Fault(what.into()))
}

/// Reads an event of a stream that asked for `log_probs` of the likeliest tokens, for a vocabulary of `vocab_size`.
///
/// # Errors
/// An event that is none of this API, and what the engine reports as an error.
pub(crate) fn piece(data: &str, vocab_size: usize, log_probs: Option<usize>) -> Result<Piece, Wrong> {
    let Chunk { choices, usage, error } = parse(data)?;
    if let Some(error) = error {
        return Err(Wrong::Error(error));
    }
    let cached = usage.and_then(|usage| usage.prompt_tokens_details?.cached_tokens);
    let mut piece = Piece { cached, ..Piece::default() };
    let mut choices = choices.into_iter();
    let Some(choice) = choices.next() else { return Ok(piece) };
    if choice.index != 0 || choices.next().is_some() {
        return fault("answers with several sequences where one was asked for");
    }
    let Some(tokens) = choice.token_ids else {
        return fault("tells no `token_ids`, for which `return_token_ids` asks: vLLM has that since 0.10.2");
    };
    piece.finish = match choice.finish_reason.as_deref() {
        None => None,
        Some("stop") => Some(Finish::Stop),
        Some("length") => Some(Finish::Length),
        Some("abort" | "error") => Some(Finish::GivenUp),
        Some(other) => return fault(format!("ends a sequence for \"{}\"", kaito_client::brief(other))),
    };
    if let Some(token) = tokens.iter().find(|&&token| token as usize >= vocab_size) {
        let last = vocab_size.saturating_sub(1);
        return fault(format!(
            "gave the token id {token}, but this model's ids are 0 to {last}: it serves another model"
        ));
    }
    piece.tokens = match (log_probs, choice.logprobs) {
        (None, _) => tokens.into_iter().map(|token| (token, None)).collect(),
        (Some(_), None) if tokens.is_empty() => Vec::new(),
        (Some(_), None) => return fault("gave no `logprobs`, which were asked for"),
        (Some(most), Some(given)) => scored(tokens, given, vocab_size, most)?,
    };
    Ok(piece)
}

fn scored(
    tokens: Vec<u32>,
    given: LogProbs,
    vocab_size: usize,
    most: usize,
) -> Result<Vec<(u32, Option<TokenScore>)>, Wrong> {
    let LogProbs { tokens: names, token_logprobs, top_logprobs } = given;
    let lengths = [names.len(), token_logprobs.len(), top_logprobs.len()];
    if lengths != [tokens.len(); 3] {
        return fault(format!("gave log-probabilities of {lengths:?} tokens for {} tokens", tokens.len()));
    }
    let places = tokens.into_iter().zip(names).zip(token_logprobs.into_iter().zip(top_logprobs));
    places
        .map(|((token, name), (log_prob, top))| {
            if token_id(&name) != Some(token) {
                let name = kaito_client::brief(&name);
                return fault(format!("calls the token {token} \"{name}\" beside its log-probability"));
            }
            let Some(log_prob) = log_prob else {
                return fault(format!("gave no log-probability of the token {token}"));
            };
            let top = likeliest(top.unwrap_or_default().iter().map(|(name, p)| (name.as_str(), *p)), vocab_size, most)?;
            Ok((token, Some(TokenScore { token, log_prob: log_prob as f32, rank: None, top })))
        })
        .collect()
}

/// The likeliest tokens, at most `most`: the one that was chosen is among those that the engine names, even if it is not likely.
fn likeliest<'a>(
    named: impl Iterator<Item = (&'a str, f64)>,
    vocab_size: usize,
    most: usize,
) -> Result<Vec<(u32, f32)>, Wrong> {
    let mut top = Vec::new();
    for (name, log_prob) in named {
        match token_id(name).filter(|&token| (token as usize) < vocab_size) {
            Some(token) => top.push((token, log_prob as f32)),
            None => {
                let name = kaito_client::brief(name);
                return fault(format!("gave the log-probability of \"{name}\", which is no token of this model"));
            }
        }
    }
    top.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    top.truncate(most);
    Ok(top)
}

/// `token_id:17`, or the id alone, as prompts have it.
fn token_id(name: &str) -> Option<u32> {
    name.strip_prefix(TOKEN_ID).unwrap_or(name).parse().ok()
}

/// Reads the scores of a prompt, from its second token on, out of an answer that is no stream.
///
/// # Errors
/// As [`piece`].
pub(crate) fn prompt_scores(
    body: &str,
    prompt: &[u32],
    vocab_size: usize,
    most: usize,
) -> Result<Vec<TokenScore>, Wrong> {
    let Chunk { choices, error, .. } = parse(body)?;
    if let Some(error) = error {
        return Err(Wrong::Error(error));
    }
    let given = choices.into_iter().next().and_then(|choice| choice.prompt_logprobs);
    let Some(given) = given.filter(|given| given.len() == prompt.len()) else {
        return fault(format!("gave no `prompt_logprobs` of the {} tokens of the prompt", prompt.len()));
    };
    prompt
        .iter()
        .zip(given)
        .skip(1)
        .map(|(&token, given)| {
            let given = given.unwrap_or_default();
            let Some(own) = given.get(&token.to_string()) else {
                return fault(format!("gave no log-probability of the prompt's token {token}"));
            };
            let named = given.iter().map(|(name, score)| (name.as_str(), score.logprob));
            let top = likeliest(named, vocab_size, most)?;
            Ok(TokenScore { token, log_prob: own.logprob as f32, rank: own.rank, top })
        })
        .collect()
}

fn parse(text: &str) -> Result<Chunk, Wrong> {
    serde_json::from_str(text)
        .map_err(|error| Wrong::Fault(format!("answers with what is no part of a completion: {error}")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// Chunks as vLLM's `CompletionStreamResponse` writes them.
    #[test]
    fn events_are_read_as_vllm_writes_them() {
        let event = json!({
            "id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m",
            "choices": [{
                "index": 0, "text": "ab", "finish_reason": "stop", "stop_reason": 2, "prompt_token_ids": [1, 5],
                "token_ids": [7, 2],
                "logprobs": {
                    "text_offset": [0, 1], "tokens": ["token_id:7", "token_id:2"], "token_logprobs": [-1.5, -0.25],
                    "top_logprobs": [{ "token_id:7": -1.5, "token_id:3": -0.5 }, { "token_id:2": -0.25 }],
                },
            }],
        });
        let read = piece(&event.to_string(), 64, Some(1)).unwrap();
        let score = |token, log_prob, top| Some(TokenScore { token, log_prob, rank: None, top });
        let tokens = vec![(7, score(7, -1.5, vec![(3, -0.5)])), (2, score(2, -0.25, vec![(2, -0.25)]))];
        assert_eq!(read, Piece { tokens, finish: Some(Finish::Stop), cached: None });
        let usage = r#"{"choices":[],"usage":{"prompt_tokens":2,"prompt_tokens_details":{"cached_tokens":16}}}"#;
        assert_eq!(piece(usage, 64, None).unwrap(), Piece { cached: Some(16), ..Piece::default() });
    }

    #[test]
    fn what_no_engine_of_this_api_says_is_a_fault() {
        for (event, logprobs, part) in [
            ("{", None, "no part of a completion"),
            ("[]", None, "no part of a completion"),
            (r#"{"choices":[{"index":1,"token_ids":[1]}]}"#, None, "several sequences"),
            (r#"{"choices":[{"index":0,"token_ids":[1]},{"index":0,"token_ids":[1]}]}"#, None, "several sequences"),
            (r#"{"choices":[{"index":0,"text":"a"}]}"#, None, "no `token_ids`"),
            (
                r#"{"choices":[{"index":0,"token_ids":[64]}]}"#,
                None,
                "the token id 64, but this model's ids are 0 to 63",
            ),
            (r#"{"choices":[{"index":0,"token_ids":[-1]}]}"#, None, "no part of a completion"),
            (r#"{"choices":[{"index":0,"token_ids":[1],"finish_reason":"x"}]}"#, None, "ends a sequence for \"x\""),
            (r#"{"choices":[{"index":0,"token_ids":[1]}]}"#, Some(0), "no `logprobs`"),
            (
                r#"{"choices":[{"index":0,"token_ids":[1],"logprobs":{"tokens":[],"token_logprobs":[],"top_logprobs":[]}}]}"#,
                Some(0),
                "[0, 0, 0] tokens for 1 tokens",
            ),
            (
                r#"{"choices":[{"index":0,"token_ids":[1],"logprobs":{"tokens":["a"],"token_logprobs":[-1],"top_logprobs":[{}]}}]}"#,
                Some(0),
                "calls the token 1 \"a\"",
            ),
            (
                r#"{"choices":[{"index":0,"token_ids":[1],"logprobs":{"tokens":["token_id:1"],"token_logprobs":[null],"top_logprobs":[{}]}}]}"#,
                Some(0),
                "no log-probability of the token 1",
            ),
            (
                r#"{"choices":[{"index":0,"token_ids":[1],"logprobs":{"tokens":["token_id:1"],"token_logprobs":[-1],"top_logprobs":[{"token_id:99":-1}]}}]}"#,
                Some(0),
                "\"token_id:99\", which is no token",
            ),
        ] {
            match piece(event, 64, logprobs) {
                Err(Wrong::Fault(fault)) => assert!(fault.contains(part), "{event}: {fault}"),
                other => panic!("{event}: {other:?}"),
            }
        }
        let error = piece(r#"{"error":{"message":"dead","code":500}}"#, 64, None);
        assert_eq!(error, Err(Wrong::Error(json!({ "message": "dead", "code": 500 }))));
    }

    #[test]
    fn scores_of_a_prompt_are_read_as_vllm_writes_them() {
        let score = |log_prob: f64, rank: u32| json!({ "logprob": log_prob, "rank": rank, "decoded_token": "a" });
        let body = json!({ "choices": [{
            "index": 0, "text": "x", "token_ids": [3],
            "prompt_logprobs": [null, { "5": score(-2.0, 3), "9": score(-0.5, 1) }],
        }] });
        let expected = TokenScore { token: 5, log_prob: -2.0, rank: Some(3), top: vec![(9, -0.5)] };
        assert_eq!(prompt_scores(&body.to_string(), &[1, 5], 64, 1), Ok(vec![expected]));
        for prompt in [&[1][..], &[1, 6], &[1, 5, 5]] {
            assert!(matches!(prompt_scores(&body.to_string(), prompt, 64, 1), Err(Wrong::Fault(_))), "{prompt:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in ".{0,200}", tokens in prop::collection::vec(any::<i64>(), 0..4)) {
            let _ = piece(&text, 64, Some(2));
            let odd = json!({ "choices": [{ "index": 0, "token_ids": tokens, "logprobs": { "tokens": [text.clone()],
                "token_logprobs": [0], "top_logprobs": [{ text: 1e308 }] } }] });
            let _ = piece(&odd.to_string(), 64, Some(2));
            let _ = prompt_scores(&odd.to_string(), &[1, 2], 64, 2);
        }
    }
}

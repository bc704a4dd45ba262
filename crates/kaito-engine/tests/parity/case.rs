//! A case as `tests/parity/generate.py` writes it, and how its numbers are compared.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use kaito_model::tokenizer::ChatMessage;
use serde::Deserialize;
use serde_json::{Map, Value};

/// How far scores may be from the reference's, relative to their size where that is above 1: both are sums of rounded
/// f32 products.
const SCORE_TOLERANCE: f32 = 1e-4;
/// How far probabilities may be from the reference's.
const PROBABILITY_TOLERANCE: f32 = 1e-5;

/// A request and its answer.
#[derive(Debug, Deserialize)]
pub struct Case {
    /// Unique within its model.
    pub name: String,
    /// The body as a client sends it.
    pub request: Map<String, Value>,
    /// What the reference implementation answers.
    pub expect: Expectation,
    #[serde(default)]
    loaded_with: LoadedWith,
}

#[derive(Debug, Default, Deserialize)]
struct LoadedWith {
    max_seq_len: Option<usize>,
}

/// What the reference implementation answers.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum Expectation {
    /// One token is drawn from this distribution. Tokens that are not listed have probability 0.
    Draw {
        /// Of the one prompt; Meta's code has a list of prompts.
        prompt_ids: PromptIds,
        /// Token ids and their probabilities.
        distribution: Vec<(u32, f32)>,
    },
    /// Answers of transformers.
    Sequences {
        /// Tokens of the prompt.
        prompt_ids: Vec<u32>,
        /// Prompt and new tokens of each returned sequence.
        sequences: Vec<Vec<u32>>,
        /// The text of each.
        texts: Vec<String>,
        /// Scores of beams.
        sequences_scores: Option<Vec<f32>>,
        /// Log-probabilities of the first sequence's new tokens.
        log_probs: Option<Vec<f32>>,
    },
    /// Answers of Meta's code.
    Completions {
        /// Tokens of each prompt.
        prompt_ids: Vec<Vec<u32>>,
        /// New tokens for each prompt, without the end token.
        tokens: Vec<Vec<u32>>,
        /// The text of each.
        texts: Vec<String>,
        /// For dialogs: which of them hold special tags.
        #[serde(rename = "unsafe")]
        unsafe_tags: Option<Vec<bool>>,
    },
}

/// Prompt tokens of a case that draws.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum PromptIds {
    /// Of transformers.
    One(Vec<u32>),
    /// Of Meta's code: exactly one.
    List([Vec<u32>; 1]),
}

impl Case {
    /// All cases of a file.
    pub fn read_all(path: &Path) -> Vec<Self> {
        let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let cases: Vec<Self> =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(!cases.is_empty(), "{} has no cases", path.display());
        cases
    }

    /// Whether it is for Meta's routes rather than for text generation.
    pub fn is_meta(&self) -> bool {
        self.request.contains_key("parameters")
    }

    /// Whether it compares a distribution.
    pub fn is_draw(&self) -> bool {
        matches!(self.expect, Expectation::Draw { .. })
    }

    /// What the model is to be loaded with.
    pub fn max_seq_len(&self) -> Option<usize> {
        self.loaded_with.max_seq_len
    }

    /// A field of the request; null is the same as absent.
    pub fn field<T: for<'a> Deserialize<'a>>(&self, name: &str) -> Option<T> {
        let value = self.request.get(name).filter(|value| !value.is_null());
        value.map(|value| serde_json::from_value(value.clone()).expect(name))
    }
}

/// A conversation of a request.
pub fn messages(dialog: &[BTreeMap<String, String>]) -> Vec<ChatMessage> {
    dialog.iter().map(|turn| ChatMessage { role: turn["role"].clone(), content: turn["content"].clone() }).collect()
}

/// Says what differs, if anything does.
pub fn same<T: PartialEq + std::fmt::Debug>(what: &str, got: &T, expected: &T) -> Result<(), String> {
    if got == expected { Ok(()) } else { Err(format!("{what}\n  got      {got:?}\n  expected {expected:?}")) }
}

/// Says which scores are too far off, if any are.
pub fn near(what: &str, got: &[f32], expected: &[f32]) -> Result<(), String> {
    let close = |(a, b): (&f32, &f32)| (a - b).abs() <= SCORE_TOLERANCE * b.abs().max(1.0);
    if got.len() == expected.len() && got.iter().zip(expected).all(close) {
        Ok(())
    } else {
        Err(format!("{what}\n  got      {got:?}\n  expected {expected:?}"))
    }
}

/// Checks the log-probability of a token that can be drawn.
pub fn check_probability(token: u32, log_prob: f32, expected: &HashMap<u32, f32>) -> Result<(), String> {
    let got = log_prob.exp();
    match expected.get(&token) {
        None => Err(format!("token {token} can't be drawn, yet has probability {got}")),
        Some(p) if (got - p).abs() > PROBABILITY_TOLERANCE => {
            Err(format!("token {token} has probability {got}, not {p}"))
        }
        Some(_) => Ok(()),
    }
}

/// Checks the likeliest tokens of a distribution. Ten right ones leave no room for a token too many or too few among the
/// rest: it would change all probabilities.
pub fn check_probabilities(top: &[(u32, f32)], expected: &HashMap<u32, f32>) -> Result<(), String> {
    same("number of likeliest tokens", &top.len(), &expected.len().min(10))?;
    let likeliest: BTreeSet<u32> = top.iter().map(|&(token, _)| token).collect();
    let least = top.iter().map(|&(_, log_prob)| log_prob.exp()).fold(f32::INFINITY, f32::min);
    if let Some((token, p)) =
        expected.iter().find(|&(t, &p)| !likeliest.contains(t) && p > least + PROBABILITY_TOLERANCE)
    {
        return Err(format!("token {token} with probability {p} is not among the likeliest: {top:?}"));
    }
    top.iter().try_for_each(|&(token, log_prob)| check_probability(token, log_prob, expected))
}

/// Checks that `draws` draws came out as a distribution has it: each token within five standard deviations. The draws
/// have a fixed seed, so this either always holds or never.
pub fn check_frequencies(drawn: &[u32], expected: &HashMap<u32, f32>, draws: usize) -> Result<(), String> {
    same("number of draws", &drawn.len(), &draws)?;
    if let Some(token) = drawn.iter().find(|&token| !expected.contains_key(token)) {
        return Err(format!("token {token} was drawn, which can't be drawn"));
    }
    for (token, p) in expected {
        let (times, mean) = (drawn.iter().filter(|&t| t == token).count() as f32, draws as f32 * p);
        if (times - mean).abs() > 5.0 * (mean * (1.0 - p)).max(0.0).sqrt() + 1.0 {
            return Err(format!("token {token} with probability {p} was drawn {times} times of {draws}"));
        }
    }
    Ok(())
}

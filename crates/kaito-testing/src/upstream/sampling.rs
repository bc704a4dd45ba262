//! How vLLM chooses tokens: its `SamplingParams`, and the order of its sampler (allowed tokens, bad words, minimum, bias, penalties,
//! temperature, min-p, top-k, top-p).

use std::collections::{BTreeMap, BTreeSet};

use kaito_engine::{
    Special, Tokenizer,
    testing::{VOCAB, scores_behind},
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};

/// Fields of `CompletionRequest` that this engine knows; it refuses others, where vLLM passes over them.
const FIELDS: &[&str] = &[
    "allowed_token_ids",
    "bad_words",
    "cache_salt",
    "frequency_penalty",
    "ignore_eos",
    "logit_bias",
    "logprobs",
    "max_tokens",
    "min_p",
    "min_tokens",
    "model",
    "presence_penalty",
    "prompt",
    "prompt_logprobs",
    "repetition_penalty",
    "return_token_ids",
    "return_tokens_as_token_ids",
    "seed",
    "stop_token_ids",
    "stream",
    "stream_options",
    "structured_outputs",
    "temperature",
    "top_k",
    "top_p",
];

pub(super) struct Sampling<'a> {
    tokenizer: &'a Tokenizer,
    body: Value,
    prompt: Vec<u32>,
    tokens: Vec<u32>,
    bad_words: Vec<Vec<u32>>,
    stops: BTreeSet<u32>,
    eos: u32,
    random: ChaCha8Rng,
}

/// A token.
pub(super) struct Step {
    /// An entry of `choices`.
    pub(super) choice: Value,
    pub(super) finished: bool,
}

fn ids(value: &Value) -> Option<Vec<u32>> {
    value.as_array()?.iter().map(|id| id.as_u64()?.try_into().ok()).collect()
}

impl<'a> Sampling<'a> {
    /// Checks a request as vLLM does.
    pub(super) fn read(body: &Value, tokenizer: &'a Tokenizer, max_model_len: usize) -> Result<Self, String> {
        let fields = body.as_object().ok_or("no object")?;
        if let Some(unknown) = fields.keys().find(|name| !FIELDS.contains(&name.as_str())) {
            return Err(format!("the field {unknown} is not known here"));
        }
        let prompt = ids(&body["prompt"]).filter(|prompt| !prompt.is_empty()).ok_or("no prompt of token ids")?;
        let number = |name: &str, default: f64| body.get(name).map_or(Some(default), Value::as_f64);
        let within = |name: &str, default: f64, least: f64, most: f64| match number(name, default) {
            Some(number) if (least..=most).contains(&number) => Ok(()),
            other => Err(format!("{name} must be in [{least}, {most}], got {other:?}")),
        };
        within("temperature", 1.0, 0.0, 2.0)?;
        within("top_p", 1.0, f64::MIN_POSITIVE, 1.0)?;
        within("min_p", 0.0, 0.0, 1.0)?;
        within("top_k", 0.0, -1.0, f64::MAX)?;
        within("presence_penalty", 0.0, -2.0, 2.0)?;
        within("frequency_penalty", 0.0, -2.0, 2.0)?;
        within("repetition_penalty", 1.0, f64::MIN_POSITIVE, f64::MAX)?;
        within("max_tokens", 16.0, 1.0, (max_model_len - prompt.len().min(max_model_len)) as f64)?;
        within("min_tokens", 0.0, 0.0, number("max_tokens", 16.0).unwrap())?;
        within("logprobs", 0.0, 0.0, 20.0)?;
        within("prompt_logprobs", 0.0, 0.0, if body["stream"] == true { 0.0 } else { 20.0 })?;
        let known = |ids: &[u32]| ids.iter().all(|&id| (id as usize) < VOCAB);
        for name in ["prompt", "stop_token_ids", "allowed_token_ids"] {
            let ids = body.get(name).map_or(Some(Vec::new()), ids);
            if !ids.is_some_and(|ids| known(&ids)) {
                return Err(format!("{name} has what is no token id"));
            }
        }
        let mut bad_words = Vec::new();
        for word in body["bad_words"].as_array().into_iter().flatten() {
            let word = word.as_str().ok_or("a bad word is a text")?.trim_start();
            let encode = |text: &str| tokenizer.encode(text, Special::Skip).unwrap();
            let (alone, behind_space) = (encode(word), encode(&format!(" {word}")));
            let other = behind_space.len() == alone.len() && behind_space[0] != alone[0];
            bad_words.push(alone);
            bad_words.extend(other.then_some(behind_space));
        }
        let eos = tokenizer.eos_token_id().unwrap();
        let mut stops: BTreeSet<u32> = ids(&body["stop_token_ids"]).unwrap_or_default().into_iter().collect();
        if body["ignore_eos"] != true {
            stops.insert(eos);
        }
        let random = match body["seed"].as_i64().filter(|seed| *seed != -1) {
            Some(seed) => ChaCha8Rng::seed_from_u64(seed as u64),
            None => ChaCha8Rng::seed_from_u64(rand::random()),
        };
        Ok(Self { tokenizer, body: body.clone(), prompt, tokens: Vec::new(), bad_words, stops, eos, random })
    }

    pub(super) fn prompt_len(&self) -> usize {
        self.prompt.len()
    }

    fn number(&self, name: &str, default: f64) -> f64 {
        self.body.get(name).and_then(Value::as_f64).unwrap_or(default)
    }

    /// The next token.
    pub(super) fn step(&mut self) -> Result<Step, String> {
        let all = [self.prompt.as_slice(), &self.tokens].concat();
        let raw = scores_behind(&all);
        let token = self.choose(raw.clone(), &all)?;
        let first = self.tokens.is_empty();
        self.tokens.push(token);
        let stopped = self.stops.contains(&token);
        let long = self.tokens.len() >= self.number("max_tokens", 16.0) as usize;
        let mut choice = json!({
            "index": 0,
            "text": "",
            "logprobs": null,
            "finish_reason": if stopped { json!("stop") } else if long { json!("length") } else { json!(null) },
            "stop_reason": if stopped && token != self.eos { json!(token) } else { json!(null) },
        });
        if self.body["return_token_ids"] == true {
            choice["token_ids"] = json!([token]);
            choice["prompt_token_ids"] = if first { json!(self.prompt) } else { json!(null) };
        }
        if let Some(most) = self.body["logprobs"].as_u64() {
            let scores = log_probs(&raw);
            let name = |token: u32| match self.body["return_tokens_as_token_ids"] == true {
                true => format!("token_id:{token}"),
                false => self.tokenizer.token_text(token).unwrap_or_default(),
            };
            // The chosen token comes first, and stands there once.
            let named = std::iter::once(token).chain(likeliest(&scores, most as usize));
            let top: Map<String, Value> = named.map(|token| (name(token), json!(scores[token as usize]))).collect();
            choice["logprobs"] = json!({
                "text_offset": [0], "tokens": [name(token)], "token_logprobs": [scores[token as usize]],
                "top_logprobs": [top],
            });
        }
        Ok(Step { choice, finished: stopped || long })
    }

    /// An answer that is no stream.
    pub(super) fn whole(&mut self) -> Value {
        let step = self.step().unwrap();
        let mut choice = step.choice;
        if let Some(most) = self.body["prompt_logprobs"].as_u64() {
            let scored = (1..self.prompt.len()).map(|at| {
                let scores = log_probs(&scores_behind(&self.prompt[..at]));
                let named = std::iter::once(self.prompt[at]).chain(likeliest(&scores, most as usize));
                named
                    .map(|token| {
                        let own = scores[token as usize];
                        let rank = scores.iter().filter(|score| **score >= own).count();
                        let score = json!({ "logprob": own, "rank": rank, "decoded_token": "a" });
                        (token.to_string(), score)
                    })
                    .collect::<Map<String, Value>>()
            });
            choice["prompt_logprobs"] = std::iter::once(Value::Null).chain(scored.map(Value::Object)).collect();
        }
        choice
    }

    fn choose(&mut self, mut scores: Vec<f32>, all: &[u32]) -> Result<u32, String> {
        let ban = |scores: &mut Vec<f32>, token: u32| scores[token as usize] = f32::NEG_INFINITY;
        if let Some(allowed) = self.body.get("allowed_token_ids").and_then(ids) {
            (0..VOCAB as u32).filter(|token| !allowed.contains(token)).for_each(|token| ban(&mut scores, token));
        }
        if let Some(choices) = self.body["structured_outputs"]["choice"].as_array() {
            self.keep_choices(choices, &mut scores);
        }
        for word in &self.bad_words {
            let (last, start) = word.split_last().unwrap();
            if self.tokens.ends_with(start) {
                ban(&mut scores, *last);
            }
        }
        if self.tokens.len() < self.number("min_tokens", 0.0) as usize {
            // The model's own end token too, whether or not it ends anything.
            self.stops.iter().chain([&self.eos]).for_each(|token| ban(&mut scores, *token));
        }
        for (token, bias) in self.body["logit_bias"].as_object().into_iter().flatten() {
            scores[token.parse::<usize>().unwrap()] += bias.as_f64().unwrap().clamp(-100.0, 100.0) as f32;
        }
        let repetition = self.number("repetition_penalty", 1.0) as f32;
        for &token in all.iter().collect::<BTreeSet<_>>() {
            let score = &mut scores[token as usize];
            *score = if *score > 0.0 { *score / repetition } else { *score * repetition };
        }
        let mut counts = BTreeMap::<u32, f32>::new();
        self.tokens.iter().for_each(|&token| *counts.entry(token).or_default() += 1.0);
        for (token, count) in counts {
            scores[token as usize] -= self.number("frequency_penalty", 0.0) as f32 * count;
            scores[token as usize] -= self.number("presence_penalty", 0.0) as f32;
        }
        let temperature = self.number("temperature", 1.0);
        let mut order: Vec<u32> = (0..VOCAB as u32).filter(|&token| scores[token as usize].is_finite()).collect();
        order.sort_by(|&a, &b| scores[b as usize].total_cmp(&scores[a as usize]).then(a.cmp(&b)));
        let Some(&best) = order.first() else { return Err("no token is left".to_owned()) };
        if temperature < 1e-5 {
            return Ok(best);
        }
        let max = scores[best as usize];
        let weight = |token: u32| (f64::from(scores[token as usize] - max) / temperature.max(0.01)).exp();
        order.retain(|&token| weight(token) >= self.number("min_p", 0.0));
        if let top_k @ 1.. = self.number("top_k", 0.0) as i64 {
            order.truncate(top_k as usize);
        }
        let total: f64 = order.iter().map(|&token| weight(token)).sum();
        let mut before = 0.0;
        order.retain(|&token| {
            let kept = before < self.number("top_p", 1.0) * total;
            before += weight(token);
            kept
        });
        let total: f64 = order.iter().map(|&token| weight(token)).sum();
        let mut rest = self.random.random::<f64>() * total;
        let drawn = order.iter().find(|&&token| {
            rest -= weight(token);
            rest < 0.0
        });
        Ok(drawn.copied().unwrap_or(best))
    }

    /// Leaves the tokens that go on towards one of the choices, or the end behind one.
    fn keep_choices(&self, choices: &[Value], scores: &mut [f32]) {
        let text =
            |tokens: &[u32]| tokens.iter().filter_map(|&token| self.tokenizer.token_text(token)).collect::<String>();
        let begun = text(&self.tokens);
        let choices: Vec<&str> = choices.iter().filter_map(Value::as_str).collect();
        for (token, score) in (0u32..).zip(scores) {
            let added = text(&[token]);
            let goes_on =
                !added.is_empty() && choices.iter().any(|choice| choice.starts_with(&format!("{begun}{added}")));
            let ends = token == self.eos && choices.contains(&begun.as_str());
            if !goes_on && !ends {
                *score = f32::NEG_INFINITY;
            }
        }
    }
}

fn log_probs(scores: &[f32]) -> Vec<f32> {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let log_sum = scores.iter().map(|score| f64::from(score - max).exp()).sum::<f64>().ln();
    scores.iter().map(|score| (f64::from(score - max) - log_sum) as f32).collect()
}

fn likeliest(scores: &[f32], most: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..scores.len() as u32).collect();
    order.sort_by(|&a, &b| scores[b as usize].total_cmp(&scores[a as usize]).then(a.cmp(&b)));
    order.truncate(most);
    order
}

//! What the engine is asked for, for one prompt.

use kaito_engine::{
    ParameterError, RequestContext,
    remote::{GenerationRequest, Strategy},
};
use serde_json::{Map, Value, json};

use crate::{
    bad_words,
    parameters::{self, Asked},
};

/// A prompt and all that is asked of it.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) prompt: Vec<u32>,
    /// The adapter that continues it, by the name that the engine has for it.
    adapter: Option<String>,
    pub(crate) sequences: usize,
    /// The most tokens of a sequence.
    pub(crate) max_new: usize,
    min_new: usize,
    seed: Option<i64>,
    pub(crate) end_tokens: Vec<u32>,
    pub(crate) stop_tokens: Vec<u32>,
    pub(crate) log_probs: Option<usize>,
    pub(crate) prompt_log_probs: Option<usize>,
    /// Whether a grammar says when a sequence ends.
    pub(crate) constrained: bool,
    /// Whether it depends on more than the tokens so far what comes next: on which of them were generated, say. A sequence that lost
    /// its engine is then generated anew, and must come to the tokens that it had.
    pub(crate) again: bool,
    fields: Map<String, Value>,
}

impl Plan {
    /// What is asked for `request`, of the model or of an `adapter` of it.
    ///
    /// # Errors
    /// A parameter that the engine has not, by its name.
    pub(crate) fn new(
        request: GenerationRequest,
        adapter: Option<String>,
        context: &RequestContext,
    ) -> Result<Self, ParameterError> {
        let GenerationRequest { prompt, params } = request;
        let raw = params.raw_processors.as_deref();
        let (name, words) = match raw {
            Some(raw) => ("bad_words", &raw.bad_words),
            None => ("bad_words_ids", &params.processors.bad_words),
        };
        let cannot =
            |word: &[u32], why: &str| parameters::not_here(name, &format!("the word of the token ids {word:?} {why}"));
        if let Some(word) = bad_words::begun_in_prompt(&prompt, words).filter(|_| raw.is_none()) {
            return Err(cannot(word, "begins in the prompt, and vLLM looks at the answer alone"));
        }
        let told = bad_words::told(&context.tokenizer, words)
            .map_err(|word| cannot(word, "has no text that vLLM would turn into these ids and no others"))?;
        let fields = parameters::fields(&Asked { params: &params, context, bad_words: &told })?;
        let samples = matches!(params.strategy, Strategy::Sample { .. });
        let counts = raw.is_some_and(|raw| raw.presence_penalty != 0.0 || raw.frequency_penalty != 0.0);
        let again = counts || params.constraint.is_some() || words.iter().any(|word| word.len() > 1);
        // What is drawn without a seed can't be drawn again.
        let drawn = || (samples && again).then(|| rand::random::<i64>() & i64::MAX);
        Ok(Self {
            sequences: params.max_sequences(),
            max_new: params.max_total_len.saturating_sub(prompt.len()),
            min_new: parameters::min_tokens(&params, context, prompt.len())?,
            seed: params.seed.map(|seed| seed as i64).or_else(drawn).filter(|_| samples),
            log_probs: params.log_probs,
            prompt_log_probs: params.prompt_log_probs,
            constrained: params.constraint.is_some(),
            again,
            fields,
            prompt,
            adapter,
            end_tokens: params.end_tokens,
            stop_tokens: params.stop_tokens,
        })
    }

    /// Whom it is asked of: the engine's `model`, or an adapter, which is a model of its own to the engine.
    fn asked<'a>(&'a self, model: &'a str) -> &'a str {
        self.adapter.as_deref().unwrap_or(model)
    }

    /// The body that asks the engine's `model` for the tokens of a sequence which has `tokens` already. They are asked for anew where
    /// [`Self::again`] is set.
    pub(crate) fn body(&self, model: &str, sequence: usize, tokens: &[u32]) -> Value {
        let tokens = if self.again { &[] } else { tokens };
        let mut body = self.fields.clone();
        let mut set = |name: &str, value: Value| drop(body.insert(name.to_owned(), value));
        set("model", json!(self.asked(model)));
        set("prompt", self.prompt.iter().chain(tokens).copied().collect());
        set("stream", json!(true));
        set("stream_options", json!({ "include_usage": true }));
        set("return_token_ids", json!(true));
        set("return_tokens_as_token_ids", json!(true));
        set("max_tokens", json!(self.max_new.saturating_sub(tokens.len())));
        set(
            "min_tokens",
            json!(self.min_new.saturating_sub(tokens.len()).min(self.max_new.saturating_sub(tokens.len()))),
        );
        if let Some(seed) = self.seed {
            set("seed", json!(seed_of(seed, sequence, tokens.len())));
        }
        Value::Object(body)
    }

    /// The body that asks for the scores of the prompt, with one token behind it that nobody wants.
    pub(crate) fn scoring_body(&self, model: &str, likeliest: usize) -> Value {
        let model = self.asked(model);
        json!({ "model": model, "prompt": self.prompt, "max_tokens": 1, "temperature": 0, "prompt_logprobs": likeliest })
    }
}

/// The seed of a sequence, the one after another as vLLM counts them for `n`. The rest of a sequence that lost its engine gets another
/// one: with the same, it would draw by the numbers that its beginning was drawn by.
fn seed_of(seed: i64, sequence: usize, tokens: usize) -> i64 {
    let seed = seed.wrapping_add(sequence as i64);
    let seed = if tokens == 0 { seed } else { mix(seed as u64 ^ (tokens as u64).rotate_left(32)) as i64 & i64::MAX };
    // To vLLM, -1 is no seed.
    if seed == -1 { i64::MIN } else { seed }
}

/// Steele, Lea and Flood's SplitMix64: one step of it.
fn mix(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_of_sequences_follow_each_other_and_are_never_none() {
        assert_eq!([0, 1, 2].map(|sequence| seed_of(7, sequence, 0)), [7, 8, 9]);
        assert_eq!(seed_of(-2, 1, 0), i64::MIN);
        let rest = seed_of(7, 0, 5);
        assert!(rest >= 0 && rest != 7);
        assert_eq!(rest, seed_of(7, 0, 5));
        assert_ne!(rest, seed_of(7, 0, 6));
        assert_ne!(rest, seed_of(8, 0, 5));
    }

    /// The first number of the reference implementation of SplitMix64 for the seed 0.
    #[test]
    fn splitmix_is_that_of_its_authors() {
        assert_eq!(mix(0), 0xe220_a839_7b1d_cdaf);
    }
}

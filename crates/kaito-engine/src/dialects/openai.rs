//! Parameters with the semantics of OpenAI's API, and of what vLLM adds to it.

use std::{
    hash::{BuildHasher, RandomState},
    ops::RangeInclusive,
    sync::LazyLock,
};

use crate::{
    RequestContext,
    generate::{
        BeamParams, Constraint, EarlyStopping, GenerationParams, MAX_ANSWER_TOKENS, MAX_END_TOKENS, ParameterError,
        Processors, RawProcessors, Returns, Strategy, TokenMask, Warper, Warpers,
    },
};
use kaito_model::tokenizer::Special;

/// Most answers to a prompt.
pub const MAX_N: usize = 128;
/// Most likeliest tokens that are named in the place of one.
pub const MAX_LOGPROBS: usize = 20;
/// Most tokens with a bias.
pub const MAX_BIASES: usize = 1024;
/// Most bad words.
pub const MAX_BAD_WORDS: usize = 1024;
/// Most bytes of all bad words.
pub const MAX_BAD_WORD_BYTES: usize = 64 << 10;
/// Most log-probabilities that a request may ask for: for each token its own and those of the likeliest in its place.
pub const MAX_SCORES: usize = 1 << 20;

/// A temperature below that takes the likeliest tokens, as 0 does: nothing else would be drawn, and scores divided by it overflow.
const LOWEST_TEMPERATURE: f64 = 1e-5;

/// A beam search of `n` beams.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BeamOptions {
    /// Exponent of the number of new tokens by which a sum of log-probabilities is divided.
    pub length_penalty: f64,
    /// Whether the search stops as soon as there are `n` finished sequences.
    pub early_stopping: bool,
}

impl Default for BeamOptions {
    fn default() -> Self {
        Self { length_penalty: 1.0, early_stopping: false }
    }
}

/// How tokens are chosen, as far as a request says so.
///
/// What is not allowed (by the constraint, `allowed_token_ids`, `bad_words`, `min_tokens`) is ruled out first; then come the bias
/// and the penalties, on raw scores, then temperature, `top_k`, `top_p` and `min_p`.
#[derive(Debug, Clone, Default)]
pub struct SamplingOptions {
    /// Most new tokens, cut to the room that is left; all of it where it is `None`. With 0 nothing is chosen, which is of use where
    /// the prompt is scored.
    pub max_tokens: Option<usize>,
    /// Divisor of the scores, from 0 to 2; 0 takes the likeliest tokens. Where it is `None`, as for those below: what the model's
    /// `generation_config.json` says, else 1.
    pub temperature: Option<f64>,
    /// Sample among the likeliest tokens that together have this probability; else 1.
    pub top_p: Option<f64>,
    /// Sample among so many of the likeliest tokens; 0 and -1 are no limit, which is what else holds.
    pub top_k: Option<i64>,
    /// Sample among the tokens whose probability is at least this part of the likeliest one's; else 0.
    pub min_p: Option<f64>,
    /// Factor against tokens already present, in the prompt or behind it; else 1.
    pub repetition_penalty: Option<f64>,
    /// Subtracted from the score of each token that was generated, from -2 to 2.
    pub presence_penalty: f64,
    /// Subtracted from the score of a token once for each time that it was generated, from -2 to 2.
    pub frequency_penalty: f64,
    /// Added to the scores of tokens, from -100 to 100.
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of the random numbers; without one every request draws differently.
    pub seed: Option<i64>,
    /// Answers to the prompt; 0 reads as 1. Each draws from a stream of its own of the seed; without sampling all are the same.
    pub n: usize,
    /// Generate so many and return the `n` whose tokens have the highest log-probabilities on average. They come whole, not in a
    /// stream.
    pub best_of: Option<usize>,
    /// More tokens that end a sequence. One outside the vocabulary never comes.
    pub stop_token_ids: Vec<u32>,
    /// Number of new tokens below which nothing ends a sequence but a constraint that lets nothing follow.
    pub min_tokens: usize,
    /// Whether the model's end tokens end nothing.
    pub ignore_eos: bool,
    /// The only tokens that may be chosen.
    pub allowed_token_ids: Option<Vec<u32>>,
    /// Words that are not generated, each as the tokens that it has at the beginning and inside of a text.
    pub bad_words: Vec<String>,
    /// Give the log-probability of each chosen token, and those of so many (0 to 20) of the likeliest: of the model's raw scores,
    /// before anything changes them.
    pub logprobs: Option<usize>,
    /// The same for each token of the prompt but the first.
    pub prompt_logprobs: Option<usize>,
    /// Search with `n` beams.
    pub beams: Option<BeamOptions>,
    /// Share the prefix cache with requests of the same salt only, and not with those that have none.
    pub cache_salt: Option<String>,
    /// What each answer may be.
    pub constraint: Option<Box<dyn Constraint>>,
}

impl SamplingOptions {
    /// Checks the options against each other, the model and a prompt, and puts the defaults in.
    ///
    /// # Errors
    /// A value out of its range, which the error names with its parameter; a prompt that leaves no room for a token.
    pub fn resolve(mut self, context: &RequestContext, prompt: &[u32]) -> Result<GenerationParams, ParameterError> {
        let sequences = self.check_sequences(context)?;
        let warpers = self.warpers(context)?;
        let new_tokens = self.new_tokens(context, prompt.len(), sequences)?;
        let raw_processors = self.raw_processors(context)?;
        at_most("stop_token_ids", self.stop_token_ids.len(), MAX_END_TOKENS, "ids")?;
        let greedy = warpers.is_none();
        let n = self.n.max(1);
        let (strategy, returns) = match self.beams {
            Some(beams) if n > 1 => (self.beam_search(&beams, context)?, Returns::All),
            // A single beam takes the likeliest token each time.
            Some(_) => (Strategy::Greedy, Returns::All),
            _ if greedy => (Strategy::Greedy, if n > 1 { Returns::Copies(n) } else { Returns::All }),
            _ if sequences > n => (Strategy::Sample { sequences }, Returns::Best(n, self.logprobs.is_some())),
            _ => (Strategy::Sample { sequences }, Returns::All),
        };
        let to_compare = matches!(returns, Returns::Best(..)).then_some(0);
        let min_tokens_to_keep = 1;
        Ok(GenerationParams {
            strategy,
            processors: Processors::default(),
            raw_processors: Some(Box::new(raw_processors)),
            warpers: warpers.unwrap_or(Warpers { steps: Vec::new(), min_tokens_to_keep }),
            end_tokens: if self.ignore_eos { Vec::new() } else { context.end_tokens.clone() },
            stop_tokens: self.stop_token_ids,
            max_total_len: prompt.len() + new_tokens,
            seed: self.seed.map(|seed| seed as u64),
            output_scores: false,
            log_probs: self.logprobs.or(to_compare),
            prompt_log_probs: self.prompt_logprobs,
            returns,
            constraint: self.constraint,
            cache_salt: self.cache_salt.as_deref().map(hash_salt),
            adapter: None,
        })
    }

    /// How many sequences are generated.
    fn check_sequences(&self, context: &RequestContext) -> Result<usize, ParameterError> {
        let most = MAX_N.min(context.max_batch_size);
        let n = self.n.max(1);
        let best_of = self.best_of.unwrap_or(n);
        let allowed = |from: usize| {
            format!("an integer from {from} to {most}, which is as many sequences as a request may have here")
        };
        if n > most {
            return Err(ParameterError::invalid("n", n, allowed(1)));
        }
        if !(n..=most).contains(&best_of) {
            return Err(ParameterError::invalid("best_of", best_of, allowed(n)));
        }
        if self.beams.is_some() {
            let others = [
                ("best_of", best_of > n),
                ("logprobs", self.logprobs.is_some()),
                ("prompt_logprobs", self.prompt_logprobs.is_some()),
            ];
            if let Some((name, _)) = others.into_iter().find(|(_, given)| *given) {
                let sentence = format!("`{name}` can't stand beside `use_beam_search`");
                return Err(ParameterError::refused(name, sentence));
            }
            if self.constraint.is_some() {
                let sentence = "`use_beam_search` can't stand beside a structured output or tools".to_owned();
                return Err(ParameterError::refused("use_beam_search", sentence));
            }
        }
        for (name, count) in [("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)] {
            if let Some(count) = count.filter(|&count| count > MAX_LOGPROBS) {
                return Err(ParameterError::invalid(name, count, format!("an integer from 0 to {MAX_LOGPROBS}")));
            }
        }
        Ok(best_of)
    }

    /// The way from scores to the distribution that is drawn from; `None` where the likeliest token is taken.
    fn warpers(&self, context: &RequestContext) -> Result<Option<Warpers>, ParameterError> {
        let model = &context.defaults;
        let temperature = range("temperature", self.temperature, 0.0..=2.0)?.or(model.temperature).unwrap_or(1.0);
        let top_p = range("top_p", self.top_p, 0.0..=1.0)?.or(model.top_p).unwrap_or(1.0);
        if self.top_p.is_some_and(|top_p| top_p <= 0.0) {
            return Err(ParameterError::invalid("top_p", top_p, "a number greater than 0 and at most 1"));
        }
        let top_k = match self.top_k {
            Some(top_k) if top_k < -1 => {
                let allowed = "an integer of at least 1, or 0 or -1 for no limit";
                return Err(ParameterError::invalid("top_k", top_k, allowed));
            }
            Some(top_k) => usize::try_from(top_k).unwrap_or(0),
            None => model.top_k.unwrap_or(0),
        };
        let min_p = range("min_p", self.min_p, 0.0..=1.0)?.or(context.min_p).unwrap_or(0.0);
        if temperature < LOWEST_TEMPERATURE {
            return Ok(None);
        }
        let steps = [
            (temperature != 1.0).then_some(Warper::Temperature(temperature as f32)),
            (top_k > 0).then_some(Warper::TopK(top_k)),
            (top_p < 1.0).then_some(Warper::TopP(top_p)),
            (min_p > 0.0).then_some(Warper::MinP(min_p)),
        ];
        Ok(Some(Warpers { steps: steps.into_iter().flatten().collect(), min_tokens_to_keep: 1 }))
    }

    fn raw_processors(&mut self, context: &RequestContext) -> Result<RawProcessors, ParameterError> {
        let repetition = self.repetition_penalty.or(context.defaults.repetition_penalty).unwrap_or(1.0);
        if !(repetition > 0.0 && repetition <= f64::from(f32::MAX) && repetition as f32 > 0.0) {
            return Err(ParameterError::invalid("repetition_penalty", repetition, "a number greater than 0"));
        }
        let penalty = |name, value| range(name, Some(value), -2.0..=2.0).map(|value| value.unwrap_or_default() as f32);
        let presence_penalty = penalty("presence_penalty", self.presence_penalty)?;
        let frequency_penalty = penalty("frequency_penalty", self.frequency_penalty)?;
        at_most("logit_bias", self.logit_bias.len(), MAX_BIASES, "tokens")?;
        for &(token, bias) in &self.logit_bias {
            in_vocabulary("logit_bias", token, context)?;
            if !(-100.0..=100.0).contains(&bias) {
                let sentence =
                    format!("`logit_bias` adds {bias} to the token id {token}: it must be a number from -100 to 100");
                return Err(ParameterError::refused("logit_bias", sentence));
            }
        }
        let allowed = match &self.allowed_token_ids {
            None => None,
            Some(ids) if ids.is_empty() => {
                return Err(ParameterError::invalid("allowed_token_ids", "[]", "a list of at least one token id"));
            }
            Some(ids) => {
                ids.iter().try_for_each(|&id| in_vocabulary("allowed_token_ids", id, context))?;
                Some(TokenMask::of(context.vocab_size, ids))
            }
        };
        Ok(RawProcessors {
            allowed,
            bad_words: self.bad_words(context)?,
            min_new_tokens: self.min_tokens,
            ignored_end_tokens: if self.ignore_eos { context.end_tokens.clone() } else { Vec::new() },
            logit_bias: std::mem::take(&mut self.logit_bias),
            repetition_penalty: repetition as f32,
            frequency_penalty,
            presence_penalty,
        })
    }

    /// The tokens of each bad word at the beginning of a text, and behind a space where that makes another word of as many tokens:
    /// as vLLM finds them.
    fn bad_words(&self, context: &RequestContext) -> Result<Vec<Vec<u32>>, ParameterError> {
        at_most("bad_words", self.bad_words.len(), MAX_BAD_WORDS, "words")?;
        let bytes = self.bad_words.iter().map(String::len).fold(0, usize::saturating_add);
        at_most("bad_words", bytes, MAX_BAD_WORD_BYTES, "bytes in all")?;
        let encode = |text: &str| {
            let refused = |error| ParameterError::refused("bad_words", format!("`bad_words` can't be used: {error}"));
            context.tokenizer.encode(text, Special::Skip).map_err(refused)
        };
        let mut words = Vec::new();
        for word in &self.bad_words {
            let word = word.trim_start();
            let alone = encode(word)?;
            if word.is_empty() || alone.is_empty() {
                return Err(ParameterError::refused(
                    "bad_words",
                    "`bad_words` has a word without text: each must have at least one character that is no space"
                        .to_owned(),
                ));
            }
            let behind_space = encode(&format!(" {word}"))?;
            let is_other = behind_space.len() == alone.len() && behind_space.first() != alone.first();
            words.push(alone);
            words.extend(is_other.then_some(behind_space));
        }
        Ok(words)
    }

    /// How many tokens each of the sequences may grow by.
    fn new_tokens(&self, context: &RequestContext, prompt: usize, sequences: usize) -> Result<usize, ParameterError> {
        let longest = context.max_seq_len;
        let room = longest.saturating_sub(prompt);
        if prompt > longest || room == 0 && self.max_tokens != Some(0) {
            let limit_name = "this model's longest sequence";
            return Err(ParameterError::PromptTooLong { prompt, limit: longest, limit_name });
        }
        if let Some(most) = self.max_tokens.filter(|&most| self.min_tokens > most) {
            let allowed = format!("an integer of at most `max_tokens`, which is {most}");
            return Err(ParameterError::invalid("min_tokens", self.min_tokens, allowed));
        }
        if let Some(likeliest) = self.prompt_logprobs
            && prompt.saturating_mul(likeliest + 1) > MAX_SCORES
        {
            let allowed =
                format!("at most {}, for a prompt of {prompt} tokens", (MAX_SCORES / prompt.max(1)).saturating_sub(1));
            return Err(ParameterError::invalid("prompt_logprobs", likeliest, allowed));
        }
        let mut new = self.max_tokens.unwrap_or(room).min(room);
        if let Some(likeliest) = self.logprobs {
            let most = MAX_SCORES / (likeliest + 1) / sequences;
            match self.max_tokens {
                None => new = new.min(most),
                Some(asked) if new > most => {
                    let allowed = format!(
                        "at most {most}, since each of the tokens of {sequences} sequences comes with the log-probabilities \
                         of {likeliest} others"
                    );
                    return Err(ParameterError::invalid("max_tokens", asked, allowed));
                }
                Some(_) => {}
            }
        }
        if sequences > 1 && sequences.saturating_mul(prompt + new) > MAX_ANSWER_TOKENS {
            let name = if self.best_of.is_some() { "best_of" } else { "n" };
            let most = (MAX_ANSWER_TOKENS / (prompt + new).max(1)).max(1);
            let allowed = format!("at most {most}, with up to {} tokens in each sequence", prompt + new);
            return Err(ParameterError::invalid(name, sequences, allowed));
        }
        Ok(new)
    }

    fn beam_search(&self, beams: &BeamOptions, context: &RequestContext) -> Result<Strategy, ParameterError> {
        let length_penalty = range("length_penalty", Some(beams.length_penalty), -1000.0..=1000.0)?.unwrap_or(1.0);
        Ok(Strategy::Beams(BeamParams {
            num_beams: self.n,
            num_groups: 1,
            sample: false,
            length_penalty,
            early_stopping: if beams.early_stopping { EarlyStopping::Immediately } else { EarlyStopping::Heuristic },
            sequences: self.n,
            pad_token: context.tokenizer.pad_token_id().unwrap_or_default(),
        }))
    }
}

/// A number for a salt that nobody outside can foresee, and so make equal to another's.
fn hash_salt(salt: &str) -> u64 {
    static KEYS: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    KEYS.hash_one(salt)
}

/// A number in its range, if there is one.
fn range(name: &str, value: Option<f64>, range: RangeInclusive<f64>) -> Result<Option<f64>, ParameterError> {
    match value.filter(|value| !range.contains(value)) {
        None => Ok(value),
        Some(value) => {
            let allowed = format!("a number from {} to {}", range.start(), range.end());
            Err(ParameterError::invalid(name, value, allowed))
        }
    }
}

fn at_most(name: &str, count: usize, most: usize, what: &str) -> Result<(), ParameterError> {
    if count <= most {
        return Ok(());
    }
    let sentence = format!("`{name}` has {count} {what}: it must have at most {most}");
    Err(ParameterError::refused(name, sentence))
}

fn in_vocabulary(name: &str, token: u32, context: &RequestContext) -> Result<(), ParameterError> {
    if (token as usize) < context.vocab_size {
        return Ok(());
    }
    let last = context.vocab_size.saturating_sub(1);
    let sentence = format!("`{name}` has the token id {token}: this model's ids are 0 to {last}");
    Err(ParameterError::refused(name, sentence))
}

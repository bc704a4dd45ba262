//! What a request's options come to for one prompt and one model, or why they can't be.

use super::Constraint;
use super::Pooling;
use super::options::{EarlyStopping, GenerateOptions, ParameterError};
use super::processors::{ForcedEos, Processors};
use super::raw_processors::RawProcessors;
use super::warpers::{Warper, Warpers};
use crate::adapters::Adapter;

/// Most tokens of all sequences or beams of a request, their prompts included: bounds what it and its answer take.
pub const MAX_ANSWER_TOKENS: usize = 1 << 22;
/// Most new tokens whose scores are returned: each comes with those of ten others, and their texts.
pub const MAX_SCORED_TOKENS: usize = 1 << 16;

/// What `GenerationParams::resolve` must know besides the options.
#[derive(Debug, Clone, Copy)]
pub struct ResolveContext<'a> {
    /// Tokens of the prompt, prefix and special tokens included.
    pub prompt_len: usize,
    /// Tokens of the prefix alone, by which `max_length` and `min_length` grow.
    pub prefix_len: usize,
    /// Tokens that the model's output head scores.
    pub vocab_size: usize,
    /// Longest sequence that the model can hold.
    pub max_seq_len: usize,
    /// End tokens where the options name none.
    pub eos_token_ids: &'a [u32],
    /// Padding token where the options name none.
    pub pad_token_id: Option<u32>,
}

/// How tokens are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Strategy {
    /// The likeliest token.
    Greedy,
    /// Sequences drawn independently of each other.
    Sample {
        /// How many.
        sequences: usize,
    },
    /// Beam search, in all its forms.
    Beams(BeamParams),
    /// None is: the hidden states of the prompt's tokens become one vector.
    Pool(Pooling),
}

/// Parameters of a beam search.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BeamParams {
    /// Beams over all groups.
    pub num_beams: usize,
    /// Groups; divides `num_beams`.
    pub num_groups: usize,
    /// Whether candidates are drawn rather than the best taken.
    pub sample: bool,
    /// Exponent of the number of new tokens by which a sum of log-probabilities is divided.
    pub length_penalty: f64,
    /// When the search stops.
    pub early_stopping: EarlyStopping,
    /// How many of the best hypotheses are returned.
    pub sequences: usize,
    /// What a finished group's beams count as for the diversity of later groups.
    pub pad_token: u32,
}

/// What of the sequences is returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Returns {
    /// All of them.
    #[default]
    All,
    /// So many copies of the only one.
    Copies(usize),
    /// So many of them: those whose tokens have the highest log-probabilities on average, best first. Whether their scores are
    /// returned, too.
    Best(usize, bool),
}

/// Everything that decides a generation, checked and complete.
#[derive(Debug, Clone)]
pub struct GenerationParams {
    /// How tokens are chosen.
    pub strategy: Strategy,
    /// What is done to the scores first.
    pub processors: Processors,
    /// What is done to the raw scores instead of that, in another order.
    pub raw_processors: Option<Box<RawProcessors>>,
    /// How sampling narrows the distribution; unused without sampling.
    pub warpers: Warpers,
    /// Tokens that end a sequence.
    pub end_tokens: Vec<u32>,
    /// Tokens that end a sequence because the request says so, not the model.
    pub stop_tokens: Vec<u32>,
    /// Longest sequence, prompt included.
    pub max_total_len: usize,
    /// Seed of the random numbers; `None` takes one from the operating system.
    pub seed: Option<u64>,
    /// Whether to note the log-probabilities of chosen tokens.
    pub output_scores: bool,
    /// Note log-probabilities of the model's raw scores instead, and those of so many of the likeliest tokens.
    pub log_probs: Option<usize>,
    /// The same for the tokens of the prompt.
    pub prompt_log_probs: Option<usize>,
    /// What of the sequences is returned.
    pub returns: Returns,
    /// What the sequences may be, as it is before their first token; each goes on with a fork of its own.
    pub constraint: Option<Box<dyn Constraint>>,
    /// Requests share the prefix cache with those of the same salt.
    pub cache_salt: Option<u64>,
    /// The adapter that the model runs with; `None` for the model alone.
    pub adapter: Option<Adapter>,
}

impl GenerationParams {
    /// Checks the options against each other, the prompt and the model. What the options leave open is as transformers
    /// has it: [`GenerateOptions::over_model`] puts the documented defaults in.
    ///
    /// # Errors
    /// Options that contradict each other, token ids outside the vocabulary, a prompt that leaves no room.
    pub(crate) fn resolve(options: &GenerateOptions, context: &ResolveContext<'_>) -> Result<Self, ParameterError> {
        let do_sample = options.do_sample.unwrap_or(false);
        let num_beams = options.num_beams.unwrap_or(1);
        check_strategy(options, do_sample, num_beams)?;
        check_tokens(options, context.vocab_size)?;
        let max_total_len = max_total_len(options, context)?;
        check_size(options, num_beams, context.prompt_len, max_total_len.min(context.max_seq_len))?;
        let end_tokens = options.eos_token_id.clone().unwrap_or_else(|| context.eos_token_ids.to_vec());
        let sequences = options.num_return_sequences.unwrap_or(1);
        let strategy = if num_beams > 1 {
            Strategy::Beams(BeamParams {
                num_beams,
                num_groups: options.num_beam_groups.unwrap_or(1),
                sample: do_sample,
                length_penalty: options.length_penalty.unwrap_or(1.0),
                early_stopping: options.early_stopping.unwrap_or(EarlyStopping::Heuristic),
                sequences,
                pad_token: options
                    .pad_token_id
                    .or(context.pad_token_id)
                    .or(end_tokens.first().copied())
                    .unwrap_or_default(),
            })
        } else if do_sample {
            Strategy::Sample { sequences }
        } else {
            Strategy::Greedy
        };
        Ok(Self {
            strategy,
            processors: processors(options, context, &end_tokens, max_total_len)?,
            raw_processors: None,
            warpers: warpers(options, if num_beams > 1 { 1 + end_tokens.len().max(1) } else { 1 }),
            end_tokens,
            stop_tokens: Vec::new(),
            max_total_len: max_total_len.min(context.max_seq_len),
            seed: options.seed,
            output_scores: options.output_scores.unwrap_or(false),
            log_probs: None,
            prompt_log_probs: None,
            returns: Returns::All,
            constraint: None,
            cache_salt: None,
            adapter: None,
        })
    }

    /// Sampling as Meta's code does it: temperature 0 is greedy, the nucleus keeps a token whose preceding mass equals
    /// `top_p`, and there are no processors. A prompt of `max_total_len` or more tokens gets no new one.
    pub fn meta(temperature: f64, top_p: f64, max_total_len: usize, end_tokens: Vec<u32>, seed: Option<u64>) -> Self {
        let greedy = temperature <= 0.0;
        let strategy = if greedy { Strategy::Greedy } else { Strategy::Sample { sequences: 1 } };
        let steps = vec![Warper::Temperature(temperature as f32), Warper::MetaTopP(top_p)];
        let warpers = Warpers { steps, min_tokens_to_keep: 1 };
        Self { warpers, end_tokens, seed, ..Self::bare(strategy, max_total_len) }
    }

    /// No new tokens: the hidden states of a prompt of `prompt_len` tokens are pooled.
    pub fn pool(pooling: Pooling, prompt_len: usize) -> Self {
        Self::bare(Strategy::Pool(pooling), prompt_len)
    }

    /// Nothing changes the scores, and nothing but the length ends a sequence.
    fn bare(strategy: Strategy, max_total_len: usize) -> Self {
        Self {
            strategy,
            processors: Processors::default(),
            raw_processors: None,
            warpers: Warpers { steps: Vec::new(), min_tokens_to_keep: 1 },
            end_tokens: Vec::new(),
            stop_tokens: Vec::new(),
            max_total_len,
            seed: None,
            output_scores: false,
            log_probs: None,
            prompt_log_probs: None,
            returns: Returns::All,
            constraint: None,
            cache_salt: None,
            adapter: None,
        }
    }

    /// How many sequences come of it.
    pub fn returned_sequences(&self) -> usize {
        match (self.returns, self.strategy) {
            (Returns::Copies(count) | Returns::Best(count, _), _) => count,
            (Returns::All, Strategy::Greedy) => 1,
            (Returns::All, Strategy::Sample { sequences }) => sequences,
            (Returns::All, Strategy::Beams(beams)) => beams.sequences,
            (Returns::All, Strategy::Pool(_)) => 0,
        }
    }

    /// Whether chosen tokens have scores.
    pub(crate) fn scores(&self) -> bool {
        self.output_scores || self.log_probs.is_some()
    }

    /// Most sequences that run at the same time.
    pub fn max_sequences(&self) -> usize {
        match self.strategy {
            Strategy::Greedy | Strategy::Pool(_) => 1,
            Strategy::Sample { sequences } => sequences,
            Strategy::Beams(beams) => beams.num_beams,
        }
    }
}

fn check_strategy(options: &GenerateOptions, do_sample: bool, num_beams: usize) -> Result<(), ParameterError> {
    let conflict = |message: String| Err(ParameterError::Conflict(message));
    let groups = options.num_beam_groups.unwrap_or(1);
    let diversity = options.diversity_penalty.unwrap_or(0.0);
    let sequences = options.num_return_sequences.unwrap_or(1);
    if do_sample && options.temperature == Some(0.0) {
        return conflict(
            "`temperature` is 0: it must be greater than 0 when `do_sample` is true; set `do_sample` to false for the \
             likeliest tokens"
                .to_owned(),
        );
    }
    if groups > num_beams || !num_beams.is_multiple_of(groups) {
        return conflict(format!("`num_beam_groups` is {groups}: it must divide `num_beams`, which is {num_beams}"));
    }
    if groups > 1 && do_sample {
        return conflict(format!(
            "`num_beam_groups` is {groups} and `do_sample` is true: group beam search needs `do_sample` false"
        ));
    }
    if groups > 1 && diversity == 0.0 {
        return conflict(format!(
            "`diversity_penalty` is 0 and `num_beam_groups` is {groups}: it must be greater than 0, for otherwise all \
             groups are the same"
        ));
    }
    if groups == 1 && diversity > 0.0 {
        return conflict(format!(
            "`diversity_penalty` is {diversity} and `num_beam_groups` is 1: a penalty needs at least 2 groups"
        ));
    }
    if num_beams == 1 && !do_sample && sequences > 1 {
        return conflict(format!(
            "`num_return_sequences` is {sequences}: it must be 1 when `do_sample` is false and `num_beams` is 1"
        ));
    }
    if num_beams > 1 && sequences > num_beams {
        return conflict(format!(
            "`num_return_sequences` is {sequences}: it must be at most `num_beams`, which is {num_beams}"
        ));
    }
    Ok(())
}

/// Bounds what all sequences or beams together take.
fn check_size(options: &GenerateOptions, num_beams: usize, prompt: usize, total: usize) -> Result<(), ParameterError> {
    let (name, count) = match num_beams {
        1 => ("num_return_sequences", options.num_return_sequences.unwrap_or(1)),
        beams => ("num_beams", beams),
    };
    if count > 1 && count.saturating_mul(total) > MAX_ANSWER_TOKENS {
        return Err(ParameterError::Conflict(format!(
            "`{name}` is {count}: with up to {total} tokens in each of them, it must be at most {}",
            (MAX_ANSWER_TOKENS / total.max(1)).max(1)
        )));
    }
    let scored = count.saturating_mul(total.saturating_sub(prompt));
    if options.output_scores == Some(true) && scored > MAX_SCORED_TOKENS {
        return Err(ParameterError::Conflict(format!(
            "`output_scores` is true: with it, the request may ask for at most {MAX_SCORED_TOKENS} new tokens, but it asks \
             for up to {scored}"
        )));
    }
    Ok(())
}

fn check_tokens(options: &GenerateOptions, vocab_size: usize) -> Result<(), ParameterError> {
    let check = |name: &str, tokens: &[u32]| match tokens.iter().find(|&&token| token as usize >= vocab_size) {
        Some(token) => Err(ParameterError::Conflict(format!(
            "`{name}` has the token id {token}: this model's ids are 0 to {}",
            vocab_size.saturating_sub(1)
        ))),
        None => Ok(()),
    };
    let one = |token: Option<u32>| token.map(|token| vec![token]).unwrap_or_default();
    check("pad_token_id", &one(options.pad_token_id))?;
    check("forced_bos_token_id", &one(options.forced_bos_token_id))?;
    check("eos_token_id", options.eos_token_id.as_deref().unwrap_or_default())?;
    check("forced_eos_token_id", options.forced_eos_token_id.as_deref().unwrap_or_default())?;
    options.bad_words_ids.iter().flatten().try_for_each(|word| check("bad_words_ids", word))
}

/// The longest sequence that the options allow; not yet cut to what the model can hold.
fn max_total_len(options: &GenerateOptions, context: &ResolveContext<'_>) -> Result<usize, ParameterError> {
    let prompt = context.prompt_len;
    let max_length = options.max_length.unwrap_or(20).saturating_add(context.prefix_len);
    let max_total = options.max_new_tokens.map_or(max_length, |new| prompt.saturating_add(new));
    let too_long =
        |limit, limit_name| (prompt >= limit).then_some(ParameterError::PromptTooLong { prompt, limit, limit_name });
    let limits = [(context.max_seq_len, "this model's longest sequence"), (max_total, "`max_length`")];
    if let Some(error) = limits.into_iter().find_map(|(limit, name)| too_long(limit, name)) {
        return Err(error);
    }
    Ok(max_total)
}

fn min_length(options: &GenerateOptions, context: &ResolveContext<'_>) -> usize {
    let min_length = options.min_length.unwrap_or(0).saturating_add(context.prefix_len);
    options.min_new_tokens.map_or(min_length, |new| context.prompt_len.saturating_add(new))
}

fn processors(
    options: &GenerateOptions,
    context: &ResolveContext<'_>,
    end_tokens: &[u32],
    max_total_len: usize,
) -> Result<Processors, ParameterError> {
    // A ban of an end token alone is dropped: the sequence could not end.
    let is_end = |word: &[u32]| matches!(word, [token] if end_tokens.contains(token));
    let bad_words = options.bad_words_ids.iter().flatten().filter(|word| !is_end(word)).cloned().collect();
    Ok(Processors {
        diversity_penalty: options.diversity_penalty.filter(|&penalty| penalty > 0.0).map(|penalty| penalty as f32),
        repetition_penalty: options.repetition_penalty.filter(|&penalty| penalty != 1.0).map(|penalty| penalty as f32),
        no_repeat_ngram_size: options.no_repeat_ngram_size.filter(|&size| size > 0),
        encoder_no_repeat_ngram_size: options.encoder_no_repeat_ngram_size.filter(|&size| size > 0),
        bad_words,
        min_length: min_length(options, context),
        end_tokens: end_tokens.to_vec(),
        forced_bos: options.forced_bos_token_id,
        forced_eos: options.forced_eos_token_id.as_ref().map(|tokens| ForcedEos {
            length: max_total_len.min(context.max_seq_len).saturating_sub(1),
            tokens: tokens.clone(),
        }),
        remove_invalid: options.remove_invalid_values.unwrap_or(false),
    })
}

fn warpers(options: &GenerateOptions, min_tokens_to_keep: usize) -> Warpers {
    let below_1 = |probability: Option<f64>| probability.filter(|&p| p < 1.0);
    let steps = [
        options.temperature.filter(|&t| t != 1.0).map(|t| Warper::Temperature(t as f32)),
        options.top_k.filter(|&k| k > 0).map(Warper::TopK),
        below_1(options.top_p).map(Warper::TopP),
        below_1(options.typical_p).map(Warper::TypicalP),
    ];
    Warpers { steps: steps.into_iter().flatten().collect(), min_tokens_to_keep }
}

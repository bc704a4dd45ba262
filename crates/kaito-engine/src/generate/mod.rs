//! Generation as a state machine: scores (logits) go in, chosen tokens come out. No model, no I/O.
//!
//! A sequence's scores pass through the request's logits processors, then its constraint, then for sampling the warpers,
//! before a token is chosen: the likeliest one, one drawn at random, or those of a beam search.
//!
//! The semantics are those of transformers 4.46.3 (`GenerationMixin.generate`), of Meta's Llama 2 code, and, for the processors of
//! raw scores, of OpenAI's API and vLLM.

mod beam;
mod constraint;
#[cfg(test)]
pub(crate) mod example_constraints;
mod hypotheses;
mod independent;
mod numeric;
mod options;
mod params;
mod pool;
mod processors;
mod raw_processors;
mod sampler;
#[cfg(test)]
mod tests;
mod warpers;

use crate::adapters::Adapter;
use std::ops::Range;

use beam::BeamSearch;
pub use constraint::{AskAhead, Constraint, ConstraintSource, TokenMask};
use independent::Independent;
pub use options::{EarlyStopping, GenerateOptions, MAX_END_TOKENS, PARAMETER_NAMES, ParameterError};
#[cfg(any(test, feature = "testing"))]
pub use options::{MAX_BAD_WORD_IDS, MAX_SEQUENCES};
pub use params::{BeamParams, GenerationParams, MAX_ANSWER_TOKENS, ResolveContext, Returns, Strategy};
use pool::Pool;
pub use pool::Pooling;
pub use processors::{ForcedEos, Processors};
pub use raw_processors::RawProcessors;
pub use warpers::{Warper, Warpers};

/// How many of the likeliest tokens a [`TokenScore`] names.
pub const TOP_SCORES: usize = 10;

/// Why a generation can't go on. It concerns this generation alone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GenerateError {
    /// The model's scores can't be chosen from.
    #[error(
        "the model's scores for the token at position {position} are not finite numbers; `remove_invalid_values` would \
         replace them"
    )]
    InvalidScores {
        /// Index of the token that was to be chosen.
        position: usize,
    },
    /// The model's scores, or what the parameters make of them, can't be chosen from.
    #[error(
        "the scores of the token at position {position}, as the parameters of the request change them, are not finite numbers"
    )]
    UnusableScores {
        /// Index of the token that was to be chosen.
        position: usize,
    },
    /// The parameters, or the constraint, rule out every token.
    #[error("the parameters of the request rule out every token at position {position}")]
    NothingAllowed {
        /// Index of the token that was to be chosen.
        position: usize,
    },
    /// The request's constraint does not let a token follow that its own mask allowed.
    #[error("the constraint of the request refused the token at position {position}, which it had allowed")]
    ConstraintBroken {
        /// Index of the token.
        position: usize,
    },
    /// The request's constraint can't be followed any further.
    #[error("the constraint of the request can't be followed beyond position {position}: {reason}")]
    ConstraintFailed {
        /// Index of the token that was to be chosen.
        position: usize,
        /// Why.
        reason: String,
    },
    /// The model's hidden states can't be pooled.
    #[error("the model's hidden state of the token at position {position} is not made of finite numbers")]
    InvalidStates {
        /// Index of the token.
        position: usize,
    },
    /// The caller passed another number of rows of scores than there are live sequences.
    #[error("{got} rows of numbers were passed where there must be {expected}")]
    WrongRows {
        /// Rows that there must be: one of scores for each live sequence, one of hidden states for each that is pooled.
        expected: usize,
        /// Rows passed.
        got: usize,
    },
}

/// A chosen token with its log-probability and the likeliest tokens in its place.
///
/// With `output_scores`, the probabilities of greedy decoding and sampling are those of the distribution that was chosen from:
/// the softmax of the processed and warped scores. For beams they are the processed scores themselves, whose sum over a sequence
/// is what its score is made of. With `log_probs` they are the softmax of the model's raw scores.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenScore {
    /// Token id.
    pub token: u32,
    /// Natural logarithm of its probability.
    pub log_prob: f32,
    /// Its place among all tokens, from 1, likeliest first and of equals that of the lower id; known of raw scores.
    pub rank: Option<usize>,
    /// The likeliest tokens and their log-probabilities, likeliest first: up to ten, none of probability zero, or as many
    /// as `log_probs` asks for.
    pub top: Vec<(u32, f32)>,
}

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// An end token was chosen.
    EndToken,
    /// The longest allowed length is reached.
    Length,
    /// It was stopped from outside, one of its stop tokens was chosen, or its constraint lets nothing follow.
    Stop,
}

/// A token that was chosen for a sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct Chosen {
    /// Index of the sequence among the request's.
    pub sequence: usize,
    /// Token id.
    pub token: u32,
    /// Its score, with `output_scores` or `log_probs`.
    pub score: Option<TokenScore>,
}

/// Memory for choosing a token, used again at every step.
#[derive(Debug, Clone, Default)]
pub struct Scratch {
    /// The tokens that can be drawn, and their scores.
    candidates: Vec<numeric::Candidate>,
    best: Vec<numeric::Candidate>,
    /// A bit for each token.
    seen: Vec<u64>,
    /// How often each token occurs.
    counts: Vec<u32>,
    /// The model's scores, where their log-probabilities are asked for.
    raw: Vec<f32>,
    /// For each beginning of an n-gram, the length of its longest proper end that is a beginning, too.
    borders: Vec<usize>,
    /// What a constraint allows; empty where there is none.
    asked: constraint::Asked,
}

/// What became known of a prompt while it was computed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PromptNumbers {
    /// Scores of its tokens, from the second one on, where they were asked for.
    pub scores: Vec<TokenScore>,
    /// What its hidden states were pooled to, where that was asked for.
    pub pooled: Option<Vec<f32>>,
}

/// What a step did.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Advance {
    /// For each sequence that is live now, the place among the live ones before of the sequence that it extends; its new
    /// token is the last of [`Generation::tokens`].
    pub parents: Vec<usize>,
    /// The tokens chosen, end tokens included, in the order of the sequences. Empty for beams, whose tokens are not
    /// settled before the end.
    pub chosen: Vec<Chosen>,
    /// What became known of the prompt, in the step that completed it.
    pub prompt: Option<PromptNumbers>,
    /// Whether no live sequence is left and the generation is back at its prompt, for sequences that have not run yet.
    pub restarted: bool,
    /// Whether this was the last step.
    pub finished: bool,
}

/// What becomes of the live sequences when one of the request's is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// They stay as they are.
    None,
    /// The one at this place among them is gone, and later ones move up.
    Live(usize),
    /// All are gone, and the generation is back at its prompt, for sequences that have not run yet.
    All,
}

/// A finished sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct SequenceOutput {
    /// Prompt and new tokens, the end token included, no padding.
    pub tokens: Vec<u32>,
    /// For beams, the sum of log-probabilities divided by a power of the number of new tokens.
    pub score: Option<f32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// One entry for each new token, with `output_scores` or `log_probs`.
    pub scores: Option<Vec<TokenScore>>,
}

/// One request: greedy decoding, sampling of one or more sequences, a beam search, or a prompt whose hidden states are pooled.
#[derive(Debug, Clone)]
pub struct Generation {
    search: Search,
    max_sequences: usize,
    max_total_len: usize,
    cache_salt: Option<u64>,
    /// Held as long as anything is computed with it.
    adapter: Option<Adapter>,
}

#[derive(Debug, Clone)]
enum Search {
    Independent(Box<Independent>),
    Beams(Box<BeamSearch>),
    Pool(Box<Pool>),
}

impl Generation {
    /// A generation that continues `prompt`.
    #[cfg(test)]
    pub fn new(prompt: Vec<u32>, params: GenerationParams) -> Self {
        Self::within(prompt, params, usize::MAX)
    }

    /// A generation that continues `prompt` in at most `sequences` live sequences: those beyond that wait for their turn. Beams need
    /// all of theirs. One whose prompt is as long as the longest allowed sequence is finished at once, or when its prompt is scored.
    pub fn within(prompt: Vec<u32>, params: GenerationParams, sequences: usize) -> Self {
        let max_total_len = params.max_total_len.max(prompt.len());
        let (cache_salt, adapter) = (params.cache_salt, params.adapter.clone());
        match params.strategy {
            Strategy::Greedy | Strategy::Sample { .. } => {
                let max_sequences = params.max_sequences().min(sequences.max(1));
                let search = Independent::new(prompt, params, max_sequences);
                Self {
                    search: Search::Independent(Box::new(search)),
                    max_sequences,
                    max_total_len,
                    cache_salt,
                    adapter,
                }
            }
            Strategy::Beams(beams) => {
                let search = Box::new(BeamSearch::new(prompt, params, beams));
                Self {
                    search: Search::Beams(search),
                    max_sequences: beams.num_beams,
                    max_total_len,
                    cache_salt,
                    adapter,
                }
            }
            Strategy::Pool(pooling) => {
                let search = Search::Pool(Box::new(Pool::new(prompt, pooling)));
                Self { search, max_sequences: 1, max_total_len, cache_salt, adapter }
            }
        }
    }

    /// What keeps its keys and values apart from those of other requests.
    pub fn cache_salt(&self) -> Option<u64> {
        self.cache_salt
    }

    /// The number of the adapter that the model runs with.
    pub fn adapter(&self) -> Option<u32> {
        self.adapter.as_ref().map(Adapter::id)
    }

    /// Live sequences: those whose next scores are needed. At first a single one, the prompt, however many samples or beams
    /// will come of it.
    pub fn live_sequences(&self) -> usize {
        match &self.search {
            Search::Independent(search) => search.live_sequences(),
            Search::Beams(search) => search.live_sequences(),
            Search::Pool(pool) => usize::from(!pool.wanted().is_empty()),
        }
    }

    /// All tokens of the sequence at a place among the live ones, prompt included; none where there is no such place.
    pub fn tokens(&self, live: usize) -> &[u32] {
        match &self.search {
            Search::Independent(search) => search.tokens(live),
            Search::Beams(search) => search.tokens(live),
            Search::Pool(pool) => {
                if live == 0 {
                    pool.prompt()
                } else {
                    &[]
                }
            }
        }
    }

    /// Most sequences that can be live at once.
    pub fn max_sequences(&self) -> usize {
        self.max_sequences
    }

    /// Longest that a sequence can become, prompt included.
    pub fn max_total_len(&self) -> usize {
        self.max_total_len
    }

    /// Whether there is nothing left to do.
    pub fn is_finished(&self) -> bool {
        self.live_sequences() == 0
    }

    /// Makes room for the longest that the sequences can become, so that they grow without asking for memory. Beams are
    /// copied at every step and ask anyway.
    pub fn reserve(&mut self) {
        if let Search::Independent(search) = &mut self.search {
            search.reserve();
        }
    }

    /// Chooses the next token of every live sequence. `scores` holds a row of vocabulary size for each: the model's raw
    /// scores (logits) for what follows its last token. They may be overwritten. The chosen tokens are added to those in
    /// `advance`; the rest of it is replaced.
    ///
    /// # Errors
    /// Scores that can't be chosen from. The generation is of no further use then.
    pub fn advance(&mut self, scores: &mut [&mut [f32]], advance: &mut Advance) -> Result<(), GenerateError> {
        let (expected, got) = (self.live_sequences(), scores.len());
        if expected != got {
            return Err(GenerateError::WrongRows { expected, got });
        }
        match &mut self.search {
            Search::Independent(search) => search.advance(scores, advance),
            Search::Beams(search) => search.advance(scores).map(|done| *advance = done),
            // Nothing is chosen.
            Search::Pool(_) => Err(GenerateError::WrongRows { expected: 0, got }),
        }
    }

    /// The live sequences that have a constraint each, where there are several of them: their constraints can be asked before
    /// [`Self::advance`], several at once.
    pub fn ask_ahead(&mut self) -> impl Iterator<Item = AskAhead<'_>> {
        let search = match &mut self.search {
            Search::Independent(search) => Some(search.ask_ahead()),
            Search::Beams(_) | Search::Pool(_) => None,
        };
        search.into_iter().flatten()
    }

    /// The prompt's tokens whose followers have no score yet; `None` where none is missing or asked for. Nothing is chosen before
    /// that.
    pub fn unscored(&self) -> Option<Range<usize>> {
        match &self.search {
            Search::Independent(search) => search.unscored(),
            Search::Beams(_) | Search::Pool(_) => None,
        }
    }

    /// Notes the scores of the prompt's next tokens. `rows` are the model's raw scores for what follows the first tokens of
    /// [`Self::unscored`].
    ///
    /// # Errors
    /// Scores that have no probabilities. The generation is of no further use then.
    pub fn score_prompt(&mut self, rows: &[&mut [f32]]) -> Result<(), GenerateError> {
        match &mut self.search {
            Search::Independent(search) => search.score_prompt(rows),
            Search::Beams(_) | Search::Pool(_) => Ok(()),
        }
    }

    /// The prompt's tokens whose hidden states are still to be pooled; `None` where none is pooled. Then nothing is chosen.
    pub fn unpooled(&self) -> Option<Range<usize>> {
        match &self.search {
            Search::Pool(pool) => Some(pool.wanted()),
            Search::Independent(_) | Search::Beams(_) => None,
        }
    }

    /// Pools the hidden states of the prompt's next tokens: those of the first tokens of [`Self::unpooled`].
    ///
    /// # Errors
    /// States that are no finite numbers. The generation is of no further use then.
    pub fn pool<'a>(&mut self, states: impl Iterator<Item = &'a [f32]>) -> Result<(), GenerateError> {
        match &mut self.search {
            Search::Pool(pool) => pool.add(states),
            Search::Independent(_) | Search::Beams(_) => Ok(()),
        }
    }

    /// Takes what became known of the prompt, once that is complete; `None` before, afterwards, and where nothing was asked for.
    pub fn take_prompt_numbers(&mut self) -> Option<PromptNumbers> {
        match &mut self.search {
            Search::Independent(search) => {
                let scores = search.take_prompt_scores()?;
                Some(PromptNumbers { scores, pooled: None })
            }
            Search::Pool(pool) => {
                let pooled = Some(pool.take()?);
                Some(PromptNumbers { scores: Vec::new(), pooled })
            }
            Search::Beams(_) => None,
        }
    }

    /// Adds to `draft` what the constraint of the only live sequence expects to come next.
    pub fn forced(&mut self, draft: &mut Vec<u32>) {
        match &mut self.search {
            Search::Independent(search) => search.forced(draft),
            Search::Beams(_) | Search::Pool(_) => {}
        }
    }

    /// How many tokens of a draft, from its first one on, the constraint of the only live sequence lets follow: all where
    /// there is no constraint.
    pub fn allowed(&mut self, draft: &[u32]) -> usize {
        match &mut self.search {
            Search::Independent(search) => search.allowed(draft),
            // Nothing is proposed for beams, which change places at every token, and nothing follows what is pooled.
            Search::Beams(_) | Search::Pool(_) => 0,
        }
    }

    /// Ends one sequence of the request where it is, for a stop string say. Beams can't be stopped.
    pub fn stop_sequence(&mut self, sequence: usize) -> Stopped {
        match &mut self.search {
            Search::Independent(search) => search.stop(sequence),
            Search::Beams(_) | Search::Pool(_) => Stopped::None,
        }
    }

    /// The sequences as they are, best first for beams: final when [`Self::is_finished`].
    pub fn outputs(&self) -> Vec<SequenceOutput> {
        match &self.search {
            Search::Independent(search) => search.outputs(),
            Search::Beams(search) => search.outputs(),
            Search::Pool(_) => Vec::new(),
        }
    }
}

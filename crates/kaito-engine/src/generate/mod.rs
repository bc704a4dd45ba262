//! Generation as a state machine: scores (logits) go in, chosen tokens come out. No model, no I/O.
//!
//! A sequence's scores pass through the request's logits processors, then its constraint, then for sampling the warpers,
//! before a token is chosen: the likeliest one, one drawn at random, or those of a beam search.
//!
//! The semantics are those of transformers 4.46.3 (`GenerationMixin.generate`) and of Meta's Llama 2 code.

mod beam;
mod constraint;
#[cfg(test)]
pub(crate) mod example_constraints;
mod hypotheses;
mod independent;
mod numeric;
mod options;
mod params;
mod processors;
mod sampler;
#[cfg(test)]
mod tests;
mod warpers;

use beam::BeamSearch;
pub use constraint::{Constraint, TokenMask};
use independent::Independent;
pub use options::{
    EarlyStopping, GenerateOptions, MAX_BAD_WORD_IDS, MAX_BEAMS, MAX_END_TOKENS, MAX_SEQUENCES, PARAMETER_NAMES,
    ParameterError,
};
pub use params::{BeamParams, GenerationParams, MAX_ANSWER_TOKENS, MAX_SCORED_TOKENS, ResolveContext, Strategy};
pub use processors::{ForcedEos, Processors};
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
    /// The caller passed another number of rows of scores than there are live sequences.
    #[error("{got} rows of scores were passed for {expected} live sequences")]
    WrongRows {
        /// Live sequences.
        expected: usize,
        /// Rows passed.
        got: usize,
    },
}

/// A chosen token with its log-probability and the likeliest tokens in its place.
///
/// For greedy decoding and sampling the probabilities are those of the distribution that was chosen from: the softmax
/// of the processed and warped scores. For beams they are the processed scores themselves, whose sum over a sequence
/// is what its score is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenScore {
    /// Token id.
    pub token: u32,
    /// Natural logarithm of its probability.
    pub log_prob: f32,
    /// Up to [`TOP_SCORES`] tokens and their log-probabilities, likeliest first; none of probability zero.
    pub top: Vec<(u32, f32)>,
}

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// An end token was chosen.
    EndToken,
    /// The longest allowed length is reached.
    Length,
    /// It was stopped from outside, or its constraint lets nothing follow.
    Stop,
}

/// A token that was chosen for a sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct Chosen {
    /// Index of the sequence among the request's.
    pub sequence: usize,
    /// Token id.
    pub token: u32,
    /// Its score, with `output_scores`.
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
    /// For each beginning of an n-gram, the length of its longest proper end that is a beginning, too.
    borders: Vec<usize>,
    /// What a constraint allows; empty where there is none.
    mask: TokenMask,
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
    /// One entry for each new token, with `output_scores`.
    pub scores: Option<Vec<TokenScore>>,
}

/// One request: greedy decoding, sampling of one or more sequences, or a beam search.
#[derive(Debug, Clone)]
pub struct Generation {
    search: Search,
    max_sequences: usize,
    max_total_len: usize,
}

#[derive(Debug, Clone)]
enum Search {
    Independent(Box<Independent>),
    Beams(Box<BeamSearch>),
}

impl Generation {
    /// A generation that continues `prompt`. One that is as long as the longest allowed sequence is finished at once.
    pub fn new(prompt: Vec<u32>, params: GenerationParams) -> Self {
        Self::within(prompt, params, usize::MAX)
    }

    /// The same with at most `sequences` live sequences: those beyond that wait for their turn. Beams need all of theirs.
    pub fn within(prompt: Vec<u32>, params: GenerationParams, sequences: usize) -> Self {
        let max_total_len = params.max_total_len.max(prompt.len());
        match params.strategy {
            Strategy::Greedy | Strategy::Sample { .. } => {
                let max_sequences = params.max_sequences().min(sequences.max(1));
                let search = Independent::new(prompt, params, max_sequences);
                Self { search: Search::Independent(Box::new(search)), max_sequences, max_total_len }
            }
            Strategy::Beams(beams) => {
                let search = Box::new(BeamSearch::new(prompt, params, beams));
                Self { search: Search::Beams(search), max_sequences: beams.num_beams, max_total_len }
            }
        }
    }

    /// Live sequences: those whose next scores are needed. At first a single one, the prompt, however many samples or beams
    /// will come of it.
    pub fn live_sequences(&self) -> usize {
        match &self.search {
            Search::Independent(search) => search.live_sequences(),
            Search::Beams(search) => search.live_sequences(),
        }
    }

    /// All tokens of the sequence at a place among the live ones, prompt included; none where there is no such place.
    pub fn tokens(&self, live: usize) -> &[u32] {
        match &self.search {
            Search::Independent(search) => search.tokens(live),
            Search::Beams(search) => search.tokens(live),
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
        }
    }

    /// How many tokens of a draft, from its first one on, the constraint of the only live sequence lets follow: all where
    /// there is no constraint.
    pub fn allowed(&mut self, draft: &[u32]) -> usize {
        match &mut self.search {
            Search::Independent(search) => search.allowed(draft),
            // Nothing is proposed for beams, which change places at every token.
            Search::Beams(_) => 0,
        }
    }

    /// Ends one sequence of the request where it is, for a stop string say. Beams can't be stopped.
    pub fn stop_sequence(&mut self, sequence: usize) -> Stopped {
        match &mut self.search {
            Search::Independent(search) => search.stop(sequence),
            Search::Beams(_) => Stopped::None,
        }
    }

    /// The sequences as they are, best first for beams: final when [`Self::is_finished`].
    pub fn outputs(&self) -> Vec<SequenceOutput> {
        match &self.search {
            Search::Independent(search) => search.outputs(),
            Search::Beams(search) => search.outputs(),
        }
    }
}

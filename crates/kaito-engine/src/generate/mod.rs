//! Generation as a state machine: scores go in, chosen tokens come out. No model, no I/O.
//!
//! The semantics are those of transformers 4.46.3 (`GenerationMixin.generate`) and of Meta's Llama 2 code.

mod beam;
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
    /// The parameters rule out every token.
    #[error("the parameters of the request rule out every token at position {position}")]
    NothingAllowed {
        /// Index of the token that was to be chosen.
        position: usize,
    },
    /// The caller passed another number of rows than there are.
    #[error("{got} rows of scores were passed for {expected} live sequences")]
    WrongRows {
        /// Live rows.
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
    /// It was stopped from outside.
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
}

/// What a step did.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Advance {
    /// For each row that is live now, the index of the row it extends; its new token is the last of
    /// [`Generation::tokens`].
    pub parents: Vec<usize>,
    /// The tokens chosen, end tokens included, in the order of the sequences. Empty for beams, whose tokens are not
    /// settled before the end.
    pub chosen: Vec<Chosen>,
    /// Whether all rows are gone and the generation is back at its prompt, for sequences that have not run yet.
    pub restarted: bool,
    /// Whether this was the last step.
    pub finished: bool,
}

/// What becomes of the rows when a sequence is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// They stay as they are.
    NoRow,
    /// This one is gone, and later ones move up.
    Row(usize),
    /// All are gone, and the generation is back at its prompt, for sequences that have not run yet.
    AllRows,
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
    max_rows: usize,
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

    /// The same in at most `rows` rows at a time: sequences beyond those wait for their turn. Beams need all their rows.
    pub fn within(prompt: Vec<u32>, params: GenerationParams, rows: usize) -> Self {
        let max_total_len = params.max_total_len.max(prompt.len());
        match params.strategy {
            Strategy::Greedy | Strategy::Sample { .. } => {
                let max_rows = params.max_rows().min(rows.max(1));
                let search = Independent::new(prompt, params, max_rows);
                Self { search: Search::Independent(Box::new(search)), max_rows, max_total_len }
            }
            Strategy::Beams(beams) => {
                let search = Box::new(BeamSearch::new(prompt, params, beams));
                Self { search: Search::Beams(search), max_rows: beams.num_beams, max_total_len }
            }
        }
    }

    /// Live rows: sequences whose next scores are needed. At first a single one, the prompt, however many sequences
    /// or beams will come of it.
    pub fn rows(&self) -> usize {
        match &self.search {
            Search::Independent(search) => search.rows(),
            Search::Beams(search) => search.rows(),
        }
    }

    /// All tokens of a live row, prompt included; none for a row that does not exist.
    pub fn tokens(&self, row: usize) -> &[u32] {
        match &self.search {
            Search::Independent(search) => search.tokens(row),
            Search::Beams(search) => search.tokens(row),
        }
    }

    /// Most rows that can be live at once.
    pub fn max_rows(&self) -> usize {
        self.max_rows
    }

    /// Longest that a sequence can become, prompt included.
    pub fn max_total_len(&self) -> usize {
        self.max_total_len
    }

    /// Whether there is nothing left to do.
    pub fn is_finished(&self) -> bool {
        self.rows() == 0
    }

    /// Makes room for the longest that the sequences can become, so that they grow without asking for memory. Beams are
    /// copied at every step and ask anyway.
    pub fn reserve(&mut self) {
        if let Search::Independent(search) = &mut self.search {
            search.reserve();
        }
    }

    /// Chooses the next token of every row. `scores` holds one slice of vocabulary size for each live row: the model's
    /// raw scores (logits) for what follows the row's last token. They may be overwritten. The chosen tokens are added to
    /// those in `advance`; the rest of it is replaced.
    ///
    /// # Errors
    /// Scores that can't be chosen from. The generation is of no further use then.
    pub fn advance(&mut self, scores: &mut [&mut [f32]], advance: &mut Advance) -> Result<(), GenerateError> {
        let (expected, got) = (self.rows(), scores.len());
        if expected != got {
            return Err(GenerateError::WrongRows { expected, got });
        }
        match &mut self.search {
            Search::Independent(search) => search.advance(scores, advance),
            Search::Beams(search) => search.advance(scores).map(|done| *advance = done),
        }
    }

    /// Ends one sequence where it is, for a stop string say. Beams can't be stopped.
    pub fn stop_sequence(&mut self, sequence: usize) -> Stopped {
        match &mut self.search {
            Search::Independent(search) => search.stop(sequence),
            Search::Beams(_) => Stopped::NoRow,
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

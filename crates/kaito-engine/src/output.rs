//! What comes of a request.
//!
//! The same types go from the engine's stream to the code that writes the answer. So a new fact about a token or a sequence is a
//! field here, filled in where it becomes known and read where it is written.

use crate::generate::FinishReason;

/// What a [`Stream`](crate::Stream) carries, in this order.
#[derive(Debug, Clone, PartialEq)]
pub enum StreamEvent {
    /// The request left the queue.
    Started,
    /// New text of one sequence. A beam search has no such events: its texts come whole, with the last event.
    Delta(Delta),
    /// The last event.
    Finished(Output),
}

/// What is new of one sequence. The texts of its deltas join to its whole text.
#[derive(Debug, Clone, PartialEq)]
pub struct Delta {
    /// Index of the sequence in [`Output::sequences`].
    pub sequence: usize,
    /// Text that is final now: empty while a character or a stop string may be incomplete.
    pub text: String,
    /// The token that completed the text. Text that was held back until the end has none, nor has text that was known
    /// without the model.
    pub token: Option<Token>,
    /// Why the sequence ended, in its last delta, which has no token.
    pub finish_reason: Option<FinishReason>,
}

/// A token as it is chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// Token id.
    pub id: u32,
    /// Natural logarithm of its probability, with `output_scores`.
    pub log_prob: Option<f32>,
    /// Its bytes inside a text, perhaps a part of a character, with [`Decoding::token_bytes`](crate::Decoding::token_bytes). Also
    /// those of a token that has no text in this answer, such as an end token. `None` if the tokenizer doesn't know the token.
    pub bytes: Option<Vec<u8>>,
}

/// A whole answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Output {
    /// The sequences of all prompts: first all of the first prompt's, best first for beams, then the next prompt's.
    pub sequences: Vec<OutputSequence>,
    /// What the request took.
    pub usage: Usage,
}

/// One sequence of an answer, without its prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct OutputSequence {
    /// Its text, up to a stop string.
    pub text: String,
    /// The tokens that the text was made of, the end token included.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// For beams, the sum of log-probabilities divided by a power of the number of new tokens.
    pub beam_score: Option<f32>,
    /// With `output_scores`, an entry for each of `tokens`.
    pub scores: Option<Vec<TokenScore>>,
}

/// Numbers of tokens, over all prompts and sequences of a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompts.
    pub prompt_tokens: usize,
    /// Those of them whose keys and values were taken from the prefix cache.
    pub cached_tokens: usize,
    /// New tokens, end tokens included.
    pub generated_tokens: usize,
}

/// A chosen token, and the likeliest tokens in its place.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenScore {
    /// Token id.
    pub id: u32,
    /// Its text.
    pub text: String,
    /// Natural logarithm of its probability.
    pub log_prob: f32,
    /// Its bytes, as those of a [`Token`].
    pub bytes: Option<Vec<u8>>,
    /// Up to ten tokens, likeliest first.
    pub top: Vec<LikelyToken>,
}

/// A token that might have been chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct LikelyToken {
    /// Token id.
    pub id: u32,
    /// Its text.
    pub text: String,
    /// Natural logarithm of its probability.
    pub log_prob: f32,
    /// Its bytes, as those of a [`Token`].
    pub bytes: Option<Vec<u8>>,
}

//! What comes of a request.
//!
//! The same types go from the engine's stream to the code that writes the answer. So a new fact about a token or a sequence is a
//! field here, filled in where it becomes known and read where it is written.

use std::sync::Arc;

use crate::generate::FinishReason;

/// What a [`Stream`](crate::Stream) carries, in this order.
#[derive(Debug, Clone, PartialEq)]
pub enum StreamEvent {
    /// The request left the queue.
    Started,
    /// The tokens of a prompt have their scores, with [`Decoding::by_token`](crate::Decoding::by_token): before any text of its
    /// sequences.
    PromptScored(PromptScored),
    /// New text of one sequence. A beam search has no such events: its texts come whole, with the last event.
    Delta(Delta),
    /// The last event.
    Finished(Output),
}

/// The scores of a prompt's tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptScored {
    /// Index of the prompt in [`Output::prompts`].
    pub prompt: usize,
    /// As [`PromptOutput::scores`].
    pub scores: Arc<[Option<TokenScore>]>,
}

/// What is new of one sequence. The texts of its deltas join to its whole text.
///
/// As a rule there is a delta for each token as soon as it is chosen, with whatever text is final then. With
/// [`Decoding::by_token`](crate::Decoding::by_token), tokens wait for their texts: each comes with the text that it begins, and
/// those of a stop string that is cut off never come. A token without text (a part of a character, an end token) then comes
/// with the next one that has some, or at the end.
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
    /// What ended it, beside that.
    pub stop_reason: Option<StopReason>,
}

/// What of a request's own ended a sequence. It is none of these for the model's end tokens, a length, or a constraint that lets
/// nothing follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopReason {
    /// One of its stop strings.
    StopString(String),
    /// One of its stop tokens.
    Token(u32),
}

/// A token as it is chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// Token id.
    pub id: u32,
    /// Its text, as that of a [`TokenScore`]; empty without scores.
    pub text: String,
    /// Natural logarithm of its probability, with scores.
    pub log_prob: Option<f32>,
    /// Its bytes inside a text, perhaps a part of a character, with [`Decoding::token_bytes`](crate::Decoding::token_bytes). Also
    /// those of a token that has no text in this answer, such as an end token. `None` if the tokenizer doesn't know the token.
    pub bytes: Option<Vec<u8>>,
    /// The likeliest tokens in its place, likeliest first, with scores.
    pub top: Vec<LikelyToken>,
}

/// A whole answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Output {
    /// The sequences of all prompts: first all of the first prompt's, best first for beams, then the next prompt's.
    pub sequences: Vec<OutputSequence>,
    /// The prompts, in their order; one for each answer that was known without the model, too.
    pub prompts: Vec<PromptOutput>,
    /// What the request took.
    pub usage: Usage,
}

/// What became known of a prompt.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PromptOutput {
    /// How many tokens it has.
    pub tokens: usize,
    /// With `prompt_logprobs`, an entry for each token: the first one has no score, since nothing stands before it.
    pub scores: Option<Arc<[Option<TokenScore>]>>,
    /// For [`Prepared::pooled`](crate::Prepared::pooled), the vector that its tokens' hidden states come to.
    pub pooled: Option<Vec<f32>>,
}

/// One sequence of an answer, without its prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct OutputSequence {
    /// Its text, up to a stop string.
    pub text: String,
    /// The tokens that the text was made of, the end token included. Those of a stop string that was cut off are among them,
    /// unless tokens come with their texts ([`Decoding::by_token`](crate::Decoding::by_token)).
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// What ended it, beside that.
    pub stop_reason: Option<StopReason>,
    /// For beams, the sum of log-probabilities divided by a power of the number of new tokens.
    pub beam_score: Option<f32>,
    /// With scores, an entry for each of `tokens`.
    pub scores: Option<Vec<TokenScore>>,
}

/// Numbers of tokens, over all prompts and sequences of a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompts.
    pub prompt_tokens: usize,
    /// Those of them whose keys and values were taken from the prefix cache.
    pub cached_tokens: usize,
    /// New tokens of all sequences, end tokens and those of stop strings included, also those of sequences that were generated
    /// only to choose the best.
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
    /// Its place among all tokens, from 1, likeliest first; not known with `output_scores`.
    pub rank: Option<usize>,
    /// Its bytes, as those of a [`Token`].
    pub bytes: Option<Vec<u8>>,
    /// The likeliest tokens in its place, likeliest first: up to ten with `output_scores`, as many as were asked for otherwise.
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

//! What a sequence may be, beyond what its parameters say: a grammar, a schema, a list of answers.
//!
//! A constraint has the last word over the scores: its mask is applied behind all processors (behind penalties, bans and
//! forced tokens, and behind `remove_invalid_values`, which would make finite scores of what a mask rules out) and before
//! the warpers, so that a sampler's probabilities are those among the allowed tokens. The processors of raw scores
//! ([`super::RawProcessors`]) stand behind it: none of them makes a score finite that is not.

use std::{fmt, mem, sync::Arc};

use serde_json::Value;

use super::GenerateError;

/// Decides which tokens may follow in one sequence. It follows the sequence token by token, from behind the prompt.
///
/// A request has one as it is before the first token; each of its sequences, samples and beams alike, goes on with a fork of
/// its own. A request that is preempted or computed again keeps its tokens and so its constraints as they are; a wave of
/// sequences that starts again at the prompt begins with new forks.
///
/// End tokens are not a constraint's to judge: they are allowed where [`Self::may_end`] says so, and there only, and are
/// never passed to it. All methods are called on whatever thread chooses the request's tokens, one at a time; one that
/// panics makes its own request fail.
pub trait Constraint: fmt::Debug + Send + Sync {
    /// Allows the tokens that may come next. `allowed` comes with none allowed.
    fn mask(&mut self, allowed: &mut TokenMask);

    /// Goes on by a token. `false` where it may not come next; then nothing has changed.
    fn accept(&mut self, token: u32) -> bool;

    /// Takes back the last `tokens` tokens that were accepted. Called for drafts alone, whose tokens are accepted to see
    /// whether they are worth computing: for at most as many as were accepted since the last one that was chosen.
    fn rollback(&mut self, tokens: usize);

    /// A constraint in the same state, for a sequence that goes on by itself.
    fn fork(&self) -> Box<dyn Constraint>;

    /// Whether the sequence may end here.
    fn may_end(&self) -> bool;

    /// Whether nothing may follow: the sequence ends here, without an end token.
    fn is_finished(&self) -> bool {
        false
    }

    /// Adds the tokens that are expected to come next because little else may: they are proposed as a draft, so that one step
    /// computes several. They are a guess like any draft, and are checked like one; `out` comes empty, and what of it is
    /// proposed is cut to what a step has room for. Must leave the constraint as it was.
    fn forced(&mut self, out: &mut Vec<u32>) {
        let _ = out;
    }

    /// What it was made of, for an engine elsewhere that makes a constraint of its own; `None` where it can't be said.
    fn source(&self) -> Option<Arc<ConstraintSource>> {
        None
    }

    /// Why the sequence can't be followed any further, such as a limit on the work for one token. It ends its request, with this
    /// reason.
    fn fault(&self) -> Option<&str> {
        None
    }
}

/// What a sequence may be, as people write it.
#[derive(Debug, Clone, PartialEq)]
pub enum ConstraintSource {
    /// Any JSON object.
    JsonObject,
    /// JSON that a schema describes.
    JsonSchema(Value),
    /// A text that the regular expression matches whole.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A grammar in the variant of Lark's syntax that llguidance documents.
    Lark(String),
}

impl Clone for Box<dyn Constraint> {
    fn clone(&self) -> Self {
        self.fork()
    }
}

/// A bit for each token of the vocabulary: whether it may come next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenMask {
    words: Vec<u64>,
    tokens: usize,
}

impl TokenMask {
    /// A mask that allows `tokens` of a vocabulary of `vocab_size` and no others.
    pub fn of(vocab_size: usize, tokens: &[u32]) -> Self {
        let mut mask = Self::default();
        mask.reset(vocab_size);
        tokens.iter().for_each(|&token| mask.set(token, true));
        mask
    }

    /// Whether it allows nothing.
    pub fn is_empty(&self) -> bool {
        let (whole, rest) = (self.tokens / 64, self.tokens % 64);
        let last = self.words.get(whole).copied().unwrap_or(0) & !(u64::MAX << rest);
        last == 0 && self.words.iter().take(whole).all(|&word| word == 0)
    }

    /// Allows nothing of a vocabulary of `tokens` tokens.
    pub(super) fn reset(&mut self, tokens: usize) {
        self.words.clear();
        self.words.resize(tokens.div_ceil(u64::BITS as usize), 0);
        self.tokens = tokens;
    }

    /// Size of the vocabulary.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Allows or forbids a token. One outside the vocabulary is passed over.
    pub fn set(&mut self, token: u32, allowed: bool) {
        if let Some(word) = self.words.get_mut(token as usize / 64) {
            let bit = 1 << (token % 64);
            *word = if allowed { *word | bit } else { *word & !bit };
        }
    }

    /// The tokens that may come next, in their order.
    pub fn allowed(&self) -> impl Iterator<Item = u32> {
        let bit = |token: u32| self.words.get(token as usize / 64).is_some_and(|word| word >> (token % 64) & 1 == 1);
        (0..u32::try_from(self.tokens).unwrap_or(u32::MAX)).filter(move |&token| bit(token))
    }

    /// The bits, the lowest of each word for its first token: for a constraint that has whole masks at hand.
    pub fn words_mut(&mut self) -> &mut [u64] {
        &mut self.words
    }

    /// Rules out the scores of tokens that are not allowed.
    pub(super) fn apply(&self, scores: &mut [f32]) {
        for (scores, &word) in scores.chunks_mut(u64::BITS as usize).zip(&self.words) {
            for (at, score) in scores.iter_mut().enumerate() {
                if word >> at & 1 == 0 {
                    *score = f32::NEG_INFINITY;
                }
            }
        }
    }
}

/// What a constraint was asked: the tokens that it lets follow.
#[derive(Debug, Clone, Default)]
pub(super) struct Asked {
    mask: TokenMask,
    /// Whether `mask` is its answer for the next token, which nobody has looked at yet.
    ahead: bool,
}

/// A sequence whose constraint can be asked before it is the sequence's turn to choose: on any thread, beside others.
#[derive(Debug)]
pub struct AskAhead<'a> {
    pub(super) constraint: &'a mut (dyn Constraint + 'static),
    pub(super) asked: &'a mut Asked,
}

impl AskAhead<'_> {
    /// Asks, for a vocabulary of `tokens` tokens. Whatever goes wrong comes out when it is the sequence's turn.
    pub fn ask(&mut self, tokens: usize) {
        self.asked.mask.reset(tokens);
        self.constraint.mask(&mut self.asked.mask);
        self.asked.ahead = true;
    }
}

/// Rules out the scores of tokens that `constraint` does not let follow, and of end tokens where it may not end. `position` is
/// that of the token.
///
/// # Errors
/// A constraint that can't be followed any further.
pub(super) fn constrain(
    constraint: &mut (dyn Constraint + 'static),
    end_tokens: &[u32],
    position: usize,
    scores: &mut [f32],
    asked: &mut Asked,
) -> Result<(), GenerateError> {
    let mask = ask(constraint, position, scores.len(), asked)?;
    let may_end = constraint.may_end();
    end_tokens.iter().for_each(|&token| mask.set(token, may_end));
    mask.apply(scores);
    Ok(())
}

/// What `constraint` lets follow at `position`, of a vocabulary of `tokens`: its answer in `asked`, if it was asked ahead.
///
/// # Errors
/// A constraint that can't be followed any further.
pub(super) fn ask<'a>(
    constraint: &mut (dyn Constraint + 'static),
    position: usize,
    tokens: usize,
    asked: &'a mut Asked,
) -> Result<&'a mut TokenMask, GenerateError> {
    if !mem::take(&mut asked.ahead) {
        asked.mask.reset(tokens);
        constraint.mask(&mut asked.mask);
    }
    match constraint.fault() {
        Some(reason) => Err(GenerateError::ConstraintFailed { position, reason: reason.to_owned() }),
        None => Ok(&mut asked.mask),
    }
}

/// Uses what the constraint of a sequence was asked ahead, if it was, with `scratch` in exchange.
pub(super) fn take_ahead(asked: &mut Asked, scratch: &mut Asked) {
    if asked.ahead {
        mem::swap(asked, scratch);
    }
}

/// Goes on by a token that was chosen, the one at `position`, which is no end token. Returns whether nothing may follow it.
///
/// # Errors
/// A constraint that refuses what it allowed, or that can't be followed any further.
pub fn follow(
    constraint: Option<&mut (dyn Constraint + 'static)>,
    token: u32,
    position: usize,
) -> Result<bool, GenerateError> {
    let Some(constraint) = constraint else { return Ok(false) };
    if !constraint.accept(token) {
        return Err(match constraint.fault() {
            Some(reason) => GenerateError::ConstraintFailed { position, reason: reason.to_owned() },
            None => GenerateError::ConstraintBroken { position },
        });
    }
    Ok(constraint.is_finished())
}

/// How many tokens of a draft, from its first one on, `constraint` lets follow. It is afterwards as it was before.
pub fn allowed(constraint: &mut dyn Constraint, end_tokens: &[u32], draft: &[u32]) -> usize {
    let mut accepted = 0;
    let mut ended = 0;
    for token in draft {
        if end_tokens.contains(token) {
            ended = usize::from(constraint.may_end());
            break;
        }
        if constraint.is_finished() || !constraint.accept(*token) {
            break;
        }
        accepted += 1;
    }
    constraint.rollback(accepted);
    accepted + ended
}

//! What a sequence may be, beyond what its parameters say: a grammar, a schema, a list of answers.
//!
//! A constraint has the last word over the scores: its mask is applied behind all processors (behind penalties, bans and
//! forced tokens, and behind `remove_invalid_values`, which would make finite scores of what a mask rules out) and before
//! the warpers, so that a sampler's probabilities are those among the allowed tokens.

use std::fmt;

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
}

impl Clone for Box<dyn Constraint> {
    fn clone(&self) -> Self {
        self.fork()
    }
}

/// A bit for each token of the vocabulary: whether it may come next.
#[derive(Debug, Clone, Default)]
pub struct TokenMask {
    words: Vec<u64>,
    tokens: usize,
}

impl TokenMask {
    /// Allows nothing of a vocabulary of `tokens` tokens.
    fn reset(&mut self, tokens: usize) {
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

    /// The bits, the lowest of each word for its first token: for a constraint that has whole masks at hand.
    pub fn words_mut(&mut self) -> &mut [u64] {
        &mut self.words
    }

    /// Rules out the scores of tokens that are not allowed.
    fn apply(&self, scores: &mut [f32]) {
        for (scores, &word) in scores.chunks_mut(u64::BITS as usize).zip(&self.words) {
            for (at, score) in scores.iter_mut().enumerate() {
                if word >> at & 1 == 0 {
                    *score = f32::NEG_INFINITY;
                }
            }
        }
    }
}

/// Rules out the scores of tokens that `constraint` does not let follow, and of end tokens where it may not end.
pub fn constrain(constraint: &mut dyn Constraint, end_tokens: &[u32], scores: &mut [f32], mask: &mut TokenMask) {
    mask.reset(scores.len());
    constraint.mask(mask);
    let may_end = constraint.may_end();
    end_tokens.iter().for_each(|&token| mask.set(token, may_end));
    mask.apply(scores);
}

/// Goes on by a token that was chosen, the one at `position`, which is no end token. Returns whether nothing may follow it.
///
/// # Errors
/// A constraint that refuses what it allowed.
pub fn follow(
    constraint: Option<&mut (dyn Constraint + 'static)>,
    token: u32,
    position: usize,
) -> Result<bool, GenerateError> {
    let Some(constraint) = constraint else { return Ok(false) };
    if !constraint.accept(token) {
        return Err(GenerateError::ConstraintBroken { position });
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

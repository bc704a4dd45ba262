//! Logits processors with the semantics of OpenAI's and vLLM's parameters: they work on the model's raw scores, and what is not
//! allowed is ruled out first, so that nothing behind that makes it possible again.

use super::{Constraint, GenerateError, GenerationParams, Scratch, TokenMask, constraint as constraints, processors};

/// The processors of one request. They run in the order of the fields, behind its constraint.
#[derive(Debug, Clone, PartialEq)]
pub struct RawProcessors {
    /// The only tokens that may be chosen; all where it is `None`.
    pub allowed: Option<TokenMask>,
    /// Token sequences that generated tokens must not complete.
    pub bad_words: Vec<Vec<u32>>,
    /// Number of generated tokens below which no end token and no stop token is chosen.
    pub min_new_tokens: usize,
    /// End tokens of the model that don't end a sequence. A constraint, which knows no end tokens, does not allow them.
    pub ignored_end_tokens: Vec<u32>,
    /// Added to the scores of tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Divides positive scores of tokens already present, in the prompt or behind it, and multiplies others.
    pub repetition_penalty: f32,
    /// Subtracted from the score of a token once for each time that it was generated.
    pub frequency_penalty: f32,
    /// Subtracted from the score of a token that was generated.
    pub presence_penalty: f32,
}

impl Default for RawProcessors {
    /// They change nothing.
    fn default() -> Self {
        Self {
            allowed: None,
            bad_words: Vec::new(),
            min_new_tokens: 0,
            ignored_end_tokens: Vec::new(),
            logit_bias: Vec::new(),
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
        }
    }
}

impl RawProcessors {
    /// Makes of a model's scores what the next token of a sequence is chosen by, warpers aside: the sequence is `tokens` so far,
    /// of which the first `prompt_len` are the prompt. Returns whether the sequence's constraint lets nothing follow, so that the
    /// sequence ends where no end token can be chosen.
    ///
    /// # Errors
    /// Scores that can't be chosen from.
    pub(crate) fn apply(
        &self,
        params: &GenerationParams,
        tokens: &[u32],
        prompt_len: usize,
        constraint: Option<&mut (dyn Constraint + 'static)>,
        scores: &mut [f32],
        scratch: &mut Scratch,
    ) -> Result<bool, GenerateError> {
        let generated = tokens.get(prompt_len..).unwrap_or_default();
        let too_short = generated.len() < self.min_new_tokens;
        let nothing_follows = match constraint {
            Some(constraint) => {
                let mask = constraints::ask(constraint, tokens.len(), scores.len(), &mut scratch.asked)?;
                self.constrain(constraint, params, too_short, scores, mask)
            }
            None => false,
        };
        if let Some(allowed) = &self.allowed {
            allowed.apply(scores);
        }
        for word in &self.bad_words {
            ban_word(scores, generated, word);
        }
        // A minimum yields to a constraint that lets nothing follow.
        if too_short && !nothing_follows {
            params.end_tokens.iter().chain(&params.stop_tokens).for_each(|&token| processors::ban(scores, token));
        }
        for &(token, bias) in &self.logit_bias {
            if let Some(score) = scores.get_mut(token as usize) {
                *score += bias;
            }
        }
        if self.repetition_penalty != 1.0 {
            processors::penalize_repetition(scores, tokens, self.repetition_penalty, &mut scratch.seen);
        }
        if self.frequency_penalty != 0.0 || self.presence_penalty != 0.0 {
            self.penalize_occurrences(scores, generated, &mut scratch.counts);
        }
        if !processors::is_valid(scores) {
            return Err(GenerateError::UnusableScores { position: tokens.len() });
        }
        Ok(nothing_follows)
    }

    /// Rules out what `constraint`, whose answer is in `mask`, does not let follow; returns whether that is everything.
    fn constrain(
        &self,
        constraint: &dyn Constraint,
        params: &GenerationParams,
        too_short: bool,
        scores: &mut [f32],
        mask: &mut TokenMask,
    ) -> bool {
        for &token in params.end_tokens.iter().chain(&self.ignored_end_tokens) {
            mask.set(token, false);
        }
        let may_end = constraint.may_end();
        let nothing_follows = may_end && mask.is_empty();
        if may_end && (!too_short || nothing_follows) {
            params.end_tokens.iter().for_each(|&token| mask.set(token, true));
        }
        mask.apply(scores);
        nothing_follows
    }

    fn penalize_occurrences(&self, scores: &mut [f32], generated: &[u32], counts: &mut Vec<u32>) {
        // All counts are 0 before and after.
        counts.resize(scores.len(), 0);
        for &token in generated {
            if let Some(count) = counts.get_mut(token as usize) {
                *count += 1;
            }
        }
        for &token in generated {
            if let (Some(count), Some(score)) = (counts.get_mut(token as usize), scores.get_mut(token as usize))
                && *count > 0
            {
                *score -= self.frequency_penalty * std::mem::take(count) as f32;
                *score -= self.presence_penalty;
            }
        }
    }
}

fn ban_word(scores: &mut [f32], generated: &[u32], word: &[u32]) {
    if let Some((&last, start)) = word.split_last()
        && generated.ends_with(start)
    {
        processors::ban(scores, last);
    }
}

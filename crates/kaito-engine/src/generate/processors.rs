//! Logits processors: what a request's parameters do to the scores before a token is chosen, in transformers' order.

use super::Scratch;

/// The processors of one request. They run in the order of the fields.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Processors {
    /// Subtracted once for each earlier group's beam that chose the token at this step.
    pub diversity_penalty: Option<f32>,
    /// Divides positive scores of tokens already present, multiplies negative ones.
    pub repetition_penalty: Option<f32>,
    /// Size of the n-grams that must not occur twice in the sequence.
    pub no_repeat_ngram_size: Option<usize>,
    /// Size of the prompt's n-grams that must not occur again.
    pub encoder_no_repeat_ngram_size: Option<usize>,
    /// Token sequences that must not be completed; single end tokens are not among them.
    pub bad_words: Vec<Vec<u32>>,
    /// Sequence length below which end tokens are banned.
    pub min_length: usize,
    /// End tokens that `min_length` bans.
    pub end_tokens: Vec<u32>,
    /// The only token after a prompt of one.
    pub forced_bos: Option<u32>,
    /// The only tokens at the last position, and the sequence length at which they are.
    pub forced_eos: Option<ForcedEos>,
    /// Whether scores that are no numbers become 0, and infinite ones the greatest finite ones.
    pub remove_invalid: bool,
}

/// The only tokens allowed at the last position.
#[derive(Debug, Clone, PartialEq)]
pub struct ForcedEos {
    /// Sequence length before that position.
    pub length: usize,
    /// The tokens.
    pub tokens: Vec<u32>,
}

impl Processors {
    /// Changes `scores` for a sequence that is `tokens` so far, of which the first `prompt_len` are the prompt.
    ///
    /// `chosen_by_earlier_groups` are the tokens that the groups before this one chose at this step, one for each beam.
    pub fn apply(
        &self,
        scores: &mut [f32],
        tokens: &[u32],
        prompt_len: usize,
        chosen_by_earlier_groups: &[u32],
        scratch: &mut Scratch,
    ) {
        if let Some(penalty) = self.diversity_penalty {
            penalize_choices(scores, chosen_by_earlier_groups, penalty);
        }
        if let Some(penalty) = self.repetition_penalty {
            penalize_repetition(scores, tokens, penalty, &mut scratch.seen);
        }
        if let Some(size) = self.no_repeat_ngram_size {
            ban_repeated_ngrams(scores, tokens, tokens, size);
        }
        if let Some(size) = self.encoder_no_repeat_ngram_size {
            ban_repeated_ngrams(scores, tokens, &tokens[..prompt_len.min(tokens.len())], size);
        }
        for word in &self.bad_words {
            ban_word(scores, tokens, word);
        }
        if tokens.len() < self.min_length {
            for &token in &self.end_tokens {
                ban(scores, token);
            }
        }
        if let Some(token) = self.forced_bos
            && tokens.len() == 1
        {
            force(scores, &[token]);
        }
        if let Some(forced) = &self.forced_eos
            && tokens.len() == forced.length
        {
            force(scores, &forced.tokens);
        }
        if self.remove_invalid {
            remove_invalid(scores);
        }
    }
}

fn ban(scores: &mut [f32], token: u32) {
    if let Some(score) = scores.get_mut(token as usize) {
        *score = f32::NEG_INFINITY;
    }
}

fn penalize_choices(scores: &mut [f32], chosen: &[u32], penalty: f32) {
    let mut chosen = chosen.to_vec();
    chosen.sort_unstable();
    for run in chosen.chunk_by(|a, b| a == b) {
        if let Some(score) = run.first().and_then(|&token| scores.get_mut(token as usize)) {
            // One product, as the reference computes it: repeated subtraction rounds differently.
            *score -= penalty * run.len() as f32;
        }
    }
}

fn penalize_repetition(scores: &mut [f32], tokens: &[u32], penalty: f32, seen: &mut Vec<u64>) {
    seen.clear();
    seen.resize(scores.len().div_ceil(64), 0);
    for &token in tokens {
        let (word, bit) = (token as usize / 64, 1u64 << (token % 64));
        let (Some(word), Some(score)) = (seen.get_mut(word), scores.get_mut(token as usize)) else { continue };
        if *word & bit == 0 {
            *word |= bit;
            *score = if *score < 0.0 { *score * penalty } else { *score / penalty };
        }
    }
}

/// Bans each token that followed, anywhere in `history`, the `size - 1` tokens with which `tokens` ends.
fn ban_repeated_ngrams(scores: &mut [f32], tokens: &[u32], history: &[u32], size: usize) {
    let Some(ending) = (tokens.len() + 1).checked_sub(size).and_then(|start| tokens.get(start..)) else { return };
    for ngram in history.windows(size) {
        if let Some((&last, start)) = ngram.split_last()
            && start == ending
        {
            ban(scores, last);
        }
    }
}

fn ban_word(scores: &mut [f32], tokens: &[u32], word: &[u32]) {
    let Some((&last, start)) = word.split_last() else { return };
    // The reference passes over a word of several tokens that is longer than the sequence so far, even where its
    // beginning is the whole sequence.
    let completes = start.is_empty() || word.len() <= tokens.len() && tokens.ends_with(start);
    if completes && let Some(score) = scores.get_mut(last as usize) {
        // A sum, as in the reference: what is not a number stays so.
        *score += f32::NEG_INFINITY;
    }
}

fn force(scores: &mut [f32], tokens: &[u32]) {
    scores.fill(f32::NEG_INFINITY);
    for &token in tokens {
        if let Some(score) = scores.get_mut(token as usize) {
            *score = 0.0;
        }
    }
}

fn remove_invalid(scores: &mut [f32]) {
    for score in scores {
        *score = if score.is_nan() { 0.0 } else { score.clamp(f32::MIN, f32::MAX) };
    }
}

/// Whether a row can be chosen from: nothing in it that is not a number, and no positive infinity.
pub fn is_valid(scores: &[f32]) -> bool {
    // To the end in any case, which is faster than a branch at each score.
    scores.iter().fold(true, |valid, &score| valid & (score < f32::INFINITY))
}

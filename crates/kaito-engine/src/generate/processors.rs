//! Logits processors: what a request's parameters do to the scores before a token is chosen, in transformers' order, and its
//! constraint behind them.

use super::{Constraint, GenerateError, GenerationParams, Scratch, constraint::constrain};

/// N-grams longer than that are looked for in a way that takes no longer for longer ones.
const LONG_NGRAM: usize = 8;

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
    pub(crate) fn apply(
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
            ban_repeated_ngrams(scores, tokens, tokens, size, &mut scratch.borders);
        }
        if let Some(size) = self.encoder_no_repeat_ngram_size {
            let prompt = &tokens[..prompt_len.min(tokens.len())];
            ban_repeated_ngrams(scores, tokens, prompt, size, &mut scratch.borders);
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

pub(super) fn ban(scores: &mut [f32], token: u32) {
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

pub(super) fn penalize_repetition(scores: &mut [f32], tokens: &[u32], penalty: f32, seen: &mut Vec<u64>) {
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
fn ban_repeated_ngrams(scores: &mut [f32], tokens: &[u32], history: &[u32], size: usize, borders: &mut Vec<usize>) {
    let Some(ending) = (tokens.len() + 1).checked_sub(size).and_then(|start| tokens.get(start..)) else { return };
    if size > LONG_NGRAM {
        return ban_after(scores, ending, history, borders);
    }
    for ngram in history.windows(size) {
        if let Some((&last, start)) = ngram.split_last()
            && start == ending
        {
            ban(scores, last);
        }
    }
}

/// The same for an `ending` of any length: comparing it at each place would take the square of the time (Knuth, Morris and
/// Pratt, 1977).
fn ban_after(scores: &mut [f32], ending: &[u32], history: &[u32], borders: &mut Vec<usize>) {
    // How much of the ending matches still where so much of it matched and the next token does not.
    let shorten = |borders: &[usize], mut matched: usize, token: u32| {
        while ending.get(matched) != Some(&token) {
            match matched.checked_sub(1).and_then(|last| borders.get(last)) {
                Some(&border) => matched = border,
                None => return 0,
            }
        }
        matched + 1
    };
    borders.clear();
    borders.reserve(ending.len());
    let mut matched = 0;
    for (at, &token) in ending.iter().enumerate() {
        if at > 0 {
            matched = shorten(&borders[..], matched, token);
        }
        borders.push(matched);
    }
    let mut matched = 0;
    for &token in history {
        if matched == ending.len() {
            ban(scores, token);
        }
        matched = shorten(&borders[..], matched, token);
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

/// Makes of a model's scores what the next token of a sequence is chosen by, warpers aside: the sequence is `tokens` so far,
/// of which the first `prompt_len` are the prompt. `chosen_by_earlier_groups` is as for [`Processors::apply`]. Returns whether the
/// sequence's constraint lets nothing follow, so that the sequence ends where no end token can be chosen.
///
/// # Errors
/// Scores that can't be chosen from.
pub fn process(
    params: &GenerationParams,
    tokens: &[u32],
    prompt_len: usize,
    chosen_by_earlier_groups: &[u32],
    constraint: Option<&mut (dyn Constraint + 'static)>,
    scores: &mut [f32],
    scratch: &mut Scratch,
) -> Result<bool, GenerateError> {
    if let Some(raw) = &params.raw_processors {
        return raw.apply(params, tokens, prompt_len, constraint, scores, scratch);
    }
    params.processors.apply(scores, tokens, prompt_len, chosen_by_earlier_groups, scratch);
    if !is_valid(scores) {
        return Err(GenerateError::InvalidScores { position: tokens.len() });
    }
    if let Some(constraint) = constraint {
        constrain(constraint, &params.end_tokens, tokens.len(), scores, &mut scratch.asked)?;
    }
    Ok(false)
}

/// Whether a row can be chosen from: nothing in it that is not a number, and no positive infinity.
pub(super) fn is_valid(scores: &[f32]) -> bool {
    // To the end in any case, which is faster than a branch at each score.
    scores.iter().fold(true, |valid, &score| valid & (score < f32::INFINITY))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Few different tokens, so that long n-grams occur again and overlap.
        #[test]
        fn long_ngrams_are_banned_like_short_ones(
            tokens in prop::collection::vec(0..2u32, 0..80),
            runs in prop::collection::vec((0..3u32, 1..20usize), 0..6),
            prompt in 0..80usize,
            size in LONG_NGRAM + 1..30,
        ) {
            let tokens: Vec<u32> =
                tokens.into_iter().chain(runs.into_iter().flat_map(|(token, times)| vec![token; times])).collect();
            for history in [&tokens[..], &tokens[..prompt.min(tokens.len())]] {
                let mut scores = [0.0; 3];
                ban_repeated_ngrams(&mut scores, &tokens, history, size, &mut vec![7; 3]);
                let mut expected = [0.0; 3];
                for ngram in history.windows(size).filter(|ngram| tokens.ends_with(&ngram[..size - 1])) {
                    expected[ngram[size - 1] as usize] = f32::NEG_INFINITY;
                }
                prop_assert_eq!(scores, expected, "{:?}", tokens);
            }
        }
    }
}

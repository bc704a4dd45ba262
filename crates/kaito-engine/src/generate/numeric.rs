//! Arithmetic over a row of scores, one score for each token of the vocabulary.

use std::cmp::Ordering;

/// A token and its score.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// Token id.
    pub token: u32,
    /// Its score; higher is better.
    pub score: f32,
}

/// Best score first; of equal scores the lowest token first.
pub fn best_first(a: &Candidate, b: &Candidate) -> Ordering {
    b.score.total_cmp(&a.score).then(a.token.cmp(&b.token))
}

/// Index of the highest score, the lowest of several: as `torch.argmax` on a CPU. `None` for an empty row.
pub fn argmax(scores: &[f32]) -> Option<usize> {
    // Lanes that know nothing of each other are what a compiler makes vectors of.
    let mut lanes = [f32::NEG_INFINITY; 16];
    let (whole, rest) = scores.as_chunks::<16>();
    for scores in whole {
        for (highest, &score) in lanes.iter_mut().zip(scores) {
            *highest = if score > *highest { score } else { *highest };
        }
    }
    let highest = lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
    scores.iter().position(|&score| score == highest)
}

/// The `n` best candidates, best first; of equal scores the lowest token.
///
/// A buffer of a few times `n` is cut back to `n` whenever it is full, so the cost is one pass over the row and not a
/// sort of it.
pub fn top_n(candidates: impl Iterator<Item = Candidate>, n: usize) -> Vec<Candidate> {
    let mut best = Vec::new();
    top_n_into(candidates, n, &mut best);
    best
}

/// The same in memory that is there already. However large `n` is, there is memory for no more than there are candidates.
pub fn top_n_into(candidates: impl Iterator<Item = Candidate>, n: usize, best: &mut Vec<Candidate>) {
    best.clear();
    let all = candidates.size_hint().1.unwrap_or(usize::MAX);
    let n = n.min(all);
    if n == 0 {
        return;
    }
    let capacity = n.saturating_mul(4).max(64).min(all);
    best.reserve(capacity);
    let mut cut: Option<Candidate> = None;
    for candidate in candidates {
        if cut.is_some_and(|cut| best_first(&cut, &candidate).is_lt()) {
            continue;
        }
        best.push(candidate);
        if best.len() == capacity {
            best.select_nth_unstable_by(n - 1, best_first);
            best.truncate(n);
            cut = best.last().copied();
        }
    }
    if best.len() > n {
        best.select_nth_unstable_by(n - 1, best_first);
        best.truncate(n);
    }
    best.sort_unstable_by(best_first);
}

/// All tokens of a row with their scores.
pub fn enumerate(scores: &[f32]) -> impl Iterator<Item = Candidate> + Clone + '_ {
    scores.iter().enumerate().map(|(token, &score)| Candidate { token: token as u32, score })
}

/// The highest score, and the logarithm of the sum of `exp(score - highest)`: two parts, because adding them first
/// loses digits where the scores are large and their differences small.
pub fn log_sum_exp(scores: impl Iterator<Item = f32> + Clone) -> (f32, f32) {
    let max = scores.clone().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = scores.map(|score| f64::from((score - max).exp())).sum();
    (max, sum.ln() as f32)
}

/// Replaces scores by the logarithms of their softmax.
pub fn log_softmax(scores: &mut [f32]) {
    let (max, log_sum) = log_sum_exp(scores.iter().copied());
    for score in scores {
        *score = *score - max - log_sum;
    }
}

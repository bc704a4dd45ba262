//! The finished sequences of a beam search, as many of the best as there are beams.

use super::FinishReason;
use super::options::EarlyStopping;

/// A finished sequence.
#[derive(Debug, Clone)]
pub struct Hypothesis {
    /// Sum of log-probabilities divided by a power of the number of new tokens.
    pub score: f64,
    /// Prompt and new tokens, the end token included.
    pub tokens: Vec<u32>,
    /// The last entry of its trace of token scores.
    pub trace: Option<usize>,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// The best hypotheses of a group of beams.
#[derive(Debug, Clone)]
pub struct Hypotheses {
    /// In order of arrival; never more than `capacity`.
    pub kept: Vec<Hypothesis>,
    capacity: usize,
    worst: f64,
    length_penalty: f64,
    early_stopping: EarlyStopping,
    max_new_tokens: usize,
}

impl Hypotheses {
    pub fn new(capacity: usize, length_penalty: f64, early_stopping: EarlyStopping, max_new_tokens: usize) -> Self {
        Self { kept: Vec::new(), capacity, worst: 1e9, length_penalty, early_stopping, max_new_tokens }
    }

    /// The score of a sequence of `new_tokens` tokens after the prompt.
    pub fn score(&self, sum_log_probs: f32, new_tokens: usize) -> f64 {
        f64::from(sum_log_probs) / (new_tokens as f64).powf(self.length_penalty)
    }

    /// Keeps a hypothesis, unless it is worse than all of a full set.
    pub fn add(&mut self, hypothesis: Hypothesis) {
        let full = self.kept.len() >= self.capacity;
        if full && hypothesis.score <= self.worst {
            return;
        }
        let score = hypothesis.score;
        self.kept.push(hypothesis);
        if !full {
            self.worst = self.worst.min(score);
            return;
        }
        // Of equal scores the earliest goes.
        let worst = |kept: &[Hypothesis]| {
            kept.iter().enumerate().min_by(|(_, a), (_, b)| a.score.total_cmp(&b.score)).map(|(index, _)| index)
        };
        if let Some(index) = worst(&self.kept) {
            self.kept.remove(index);
        }
        self.worst = self.kept.iter().map(|kept| kept.score).fold(f64::INFINITY, f64::min);
    }

    /// Whether the search is over, when the best candidate of this step has `best_sum` and sequences have `new_tokens`
    /// new tokens with it.
    pub fn is_done(&self, best_sum: f32, new_tokens: usize) -> bool {
        if self.kept.len() < self.capacity {
            return false;
        }
        let length = match self.early_stopping {
            EarlyStopping::Immediately => return true,
            EarlyStopping::Heuristic => new_tokens,
            // A sum of log-probabilities is negative: the longest sequence has the best score, unless length is
            // punished.
            EarlyStopping::Never if self.length_penalty > 0.0 => self.max_new_tokens,
            EarlyStopping::Never => new_tokens,
        };
        self.worst >= self.score(best_sum, length)
    }
}

//! Tokens that are guessed and then verified, several in one pass over the weights.
//!
//! Texts repeat themselves: what followed the last few tokens where they stood before is proposed to follow again. The
//! model computes all proposed tokens in one step, and each next token is chosen just as it would have been alone; what
//! was proposed behind the first token that came out differently is dropped. So a guess changes neither the tokens nor
//! the random numbers they are drawn with, only how many steps they take.
//!
//! A guess costs time, too, and how much depends on the machine and on how many sequences run. Both sides are measured
//! while the engine runs, and a guess is made where it is expected to pay.

/// Most tokens proposed for one sequence.
pub const LONGEST_DRAFT: usize = 8;
/// Tokens that must have stood together before; as many as the longest are preferred.
const NGRAM: std::ops::RangeInclusive<usize> = 2..=4;

/// What followed the last tokens of `tokens` where they stood before, up to `limit` tokens. Where the text has repeated
/// itself up to its end, the repetition goes on.
pub fn propose(tokens: &[u32], limit: usize, draft: &mut Vec<u32>) {
    draft.clear();
    let (shortest, longest) = (*NGRAM.start(), *NGRAM.end());
    let mut best = (0, 0);
    for end in (shortest..tokens.len()).rev() {
        let earlier = tokens.iter().take(end).rev();
        let common = earlier.zip(tokens.iter().rev()).take(longest).take_while(|(a, b)| a == b).count();
        if common > best.0 {
            best = (common, end);
            if common == longest {
                break;
            }
        }
    }
    if best.0 < shortest {
        return;
    }
    let followed = tokens.get(best.1..).unwrap_or_default();
    draft.extend(followed.iter().cycle().take(limit));
}

/// What a step costs, by the number of its tokens: a part for reading the weights, and a part for each token.
#[derive(Debug, Default)]
pub struct StepCost {
    weight: f64,
    tokens: f64,
    seconds: f64,
    tokens_squared: f64,
    tokens_seconds: f64,
}

impl StepCost {
    /// Steps with more tokens are bound by arithmetic: they say nothing about those with few.
    const MOST_TOKENS: usize = 48;
    /// Weight of a step against the one after it.
    const MEMORY: f64 = 0.98;
    /// The part for a token against the part for the weights, until both were measured.
    const FIRST_GUESS: f64 = 1.0 / 8.0;

    /// Takes note of a step.
    pub fn observe(&mut self, tokens: usize, seconds: f64) {
        if tokens > Self::MOST_TOKENS {
            return;
        }
        let tokens = tokens as f64;
        for (sum, value) in [
            (&mut self.weight, 1.0),
            (&mut self.tokens, tokens),
            (&mut self.seconds, seconds),
            (&mut self.tokens_squared, tokens * tokens),
            (&mut self.tokens_seconds, tokens * seconds),
        ] {
            *sum = *sum * Self::MEMORY + value;
        }
    }

    /// The part for a token against the part for the weights: a line through the steps, by least squares.
    fn slope(&self) -> f64 {
        let weight = self.weight.max(1.0);
        let (mean_tokens, mean_seconds) = (self.tokens / weight, self.seconds / weight);
        let variance = self.tokens_squared / weight - mean_tokens * mean_tokens;
        if self.weight < 8.0 || variance < 0.25 || mean_seconds <= 0.0 {
            return Self::FIRST_GUESS;
        }
        let per_token = (self.tokens_seconds / weight - mean_tokens * mean_seconds) / variance;
        let fixed = mean_seconds - per_token * mean_tokens;
        if fixed <= 0.0 {
            return f64::INFINITY;
        }
        // Never free: noise must not make every guess look good.
        (per_token / fixed).max(0.01)
    }

    /// How likely a guess must be to pay in a step that computes `tokens` tokens and is expected to yield `yielded`: one
    /// more token has to bring more tokens a second than there are without it.
    pub fn break_even(&self, tokens: usize, yielded: f64) -> f64 {
        let slope = self.slope();
        if slope.is_infinite() { 1.0 } else { slope * yielded / (1.0 + slope * tokens as f64) }
    }
}

/// How well the guesses for one sequence do.
#[derive(Debug)]
pub struct Speculator {
    /// How likely a proposed token is to be right, given that those before it were.
    likelihood: f64,
    /// Proposals passed over since the last one.
    passed_over: u32,
}

impl Default for Speculator {
    fn default() -> Self {
        Self { likelihood: 0.5, passed_over: 0 }
    }
}

impl Speculator {
    /// Weight of what was learned against a token that is verified.
    const MEMORY: f64 = 0.8;
    /// A sequence whose guesses do not pay is tried again after so many.
    const PATIENCE: u32 = 16;

    /// How many tokens to propose in a step of `tokens` tokens that is expected to yield `yielded`.
    pub fn length(&mut self, cost: &StepCost, tokens: usize, yielded: f64) -> usize {
        let mut right = 1.0;
        let mut gained = 0.0;
        for length in 0..LONGEST_DRAFT {
            right *= self.likelihood;
            if right <= cost.break_even(tokens + length, yielded + gained) {
                return length;
            }
            gained += right;
        }
        LONGEST_DRAFT
    }

    /// Whether a proposal that does not pay is made all the same, to see whether that has changed.
    pub fn try_again(&mut self) -> bool {
        self.passed_over += 1;
        self.passed_over.is_multiple_of(Self::PATIENCE)
    }

    /// Takes note that `right` of `proposed` tokens came out as proposed.
    pub fn observe(&mut self, proposed: usize, right: usize) {
        let wrong = usize::from(right < proposed);
        for outcome in std::iter::repeat_n(1.0, right).chain(std::iter::repeat_n(0.0, wrong)) {
            self.likelihood = self.likelihood * Self::MEMORY + outcome * (1.0 - Self::MEMORY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proposed(tokens: &[u32], limit: usize) -> Vec<u32> {
        let mut draft = vec![99];
        propose(tokens, limit, &mut draft);
        draft
    }

    #[test]
    fn what_followed_before_is_proposed() {
        for (tokens, limit, expected) in [
            (&[][..], 4, &[][..]),
            (&[1, 2], 4, &[]),
            // One token alone says too little.
            (&[1, 2, 3, 9, 1], 4, &[]),
            (&[1, 2, 3, 4, 5, 1, 2], 3, &[3, 4, 5]),
            (&[1, 2, 3, 4, 5, 1, 2], 1, &[3]),
            (&[1, 2, 3, 4, 5, 1, 2], 0, &[]),
            // The longer match is better than the later one.
            (&[7, 1, 2, 3, 8, 1, 2, 4, 7, 1, 2], 1, &[3]),
            // The later one of two that are equally long.
            (&[1, 2, 3, 0, 1, 2, 4, 0, 1, 2], 1, &[4]),
            // A repetition goes on.
            (&[5, 1, 2, 1, 2, 1, 2], 6, &[1, 2, 1, 2, 1, 2]),
            (&[3, 3, 3], 3, &[3, 3, 3]),
        ] {
            assert_eq!(proposed(tokens, limit), expected, "{tokens:?}");
        }
    }

    fn measured(fixed: f64, per_token: f64) -> StepCost {
        let mut cost = StepCost::default();
        for tokens in [1, 9, 4, 1, 1, 6, 2, 16, 1, 3, 1000] {
            cost.observe(tokens, fixed + per_token * tokens as f64);
        }
        cost
    }

    #[test]
    fn the_cost_of_a_step_is_learned_from_steps() {
        assert!((measured(0.080, 0.004).slope() - 0.05).abs() < 1e-9);
        assert_eq!(StepCost::default().slope(), StepCost::FIRST_GUESS);
        let mut same = StepCost::default();
        (0..100).for_each(|_| same.observe(1, 0.1));
        assert_eq!(same.slope(), StepCost::FIRST_GUESS, "equal steps tell no slope");
        // One more token in a step of one that yields one: (1 + p) / (f + 2 t) > 1 / (f + t) iff p > t / (f + t).
        let break_even = measured(0.080, 0.004).break_even(1, 1.0);
        assert!((break_even - 4.0 / 84.0).abs() < 1e-9, "{break_even}");
    }

    #[test]
    fn guesses_end_where_they_do_not_pay() {
        let (cheap, dear) = (measured(0.080, 0.004), measured(0.001, 0.020));
        let mut good = Speculator::default();
        (0..10).for_each(|_| good.observe(4, 4));
        assert_eq!(good.length(&cheap, 1, 1.0), LONGEST_DRAFT);
        let mut fair = Speculator::default();
        (0..10).for_each(|_| fair.observe(4, 3));
        assert!(fair.length(&cheap, 1, 1.0) > 0);
        // Where each token costs what the others do, only a guess that is surely right loses nothing.
        assert_eq!(fair.length(&dear, 16, 16.0), 0);
        let mut bad = Speculator::default();
        (0..30).for_each(|_| bad.observe(4, 0));
        assert_eq!(bad.length(&cheap, 1, 1.0), 0);
        assert_eq!((0..32).filter(|_| bad.try_again()).count(), 2);
        bad.observe(1, 1);
        (0..3).for_each(|_| bad.observe(4, 4));
        assert!(bad.length(&cheap, 1, 1.0) > 0, "a text that begins to repeat itself is guessed again");
    }
}

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

/// Where each n-gram of a growing text stood last. A token takes constant time, to take note of it and to propose what
/// follows it, however long the text is.
///
/// A table of places: where an n-gram hashes to, or a few places behind that. Tokens are compared before a place is believed,
/// so that two n-grams with the same hash are never mistaken for each other; where there is no room near its place, an n-gram
/// is not found again, which costs a guess and nothing else.
#[derive(Debug, Default)]
pub struct NgramIndex {
    /// Each where an n-gram ends, times [`SIZES`], and its size above the least; 0 is empty. A power of two of them.
    places: Vec<u32>,
    /// Tokens that were taken note of.
    len: usize,
}

/// Sizes that a place can tell.
const SIZES: usize = 4;
/// How far from where it hashes to an n-gram is looked for.
const PROBES: usize = 16;

impl NgramIndex {
    /// Makes room for a text of `tokens` tokens: some forty bytes for each.
    pub fn reserve(&mut self, tokens: usize) {
        let ngrams = tokens * NGRAM.count();
        self.places.resize((2 * ngrams).next_power_of_two(), 0);
    }

    /// Forgets the text, for one with another end.
    pub fn clear(&mut self) {
        self.places.fill(0);
        self.len = 0;
    }

    /// What followed the last tokens of `tokens` where they stood before, up to `limit` tokens. Where the text has repeated
    /// itself up to its end, the repetition goes on. `tokens` is what it was the last time, and more.
    pub fn propose(&mut self, tokens: &[u32], limit: usize, draft: &mut Vec<u32>) {
        draft.clear();
        // The last n-grams are not taken note of before they were looked for: they would be found where they are.
        while self.len + 1 < tokens.len() {
            self.len += 1;
            NGRAM.for_each(|size| self.note(tokens, self.len, size));
        }
        let Some(end) = NGRAM.rev().find_map(|size| self.find(tokens, size)) else { return };
        let followed = tokens.get(end..).unwrap_or_default();
        draft.extend(followed.iter().cycle().take(limit));
    }

    /// Where the last `size` tokens ended when they stood together before.
    fn find(&self, tokens: &[u32], size: usize) -> Option<usize> {
        let ngram = tokens.get(tokens.len().checked_sub(size)?..)?;
        let place = self.place(tokens, ngram)?;
        ended(*self.places.get(place)?, size)
    }

    /// Takes note that `size` tokens end at `end`, unless so many do not.
    fn note(&mut self, tokens: &[u32], end: usize, size: usize) {
        let ngram = end.checked_sub(size).and_then(|start| tokens.get(start..end));
        if let Some(place) = ngram.and_then(|ngram| self.place(tokens, ngram))
            && let Some(place) = self.places.get_mut(place)
        {
            *place = (end * SIZES + size - NGRAM.start()) as u32;
        }
    }

    /// The place of an n-gram: where it is, or an empty one for it.
    fn place(&self, tokens: &[u32], ngram: &[u32]) -> Option<usize> {
        let mask = self.places.len().checked_sub(1)?;
        let is_its = |&place: &usize| {
            let at = self.places.get(place).copied().unwrap_or_default();
            at == 0
                || ended(at, ngram.len())
                    .is_some_and(|end| tokens.get(end.saturating_sub(ngram.len())..end) == Some(ngram))
        };
        let first = hash(ngram);
        (0..PROBES).map(|probe| first.wrapping_add(probe) & mask).find(is_its)
    }
}

/// Where an n-gram of `size` tokens ends by what its place says; `None` for one of another size and for none.
fn ended(place: u32, size: usize) -> Option<usize> {
    let (end, above) = (place as usize / SIZES, place as usize % SIZES);
    (end > 0 && above + NGRAM.start() == size).then_some(end)
}

fn hash(ngram: &[u32]) -> usize {
    let hash = ngram.iter().fold(ngram.len() as u64, |hash, &token| {
        (hash ^ u64::from(token)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
    });
    (hash ^ (hash >> 32)) as usize
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

    use proptest::prelude::*;

    fn index(tokens: usize) -> NgramIndex {
        let mut index = NgramIndex::default();
        index.reserve(tokens);
        index
    }

    fn proposed(tokens: &[u32], limit: usize) -> Vec<u32> {
        let mut draft = vec![99];
        index(tokens.len().max(1)).propose(tokens, limit, &mut draft);
        draft
    }

    /// What is meant, by looking at the whole text.
    fn defined(tokens: &[u32], limit: usize) -> Vec<u32> {
        let mut best = (0, 0);
        for end in (*NGRAM.start()..tokens.len()).rev() {
            let earlier = tokens[..end].iter().rev();
            let common = earlier.zip(tokens.iter().rev()).take(*NGRAM.end()).take_while(|(a, b)| a == b).count();
            if common > best.0 {
                best = (common, end);
            }
        }
        if best.0 < *NGRAM.start() {
            Vec::new()
        } else {
            tokens[best.1..].iter().cycle().take(limit).copied().collect()
        }
    }

    proptest! {
        /// However many tokens come between two proposals, and after a text was taken back.
        #[test]
        fn proposals_are_those_of_a_look_at_the_whole_text(
            texts in prop::collection::vec(prop::collection::vec((0..6u32, any::<bool>()), 1..200), 1..3),
        ) {
            let mut index = index(200);
            for text in texts {
                let mut tokens = Vec::new();
                for (token, ask) in text {
                    tokens.push(token);
                    if ask {
                        let mut draft = Vec::new();
                        index.propose(&tokens, 5, &mut draft);
                        prop_assert_eq!(draft, defined(&tokens, 5), "{:?}", &tokens);
                    }
                }
                index.clear();
            }
        }
    }

    /// An index without room, and one with too little, lose guesses and nothing else.
    #[test]
    fn an_index_that_is_full_takes_constant_time_and_proposes_what_it_knows() {
        let mut draft = Vec::new();
        NgramIndex::default().propose(&[1, 2, 3, 1, 2], 2, &mut draft);
        assert!(draft.is_empty());
        let mut small = index(2);
        let text: Vec<u32> = (0..1000u32).map(|at| at * at % 101).collect();
        for end in 1..=text.len() {
            small.propose(&text[..end], 3, &mut draft);
            let seen = |token| text[..end].windows(3).any(|w| text[..end].ends_with(&w[..2]) && w[2] == token);
            assert!(draft.first().is_none_or(|&token| seen(token)), "{end}: {draft:?}");
        }
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

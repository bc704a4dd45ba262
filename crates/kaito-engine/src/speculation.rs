//! Speculative decoding with n-gram drafts (prompt lookup decoding): several tokens of a sequence are proposed, then verified
//! in one pass over the weights.
//!
//! Texts repeat themselves: what followed the last few tokens where they stood before is proposed to follow again. That is
//! the draft. The model computes all of it in one step, and each next token is chosen just as it would have been without
//! it; what the draft has behind the first token that came out differently is dropped. So a draft changes neither the
//! tokens nor the random numbers that they are drawn with, only how many steps they take.
//!
//! Computing a draft costs time, and how much depends on the machine and on how many sequences run. Both the cost and the
//! gain are measured while the engine runs, and a draft is made as long as it is expected to pay.

/// Most tokens of a draft.
pub const LONGEST_DRAFT: usize = 8;
/// Sizes of the n-grams that are looked for; the longest that is found decides.
const NGRAM: std::ops::RangeInclusive<usize> = 2..=4;

/// Where each n-gram of a growing text stood last. A token takes constant time, to note it and to propose what follows it,
/// however long the text is.
///
/// A hash table with open addressing: an n-gram's entry lies where its hash says or a few places behind that. The tokens
/// themselves are compared before an entry is used, so that two n-grams with the same hash are never mistaken for each
/// other. Where there is no room near its place, an n-gram is not found again, which costs a draft and nothing else.
#[derive(Debug, Default)]
pub struct NgramIndex {
    /// One entry for each n-gram: the index behind its last token, times [`SIZES`], plus its size less the smallest size. 0
    /// is an empty entry. Their number is a power of two.
    entries: Vec<u32>,
    /// Tokens that were noted.
    len: usize,
}

/// Sizes that an entry can tell apart.
const SIZES: usize = 4;
/// How many entries from the one that its hash names on an n-gram is looked for in.
const PROBES: usize = 16;

impl NgramIndex {
    /// Makes room for a text of `tokens` tokens: some forty bytes for each.
    pub fn reserve(&mut self, tokens: usize) {
        let ngrams = tokens * NGRAM.count();
        self.entries.resize((2 * ngrams).next_power_of_two(), 0);
    }

    /// Forgets the text, for one that goes on differently.
    pub fn clear(&mut self) {
        self.entries.fill(0);
        self.len = 0;
    }

    /// Puts into `draft` what followed the last tokens of `tokens` where they stood before, up to `limit` tokens. Where that
    /// reaches the end of the text, it goes on with its own beginning. `tokens` must begin with what it was the last time.
    pub fn propose(&mut self, tokens: &[u32], limit: usize, draft: &mut Vec<u32>) {
        draft.clear();
        // The last n-grams are noted only after they were looked for: else they would find themselves.
        while self.len + 1 < tokens.len() {
            self.len += 1;
            NGRAM.for_each(|size| self.note(tokens, self.len, size));
        }
        let Some(end) = NGRAM.rev().find_map(|size| self.find(tokens, size)) else { return };
        let followed = tokens.get(end..).unwrap_or_default();
        draft.extend(followed.iter().cycle().take(limit));
    }

    /// The index behind the last `size` tokens where they stood before.
    fn find(&self, tokens: &[u32], size: usize) -> Option<usize> {
        let ngram = tokens.get(tokens.len().checked_sub(size)?..)?;
        let entry = self.entry(tokens, ngram)?;
        ended(*self.entries.get(entry)?, size)
    }

    /// Notes the n-gram of `size` tokens before index `end`, if there are so many.
    fn note(&mut self, tokens: &[u32], end: usize, size: usize) {
        let ngram = end.checked_sub(size).and_then(|start| tokens.get(start..end));
        if let Some(entry) = ngram.and_then(|ngram| self.entry(tokens, ngram))
            && let Some(entry) = self.entries.get_mut(entry)
        {
            *entry = (end * SIZES + size - NGRAM.start()) as u32;
        }
    }

    /// The entry of an n-gram: the one that it has, or an empty one for it.
    fn entry(&self, tokens: &[u32], ngram: &[u32]) -> Option<usize> {
        let mask = self.entries.len().checked_sub(1)?;
        let is_its = |&entry: &usize| {
            let at = self.entries.get(entry).copied().unwrap_or_default();
            at == 0
                || ended(at, ngram.len())
                    .is_some_and(|end| tokens.get(end.saturating_sub(ngram.len())..end) == Some(ngram))
        };
        let first = hash(ngram);
        (0..PROBES).map(|probe| first.wrapping_add(probe) & mask).find(is_its)
    }
}

/// The index behind an n-gram of `size` tokens, by its entry; `None` where the entry is empty or of another size.
fn ended(entry: u32, size: usize) -> Option<usize> {
    let (end, above) = (entry as usize / SIZES, entry as usize % SIZES);
    (end > 0 && above + NGRAM.start() == size).then_some(end)
}

fn hash(ngram: &[u32]) -> usize {
    let hash = ngram.iter().fold(ngram.len() as u64, |hash, &token| {
        (hash ^ u64::from(token)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
    });
    (hash ^ (hash >> 32)) as usize
}

/// What a step costs: a fixed part for reading the weights, and a part for each of its tokens.
#[derive(Debug, Default)]
pub struct StepCost {
    weight: f64,
    tokens: f64,
    seconds: f64,
    tokens_squared: f64,
    tokens_seconds: f64,
}

impl StepCost {
    /// Steps with more tokens are bound by arithmetic and not by memory: they say nothing about those with few.
    const MOST_TOKENS: usize = 48;
    /// Weight of a step relative to the one after it.
    const MEMORY: f64 = 0.98;
    /// A token's part relative to the fixed part, until both were measured.
    const INITIAL_SLOPE: f64 = 1.0 / 8.0;

    /// Notes what a step cost.
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

    /// A token's part relative to the fixed part: the slope of a line through the steps, by least squares, over its value for
    /// no token.
    fn slope(&self) -> f64 {
        let weight = self.weight.max(1.0);
        let (mean_tokens, mean_seconds) = (self.tokens / weight, self.seconds / weight);
        let variance = self.tokens_squared / weight - mean_tokens * mean_tokens;
        if self.weight < 8.0 || variance < 0.25 || mean_seconds <= 0.0 {
            return Self::INITIAL_SLOPE;
        }
        let per_token = (self.tokens_seconds / weight - mean_tokens * mean_seconds) / variance;
        let fixed = mean_seconds - per_token * mean_tokens;
        if fixed <= 0.0 {
            return f64::INFINITY;
        }
        // A token is never free: noise must not make every draft look good.
        (per_token / fixed).max(0.01)
    }

    /// How likely a proposed token must be, to pay in a step that computes `tokens` tokens without it and is expected to
    /// yield `yielded`: with it there must be more tokens a second than without it.
    pub fn break_even(&self, tokens: usize, yielded: f64) -> f64 {
        let slope = self.slope();
        if slope.is_infinite() { 1.0 } else { slope * yielded / (1.0 + slope * tokens as f64) }
    }
}

/// How well the drafts of one sequence do.
#[derive(Debug)]
pub struct Speculator {
    /// How likely a proposed token is to be right, given that those before it were.
    likelihood: f64,
    /// Drafts that were expected not to pay.
    passed_over: u32,
}

impl Default for Speculator {
    fn default() -> Self {
        Self { likelihood: 0.5, passed_over: 0 }
    }
}

impl Speculator {
    /// Weight of what was learned before; a token that is verified has the rest of 1.
    const MEMORY: f64 = 0.8;
    /// Every so many drafts that are expected not to pay, one is made all the same.
    const PATIENCE: u32 = 16;

    /// How many tokens to propose in a step that computes `tokens` tokens without them and is expected to yield `yielded`.
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

    /// Whether a draft that is expected not to pay is made all the same, to see whether that has changed.
    pub fn try_again(&mut self) -> bool {
        self.passed_over += 1;
        self.passed_over.is_multiple_of(Self::PATIENCE)
    }

    /// Notes that `right` of `proposed` tokens came out as proposed.
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

    /// What is to be proposed, by a search of the whole text.
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
        /// However many tokens come between two drafts, and after the text was forgotten.
        #[test]
        fn drafts_are_those_of_a_search_of_the_whole_text(
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

    /// An index without room, and one with too little, lose drafts and nothing else.
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
        assert_eq!(StepCost::default().slope(), StepCost::INITIAL_SLOPE);
        let mut same = StepCost::default();
        (0..100).for_each(|_| same.observe(1, 0.1));
        assert_eq!(same.slope(), StepCost::INITIAL_SLOPE, "equal steps tell no slope");
        // One more token in a step of one that yields one: (1 + p) / (f + 2 t) > 1 / (f + t) iff p > t / (f + t).
        let break_even = measured(0.080, 0.004).break_even(1, 1.0);
        assert!((break_even - 4.0 / 84.0).abs() < 1e-9, "{break_even}");
    }

    #[test]
    fn drafts_end_where_they_do_not_pay() {
        let (cheap, dear) = (measured(0.080, 0.004), measured(0.001, 0.020));
        let mut good = Speculator::default();
        (0..10).for_each(|_| good.observe(4, 4));
        assert_eq!(good.length(&cheap, 1, 1.0), LONGEST_DRAFT);
        let mut fair = Speculator::default();
        (0..10).for_each(|_| fair.observe(4, 3));
        assert!(fair.length(&cheap, 1, 1.0) > 0);
        // Where each token costs what the others do, only a draft that is surely right loses nothing.
        assert_eq!(fair.length(&dear, 16, 16.0), 0);
        let mut bad = Speculator::default();
        (0..30).for_each(|_| bad.observe(4, 0));
        assert_eq!(bad.length(&cheap, 1, 1.0), 0);
        assert_eq!((0..32).filter(|_| bad.try_again()).count(), 2);
        bad.observe(1, 1);
        (0..3).for_each(|_| bad.observe(4, 4));
        assert!(bad.length(&cheap, 1, 1.0) > 0, "a text that begins to repeat itself has drafts again");
    }
}

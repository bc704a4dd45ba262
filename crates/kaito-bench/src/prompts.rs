//! Random prompts, a different one for each request, so that no prefix cache holds them.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The first ids of most vocabularies are special tokens.
const FIRST_PLAIN_TOKEN: u32 = 3;

/// Common words, most of which are one token in most vocabularies.
const WORDS: &str = "about above across action after again against age ago air all almost alone along already also \
    always among animal another answer any area arm around art back bad bank base beach bear beat because become bed \
    before began behind best better between big bird black blood blue board boat body book both box boy bring broad \
    brother brown build burn bus business busy call came camp car card care case cat catch cause cell center certain \
    chair chance change check child choose church circle city class clean clear climb clock close cloud coast cold \
    color come common company complete control cook cool copy corn corner cost country course cover cross crowd cry \
    cut dance dark day dead deal dear death decide deep degree design desk develop dictionary differ dinner direct \
    doctor dog dollar door double down draw dream dress drink drive drop dry during each ear early earth east easy eat \
    edge effect egg eight electric end enemy energy engine enough enter equal evening event ever every exact example \
    eye face fact fall family famous far farm fast father favor fear feed feel feet fell few field fight figure fill \
    final find fine finger finish fire first fish fit five flat floor flow flower fly follow food foot force forest \
    form forward found four free fresh friend front fruit full fun game garden gas gather gave general gentle girl give \
    glad glass gold gone good got govern grand grass gray great green ground group grow guess guide gun hair half hand \
    happy hard hat head hear heart heat heavy held help here high hill history hit hold hole home hope horse hot hotel \
    hour house how huge human hundred hunt hurry ice idea image inch include industry insect interest iron island job \
    join joy jump just keep key kind king knew know lady lake land language large last late laugh law lay lead learn";

/// What a model continues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Prompt {
    Tokens(Vec<u32>),
    Text(String),
}

/// How prompts are made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Source {
    /// Token ids below `vocab_size`.
    Tokens { vocab_size: u32 },
    /// Words, of which each has so many tokens, and so many stand around the text.
    Words { tokens_per_word: f64, tokens_around: f64 },
}

impl Source {
    /// Words, before anything is known of the model's tokens.
    pub(crate) const ANY_WORDS: Self = Self::Words { tokens_per_word: 1.0, tokens_around: 0.0 };

    /// Words whose numbers of tokens are known for two texts, as `(words, tokens)`.
    pub(crate) fn measured_words(short: (usize, usize), long: (usize, usize)) -> Self {
        let words = long.0.abs_diff(short.0).max(1) as f64;
        let tokens_per_word = ((long.1 as f64 - short.1 as f64) / words).max(0.1);
        let tokens_around = (short.1 as f64 - tokens_per_word * short.0 as f64).max(0.0);
        Self::Words { tokens_per_word, tokens_around }
    }
}

/// What random numbers are used for. Each purpose has a stream of its own, so that prompts of different tables never agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Calibration,
    Sequences,
    Load,
    Arrivals,
}

/// Random numbers for a purpose.
pub(crate) fn random(seed: u64, purpose: Purpose) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(purpose as u64);
    rng
}

/// Makes prompts; the same ones for the same seed and purpose.
pub(crate) struct PromptMaker {
    rng: ChaCha8Rng,
    source: Source,
    words: Vec<&'static str>,
}

impl PromptMaker {
    pub(crate) fn new(source: Source, seed: u64, purpose: Purpose) -> Self {
        Self { rng: random(seed, purpose), source, words: WORDS.split_whitespace().collect() }
    }

    /// A prompt of that many tokens: exactly, or as nearly as words allow.
    pub(crate) fn prompt(&mut self, tokens: usize) -> Prompt {
        match self.source {
            Source::Tokens { vocab_size } => {
                let first = FIRST_PLAIN_TOKEN.min(vocab_size.saturating_sub(1));
                Prompt::Tokens((0..tokens).map(|_| self.rng.random_range(first..vocab_size.max(1))).collect())
            }
            Source::Words { tokens_per_word, tokens_around } => {
                let words = ((tokens as f64 - tokens_around) / tokens_per_word).round().max(1.0) as usize;
                self.words(words)
            }
        }
    }

    /// A text of that many words.
    pub(crate) fn words(&mut self, count: usize) -> Prompt {
        let words: Vec<&str> = (0..count).map(|_| self.word()).collect();
        Prompt::Text(words.join(" "))
    }

    fn word(&mut self) -> &'static str {
        let at = self.rng.random_range(0..self.words.len());
        self.words.get(at).copied().unwrap_or("word")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn token_prompts_are_exact_plain_and_never_alike() {
        let mut maker = PromptMaker::new(Source::Tokens { vocab_size: 500 }, 7, Purpose::Load);
        let mut beginnings = HashSet::new();
        for length in [16, 17, 400] {
            let Prompt::Tokens(ids) = maker.prompt(length) else { panic!("no ids") };
            assert_eq!(ids.len(), length);
            assert!(ids.iter().all(|id| (3..500).contains(id)), "{ids:?}");
            assert!(beginnings.insert(ids[..16].to_vec()));
        }
        for vocab_size in [1, 2, 3, 4] {
            let mut maker = PromptMaker::new(Source::Tokens { vocab_size }, 7, Purpose::Load);
            let Prompt::Tokens(ids) = maker.prompt(9) else { panic!("no ids") };
            assert!(ids.iter().all(|id| *id < vocab_size), "{vocab_size}: {ids:?}");
        }
    }

    #[test]
    fn the_seed_decides() {
        let source = Source::ANY_WORDS;
        let prompts = |seed| {
            let mut maker = PromptMaker::new(source, seed, Purpose::Load);
            [maker.prompt(20), maker.prompt(20)]
        };
        assert_eq!(prompts(1), prompts(1));
        assert_ne!(prompts(1), prompts(2));
        let [first, second] = prompts(1);
        assert_ne!(first, second);
        let mut others = PromptMaker::new(source, 1, Purpose::Sequences);
        assert!(![&first, &second].contains(&&others.prompt(20)));
    }

    #[test]
    fn words_are_as_many_as_their_tokens_ask_for() {
        // 16 words were 21 tokens and 64 words 81: 1.25 each, and a begin token.
        let source = Source::measured_words((16, 21), (64, 81));
        assert_eq!(source, Source::Words { tokens_per_word: 1.25, tokens_around: 1.0 });
        let mut maker = PromptMaker::new(source, 0, Purpose::Load);
        for (tokens, words) in [(126, 100), (1, 1), (0, 1)] {
            let Prompt::Text(text) = maker.prompt(tokens) else { panic!("no text") };
            assert_eq!(text.split(' ').count(), words);
        }
    }

    #[test]
    fn the_words_are_different_ones() {
        let words: Vec<&str> = WORDS.split_whitespace().collect();
        assert_eq!(words.iter().collect::<HashSet<_>>().len(), words.len());
        assert!(words.len() > 300, "{}", words.len());
    }
}

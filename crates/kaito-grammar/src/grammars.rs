//! The grammars of one model.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use kaito_engine::{Cancel, Constraint};
use kaito_model::tokenizer::Tokenizer;
use llguidance::api::ParserLimits;
use llguidance::toktrie::{InferenceCapabilities, TokEnv};
use llguidance::{Matcher, ParserFactory};
use sha2::{Digest, Sha256};

use crate::Error;
use crate::cache::Cache;
use crate::compile::{Places, within};
use crate::grammar::{Grammar, Source, one_line};
use crate::matcher::Matching;
use crate::schema;
use crate::vocabulary::Vocabulary;

/// How long compiling may take, the wait for a place included.
const TIME: Duration = Duration::from_secs(5);
/// How many compiled grammars are kept, and how many bytes of them.
const KEPT: usize = 128;
const KEPT_BYTES: usize = 256 << 20;
/// Bytes of what a grammar becomes for each byte of its text, its regular expressions aside.
const BYTES_FOR_TEXT: usize = 64;
/// Bytes of a refusal, and the least that a grammar takes.
const LEAST_BYTES: usize = 1 << 10;
/// Sets of tokens that many masks have in common: white space as grammars have it here, and texts within strings.
const SLICES: [&str; 4] = [
    r"\x0A\x20{0,20}|\x20{1,20}",
    r#"[^"\\\x00-\x1F\x7F]{1,10}"#,
    r#"[^"\\\x00-\x1F\x7F]{1,30}"#,
    r#"[^"\\\x00-\x1F\x7F]+"#,
];

/// A grammar that was just compiled.
struct Fresh {
    matcher: Arc<Matcher>,
    /// Bytes of the automata of its regular expressions.
    automata_bytes: usize,
}

type Compiled = Result<Arc<Matcher>, Error>;
type Key = [u8; 32];

/// Compiles grammars for a model, and keeps the last of them; cheap to clone.
#[derive(Clone)]
pub struct Grammars(Arc<Inner>);

struct Inner {
    tokenizer: Tokenizer,
    vocab_size: usize,
    end_tokens: Vec<u32>,
    factory: OnceLock<Result<ParserFactory, Error>>,
    cache: Mutex<Cache<Key, Compiled>>,
    places: Arc<Places>,
    limit: Duration,
}

impl Grammars {
    /// For a model whose head has `vocab_size` rows, and whose answers end with one of `end_tokens`.
    pub fn new(tokenizer: Tokenizer, vocab_size: usize, end_tokens: Vec<u32>) -> Self {
        Self::with_limit(tokenizer, vocab_size, end_tokens, TIME)
    }

    /// With another limit of the time that compiling takes.
    pub(crate) fn with_limit(tokenizer: Tokenizer, vocab_size: usize, end_tokens: Vec<u32>, limit: Duration) -> Self {
        Self(Arc::new(Inner {
            tokenizer,
            vocab_size,
            end_tokens,
            factory: OnceLock::new(),
            cache: Mutex::new(Cache::new(KEPT, KEPT_BYTES)),
            places: Arc::default(),
            limit,
        }))
    }

    /// The constraint of a request: compiles the grammar, unless it is there already. Waits for that at most 5 s, and only
    /// while `cancel` says that somebody waits for this.
    ///
    /// # Errors
    /// A grammar that is wrong or too complex, and [`Error::Cancelled`].
    pub fn constraint(&self, grammar: &Grammar, cancel: &Cancel) -> Result<Box<dyn Constraint>, Error> {
        let text = grammar.key();
        let key: Key = Sha256::digest(&text).into();
        let kept = self.0.cache().get(&key);
        let compiled = match kept {
            Some(compiled) => compiled?,
            None => {
                let source = grammar.source()?;
                let inner = self.0.clone();
                let compiled = within(&self.0.places, self.0.limit, cancel, grammar.what(), move || {
                    let compiled = inner.compile(source);
                    let automata = compiled.as_ref().map_or(0, |compiled| compiled.automata_bytes);
                    let bytes = LEAST_BYTES + automata + text.len() * BYTES_FOR_TEXT;
                    let compiled = compiled.map(|compiled| compiled.matcher);
                    // Here, so that what took too long for one request is there for a later one.
                    inner.cache().insert(key, compiled.clone(), bytes);
                    compiled
                });
                if let Err(late @ Error::TimedOut { .. }) = &compiled {
                    // Until it is done: no other request is to wait for it, or to begin it anew.
                    let mut cache = self.0.cache();
                    if cache.get(&key).is_none() {
                        cache.insert(key, Err(late.clone()), LEAST_BYTES);
                    }
                }
                compiled?
            }
        };
        Ok(Box::new(Matching::new(compiled.deep_clone(), grammar.constraint_source())))
    }
}

impl fmt::Debug for Grammars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammars").field("vocab_size", &self.0.vocab_size).finish_non_exhaustive()
    }
}

impl Inner {
    fn cache(&self) -> std::sync::MutexGuard<'_, Cache<Key, Compiled>> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn factory(&self) -> Result<&ParserFactory, Error> {
        let make = || {
            let vocabulary = Vocabulary::new(&self.tokenizer, self.vocab_size, &self.end_tokens)?;
            let tokens: TokEnv = Arc::new(vocabulary);
            let error = |error: &dyn fmt::Display| Error::Tokenizer { reason: one_line(&error.to_string()) };
            let mut factory = ParserFactory::new(&tokens, InferenceCapabilities::default(), &SLICES.map(String::from))
                .map_err(|fault| error(&fault))?;
            factory.quiet();
            *factory.limits_mut() = limits();
            Ok(factory)
        };
        self.factory.get_or_init(make).as_ref().map_err(Clone::clone)
    }

    fn compile(&self, source: Source) -> Result<Fresh, Error> {
        let Source { kind, grammar, schema } = source;
        let refused = |reason: &str| {
            let reason = one_line(reason);
            match &schema {
                Some(schema) => Error::InvalidSchema { path: schema::place_of(schema, &reason), reason },
                None => Error::Invalid { what: kind, reason },
            }
        };
        let parser = self.factory()?.create_parser(grammar).map_err(|error| refused(&format!("{error:#}")))?;
        // Shares what the matcher makes of the grammar's regular expressions.
        let observer = parser.clone();
        let mut matcher = Matcher::new(Ok(parser));
        // The first mask finds grammars that cannot be followed at all, and what it computes is there for all clones.
        matcher.compute_mask_or_eos().map_err(|error| refused(&error.to_string()))?;
        for warning in matcher.grammar_warnings() {
            tracing::warn!(warning = one_line(&warning), "a part of {kind} is not kept to");
        }
        Ok(Fresh { automata_bytes: observer.parser.lexer_stats().num_bytes, matcher: Arc::new(matcher) })
    }
}

/// What one grammar and one mask may cost.
fn limits() -> ParserLimits {
    ParserLimits {
        // One to two kilobytes each.
        max_lexer_states: 50_000,
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

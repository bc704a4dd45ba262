//! Tokenizers, and a sequence that follows a constraint.

use std::path::PathBuf;

use kaito_engine::{Cancel, Constraint, TokenMask};
use kaito_grammar::{Error, Grammar, Grammars};
use kaito_model::tokenizer::{DecodeOptions, Special, Tokenizer};
use serde_json::Value;

/// Rows of the head beyond the tokenizer, as models have them.
pub const BEYOND: usize = 5;

/// A tokenizer of the repository, by its folder from the root.
pub fn tokenizer(folder: &str) -> Tokenizer {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    Tokenizer::open(&root.join(folder)).unwrap()
}

/// The folders of tokenizers of all kinds: byte fallback, byte level, SentencePiece.
pub const FOLDERS: [&str; 5] = [
    "models/demo",
    "crates/kaito-model/tests/fixtures/tokenizer/falcon",
    "crates/kaito-model/tests/fixtures/tokenizer/mistral_v03",
    "crates/kaito-model/tests/fixtures/tokenizer/phi3",
    "crates/kaito-model/tests/fixtures/tokenizer/llama_model_legacy",
];

/// A model's tokens and its grammars.
pub struct Model {
    pub tokenizer: Tokenizer,
    pub grammars: Grammars,
    pub end: u32,
    pub rows: usize,
}

impl Model {
    pub fn open(folder: &str) -> Self {
        let tokenizer = tokenizer(folder);
        let end = tokenizer.eos_token_id().unwrap();
        let rows = tokenizer.vocab_size() + BEYOND;
        Self { grammars: Grammars::new(tokenizer.clone(), rows, vec![end]), tokenizer, end, rows }
    }

    pub fn demo() -> Self {
        Self::open("models/demo")
    }

    pub fn constraint(&self, grammar: &Grammar) -> Box<dyn Constraint> {
        self.grammars.constraint(grammar, &Cancel::default()).unwrap()
    }

    pub fn error(&self, grammar: &Grammar) -> Error {
        self.grammars.constraint(grammar, &Cancel::default()).unwrap_err()
    }

    /// The bits of the mask.
    pub fn mask(&self, constraint: &mut dyn Constraint) -> Vec<u64> {
        let mut mask = TokenMask::of(self.rows, &[]);
        constraint.mask(&mut mask);
        mask.words_mut().to_vec()
    }

    /// The tokens that the mask allows.
    pub fn allowed(&self, constraint: &mut dyn Constraint) -> Vec<u32> {
        let mask = self.mask(constraint);
        (0..self.rows as u32).filter(|&token| allows(&mask, token)).collect()
    }

    /// The tokens of a text that begins an answer: what the tokenizer puts before a text is left out.
    pub fn tokens(&self, text: &str) -> Vec<u32> {
        let bytes =
            |ids: &[u32]| ids.iter().flat_map(|&id| self.tokenizer.token_bytes(id).unwrap()).collect::<Vec<u8>>();
        let before = self.tokenizer.encode("\n", Special::Skip).unwrap();
        let whole = self.tokenizer.encode(&format!("\n{text}"), Special::Skip).unwrap();
        let tokens = whole.get(before.len()..).unwrap().to_vec();
        assert_eq!(bytes(&tokens), text.as_bytes(), "{text:?}");
        tokens
    }

    /// How far `text` is accepted, in tokens, each of which the mask must allow if it is accepted, and whether it may end
    /// there.
    pub fn follow(&self, constraint: &mut dyn Constraint, text: &str) -> (usize, usize, bool) {
        let tokens = self.tokens(text);
        for (at, &token) in tokens.iter().enumerate() {
            if constraint.is_finished() || !constraint.accept(token) {
                return (at, tokens.len(), false);
            }
        }
        (tokens.len(), tokens.len(), constraint.may_end())
    }

    /// Whether `text` is a whole answer.
    pub fn takes(&self, grammar: &Grammar, text: &str) -> bool {
        let (accepted, all, may_end) = self.follow(&mut *self.constraint(grammar), text);
        accepted == all && may_end
    }

    /// The text of an answer of these tokens, as a client sees it.
    pub fn text(&self, tokens: &[u32]) -> String {
        let options = DecodeOptions { skip_special_tokens: true, clean_up_tokenization_spaces: false };
        self.tokenizer.decode(tokens, options)
    }
}

/// Whether the mask allows a token.
pub fn allows(mask: &[u64], token: u32) -> bool {
    mask.get(token as usize / 64).is_some_and(|word| word >> (token % 64) & 1 == 1)
}

/// A strict grammar for a schema.
pub fn strict(schema: Value) -> Grammar {
    Grammar::JsonSchema { schema, strict: true, whitespace: None }
}

/// A grammar that leaves out what it cannot keep to.
pub fn lenient(schema: Value) -> Grammar {
    Grammar::JsonSchema { schema, strict: false, whitespace: None }
}

//! A model's tokens as a prefix tree of their bytes.

use std::panic::{AssertUnwindSafe, catch_unwind};

use kaito_model::tokenizer::{Special, Tokenizer};
use llguidance::toktrie::{INVALID_TOKEN, TokRxInfo, TokTrie, TokenId, TokenizerEnv};

use crate::Error;

/// A token of more bytes is never allowed: the tree is not made for it. The longest published ones have a kibibyte.
const MAX_TOKEN_BYTES: usize = 1024;
/// A character that no merge of a tokenizer crosses, before a text that is to be encoded as the middle of one.
const SENTINEL: &str = "\u{2}";
/// What the sentinel is tried with.
const SAMPLE: &str = "{\"name\": [1, \"a b\"]}";

/// The tokens, and the tokenizer that says how a forced text is spelled.
pub(crate) struct Vocabulary {
    trie: TokTrie,
    tokenizer: Tokenizer,
    /// Whether the middle of a text can be encoded as the tokenizer would within the whole.
    canonical: bool,
}

impl Vocabulary {
    /// The tokens of `tokenizer` for a model whose head has `vocab_size` rows. Special tokens and end tokens have a marker
    /// before their names that no text holds, so that no grammar spells them; rows without a token have no bytes, and are
    /// never allowed.
    pub(crate) fn new(tokenizer: &Tokenizer, vocab_size: usize, end_tokens: &[u32]) -> Result<Self, Error> {
        let error = |reason: String| Error::Tokenizer { reason };
        let size = u32::try_from(vocab_size).map_err(|_| error(format!("it has {vocab_size} tokens")))?;
        let end_tokens: Vec<u32> = end_tokens.iter().copied().filter(|&token| token < size).collect();
        let words: Vec<Vec<u8>> = (0..size)
            .map(|id| {
                if end_tokens.contains(&id) || tokenizer.special_ids().binary_search(&id).is_ok() {
                    let name = tokenizer.token_text(id).unwrap_or_else(|| format!("<[{id}]>"));
                    let mut word = vec![TokTrie::SPECIAL_TOKEN_MARKER];
                    word.extend_from_slice(name.as_bytes());
                    word
                } else {
                    tokenizer.token_bytes(id).unwrap_or_default()
                }
            })
            .map(|word| if word.len() > MAX_TOKEN_BYTES { Vec::new() } else { word })
            .collect();
        let info = TokRxInfo {
            vocab_size: size,
            tok_eos: end_tokens.first().copied().unwrap_or(INVALID_TOKEN),
            tok_bos: tokenizer.bos_token_id(),
            tok_pad: tokenizer.pad_token_id(),
            tok_unk: tokenizer.unk_token_id(),
            tok_end_of_turn: None,
        };
        // The tree asserts what it is made for.
        let trie = catch_unwind(AssertUnwindSafe(|| {
            let trie = TokTrie::from(&info, &words);
            if end_tokens.is_empty() { trie } else { trie.with_eos_tokens(&end_tokens) }
        }))
        .map_err(|_| error(format!("no prefix tree can be made of its {vocab_size} tokens")))?;
        let mut vocabulary = Self { trie, tokenizer: tokenizer.clone(), canonical: true };
        vocabulary.canonical = vocabulary.encode_inside(SAMPLE).is_some();
        Ok(vocabulary)
    }

    /// The tokens of a text that stands inside another. `None` where the tokenizer does not show them.
    fn encode_inside(&self, text: &str) -> Option<Vec<TokenId>> {
        let whole = self.tokenizer.encode(&[SENTINEL, text].concat(), Special::Skip).ok()?;
        let mut before = Vec::new();
        let mut at = 0;
        // Many tokenizers put a space before a text.
        while !(before == SENTINEL.as_bytes() || before.strip_prefix(b" ") == Some(SENTINEL.as_bytes())) {
            before.extend_from_slice(self.bytes(*whole.get(at)?)?);
            at += 1;
        }
        let tokens = whole.get(at..)?;
        let bytes: Vec<&[u8]> = tokens.iter().map(|&token| self.bytes(token)).collect::<Option<_>>()?;
        (bytes.concat() == text.as_bytes()).then(|| tokens.to_vec())
    }

    /// The bytes of a token that the model has.
    fn bytes(&self, token: TokenId) -> Option<&[u8]> {
        ((token as usize) < self.trie.vocab_size()).then(|| self.trie.token(token))
    }
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        let encode =
            |text: &str| self.encode_inside(text).unwrap_or_else(|| self.trie.greedy_tokenize(text.as_bytes()));
        self.trie.tokenize_with_greedy_fallback(bytes, encode)
    }

    fn tokenize_is_canonical(&self) -> bool {
        self.canonical
    }
}

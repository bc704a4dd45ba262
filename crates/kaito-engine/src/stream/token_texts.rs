//! The texts of single tokens.

use std::collections::HashMap;

use kaito_model::tokenizer::{DecodeOptions, Special, StreamingDecoder, Tokenizer};

use crate::{
    generate,
    output::{LikelyToken, Token, TokenScore},
};

/// The texts of single tokens, each decoded once, and their bytes.
#[derive(Debug)]
pub(super) struct TokenTexts {
    tokenizer: Tokenizer,
    /// A decoder that stands inside a text.
    fresh: Option<StreamingDecoder>,
    known: HashMap<u32, String>,
    /// Whether anybody asks for bytes.
    gives_bytes: bool,
}

impl TokenTexts {
    pub fn new(tokenizer: &Tokenizer, gives_bytes: bool) -> Self {
        Self { tokenizer: tokenizer.clone(), fresh: None, known: HashMap::new(), gives_bytes }
    }

    pub fn score(&mut self, score: &generate::TokenScore) -> TokenScore {
        let text = self.text(score.token);
        let likely =
            |&(id, log_prob): &(u32, f32)| LikelyToken { id, text: self.text(id), log_prob, bytes: self.bytes(id) };
        let top = score.top.iter().map(likely).collect();
        TokenScore {
            id: score.token,
            text,
            log_prob: score.log_prob,
            rank: score.rank,
            bytes: self.bytes(score.token),
            top,
        }
    }

    /// A token as it is chosen.
    pub fn token(&mut self, id: u32, score: Option<&generate::TokenScore>) -> Token {
        match score.map(|score| self.score(score)) {
            Some(TokenScore { id, text, log_prob, bytes, top, .. }) => {
                Token { id, text, log_prob: Some(log_prob), bytes, top }
            }
            None => Token { id, text: String::new(), log_prob: None, bytes: self.bytes(id), top: Vec::new() },
        }
    }

    fn bytes(&self, id: u32) -> Option<Vec<u8>> {
        if self.gives_bytes { self.tokenizer.token_bytes(id) } else { None }
    }

    /// A token's text where it stands inside a text: alone, many tokenizers would drop its leading space.
    fn text(&mut self, id: u32) -> String {
        let Self { tokenizer, fresh, known, .. } = self;
        let decoded = || {
            let fresh = fresh.get_or_insert_with(|| {
                let decode = DecodeOptions { skip_special_tokens: false, clean_up_tokenization_spaces: false };
                let anchor = tokenizer.encode("a", Special::Skip).unwrap_or_default();
                StreamingDecoder::new(tokenizer, &anchor, decode)
            });
            let mut decoder = fresh.clone();
            let text = decoder.push(id);
            text + &decoder.finish()
        };
        known.entry(id).or_insert_with(decoded).clone()
    }
}

//! Log-probabilities as the OpenAI dialect writes them: as objects of tokens in chat completions, as lists side by side in
//! completions.
//!
//! A token's text is that of its own bytes, with U+FFFD where they are no whole character.

use kaito_engine::{LikelyToken, OutputSequence, Token, TokenScore, Tokenizer};
use serde::{Serialize, Serializer};

/// What stands for minus infinity, which JSON does not have.
const LEAST: f32 = -9999.0;

/// A token that was chosen, or one of a prompt, with the likeliest in its place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scored<'a> {
    id: u32,
    /// `None` for a prompt's first token, which nothing comes before.
    log_prob: Option<f32>,
    bytes: Option<&'a [u8]>,
    text: &'a str,
    top: &'a [LikelyToken],
}

impl<'a> From<&'a TokenScore> for Scored<'a> {
    fn from(score: &'a TokenScore) -> Self {
        let TokenScore { id, text, log_prob, bytes, top, .. } = score;
        Self { id: *id, log_prob: Some(*log_prob), bytes: bytes.as_deref(), text, top }
    }
}

impl<'a> From<&'a Token> for Scored<'a> {
    fn from(token: &'a Token) -> Self {
        let Token { id, text, log_prob, bytes, top } = token;
        Self { id: *id, log_prob: *log_prob, bytes: bytes.as_deref(), text, top }
    }
}

/// How log-probabilities name tokens.
#[derive(Debug, Clone)]
pub(crate) struct Naming {
    /// Whether by their ids, as `token_id:13`.
    pub(crate) as_ids: bool,
    /// How many of the likeliest are given.
    pub(crate) likely: usize,
}

impl Naming {
    fn name(&self, id: u32, bytes: Option<&[u8]>, text: &str) -> String {
        match bytes {
            _ if self.as_ids => format!("token_id:{id}"),
            Some(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            None => text.to_owned(),
        }
    }
}

/// Those of a chat completion.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct ChatLogProbs {
    content: Vec<ChatToken>,
    refusal: Option<()>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct ChatToken {
    token: String,
    logprob: f32,
    bytes: Option<Vec<u8>>,
    top_logprobs: Vec<ChatLikely>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct ChatLikely {
    token: String,
    logprob: f32,
    bytes: Option<Vec<u8>>,
}

impl ChatLogProbs {
    pub(crate) fn new<'a>(tokens: impl IntoIterator<Item = Scored<'a>>, naming: &Naming) -> Self {
        let likely = |token: &LikelyToken| ChatLikely {
            token: naming.name(token.id, token.bytes.as_deref(), &token.text),
            logprob: finite(token.log_prob),
            bytes: token.bytes.clone(),
        };
        let content = tokens.into_iter().map(|token| ChatToken {
            token: naming.name(token.id, token.bytes, token.text),
            logprob: finite(token.log_prob.unwrap_or(LEAST)),
            bytes: token.bytes.map(<[u8]>::to_vec),
            top_logprobs: token.top.iter().take(naming.likely).map(likely).collect(),
        });
        Self { content: content.collect(), refusal: None }
    }
}

/// Those of a completion.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct CompletionLogProbs {
    text_offset: Vec<usize>,
    token_logprobs: Vec<Option<f32>>,
    tokens: Vec<String>,
    top_logprobs: Vec<Option<Entries<String, f32>>>,
}

impl CompletionLogProbs {
    /// Adds a token, whose text begins where `offset` says.
    pub(crate) fn push(&mut self, token: Scored<'_>, offset: &mut TextOffset, naming: &Naming) {
        let name = naming.name(token.id, token.bytes, token.text);
        self.text_offset.push(offset.advance(token.id, token.bytes.unwrap_or(token.text.as_bytes())));
        self.token_logprobs.push(token.log_prob.map(finite));
        self.top_logprobs.push(token.log_prob.map(|log_prob| {
            // The likeliest first. Of several tokens with one name the likeliest counts, and the chosen one is always there.
            let mut likely = Entries::default();
            for other in token.top.iter().take(naming.likely) {
                let name = naming.name(other.id, other.bytes.as_deref(), &other.text);
                likely.insert_new(name, finite(other.log_prob));
            }
            likely.insert_new(name.clone(), finite(log_prob));
            likely
        }));
        self.tokens.push(name);
    }

    /// Adds the first token of a prompt, which has no log-probability.
    pub(crate) fn push_first(&mut self, tokenizer: &Tokenizer, id: u32, offset: &mut TextOffset, naming: &Naming) {
        let bytes = tokenizer.token_bytes(id).unwrap_or_default();
        let token = Scored { id, log_prob: None, bytes: Some(&bytes), text: "", top: &[] };
        self.push(token, offset, naming);
    }
}

/// Where in a text, in characters, its next token begins.
#[derive(Debug, Clone)]
pub(crate) struct TextOffset {
    tokenizer: Tokenizer,
    /// Whether special tokens have no text.
    skips_special: bool,
    /// The text begins without the space that its first token has.
    strips_space: bool,
    characters: usize,
}

impl TextOffset {
    /// Of a text that begins with `beginning`, where a prompt's does.
    pub(crate) fn new(tokenizer: &Tokenizer, skips_special: bool, beginning: &str) -> Self {
        let strips_space = !beginning.is_empty() && !beginning.starts_with(' ');
        Self { tokenizer: tokenizer.clone(), skips_special, strips_space, characters: 0 }
    }

    fn advance(&mut self, id: u32, bytes: &[u8]) -> usize {
        let begins = self.characters;
        if self.skips_special && self.tokenizer.special_ids().binary_search(&id).is_ok() {
            return begins;
        }
        let bytes = match bytes {
            [b' ', rest @ ..] if self.strips_space => rest,
            bytes => bytes,
        };
        self.strips_space = false;
        // A character begins with a byte that continues none.
        self.characters += bytes.iter().filter(|byte| **byte & 0xC0 != 0x80).count();
        begins
    }
}

/// Tokens of a stream whose log-probabilities were not sent yet: those of a text that is held back.
#[derive(Debug, Default)]
pub(crate) struct Pending(Vec<Token>);

impl Pending {
    pub(crate) fn push(&mut self, token: Token) {
        self.0.push(token);
    }

    /// All that wait, which are none afterwards.
    pub(crate) fn take(&mut self) -> Vec<Token> {
        std::mem::take(&mut self.0)
    }

    /// Forgets the last one.
    pub(crate) fn drop_last(&mut self) {
        self.0.pop();
    }
}

/// About how many bytes the log-probabilities of a sequence have.
pub(crate) fn size(sequence: &OutputSequence) -> usize {
    /// A token, its number and its bytes.
    const ENTRY: usize = 100;
    let scores = sequence.scores.as_deref().unwrap_or_default();
    scores.iter().map(|score| (1 + score.top.len()) * ENTRY).sum()
}

fn finite(log_prob: f32) -> f32 {
    if log_prob.is_finite() { log_prob } else { LEAST }
}

/// A prompt's log-probabilities in vLLM's form: null for the first token, then an object from ids to what is known of them.
#[derive(Debug, Serialize)]
pub(crate) struct PromptLogProbs<'a>(Vec<Option<Entries<u32, PromptToken<'a>>>>);

#[derive(Debug, Serialize)]
struct PromptToken<'a> {
    logprob: f32,
    /// Its place among all tokens, from 1.
    rank: Option<usize>,
    decoded_token: &'a str,
}

impl<'a> PromptLogProbs<'a> {
    pub(crate) fn new(scores: &'a [Option<TokenScore>]) -> Self {
        let of_token = |score: &'a TokenScore| {
            let mut known = Entries::default();
            for (i, likely) in score.top.iter().enumerate() {
                let (logprob, rank) = (finite(likely.log_prob), Some(i + 1));
                known.insert_new(likely.id, PromptToken { logprob, rank, decoded_token: &likely.text });
            }
            let logprob = finite(score.log_prob);
            known.insert_new(score.id, PromptToken { logprob, rank: score.rank, decoded_token: &score.text });
            known
        };
        Self(scores.iter().map(|score| score.as_ref().map(of_token)).collect())
    }
}

/// An object, in the order of its entries. They are few.
#[derive(Debug, Clone, PartialEq)]
struct Entries<K, V>(Vec<(K, V)>);

impl<K, V> Default for Entries<K, V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K: PartialEq, V> Entries<K, V> {
    /// Adds an entry, unless there is one of this key.
    fn insert_new(&mut self, key: K, value: V) {
        if !self.0.iter().any(|(known, _)| *known == key) {
            self.0.push((key, value));
        }
    }
}

impl<K: Serialize, V: Serialize> Serialize for Entries<K, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn likely(id: u32, bytes: &[u8], log_prob: f32) -> LikelyToken {
        LikelyToken { id, text: String::new(), log_prob, bytes: Some(bytes.to_vec()) }
    }

    fn score(id: u32, bytes: &[u8], log_prob: f32, top: Vec<LikelyToken>) -> TokenScore {
        TokenScore { id, text: String::new(), log_prob, rank: Some(9), bytes: Some(bytes.to_vec()), top }
    }

    /// The four bytes of an emoji, in two tokens: neither is a character, both have their true bytes.
    #[test]
    fn a_token_has_its_true_bytes() {
        let scores = [
            score(1, b"\xf0\x9f", -0.5, vec![likely(1, b"\xf0\x9f", -0.5)]),
            score(2, b"\x98\x80", f32::NEG_INFINITY, vec![]),
        ];
        let naming = Naming { as_ids: false, likely: 20 };
        let written = ChatLogProbs::new(scores.iter().map(Scored::from), &naming);
        assert_eq!(
            serde_json::to_value(written).unwrap(),
            json!({
                "content": [
                    {
                        "token": "\u{fffd}", "logprob": -0.5, "bytes": [240, 159],
                        "top_logprobs": [{ "token": "\u{fffd}", "logprob": -0.5, "bytes": [240, 159] }]
                    },
                    { "token": "\u{fffd}\u{fffd}", "logprob": -9999.0, "bytes": [152, 128], "top_logprobs": [] }
                ],
                "refusal": null
            })
        );
    }

    #[test]
    fn tokens_may_be_named_by_their_ids() {
        let scores = [score(13, b"a", -1.0, vec![likely(14, b"b", -0.5), likely(13, b"a", -1.0)])];
        let naming = Naming { as_ids: true, likely: 1 };
        let written = serde_json::to_value(ChatLogProbs::new(scores.iter().map(Scored::from), &naming)).unwrap();
        assert_eq!(written["content"][0]["token"], "token_id:13");
        assert_eq!(
            written["content"][0]["top_logprobs"],
            json!([{ "token": "token_id:14", "logprob": -0.5, "bytes": [98] }])
        );
    }

    #[test]
    fn a_prompts_scores_are_keyed_by_ids() {
        let scores = [None, Some(score(7, b"a", -2.0, vec![likely(3, b"b", -0.25)]))];
        assert_eq!(
            serde_json::to_value(PromptLogProbs::new(&scores)).unwrap(),
            json!([null, {
                "3": { "logprob": -0.25, "rank": 1, "decoded_token": "" },
                "7": { "logprob": -2.0, "rank": 9, "decoded_token": "" }
            }])
        );
    }
}

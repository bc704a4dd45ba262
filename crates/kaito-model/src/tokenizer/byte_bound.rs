//! A lower bound of the number of a text's tokens, from the number of its bytes alone.
//!
//! A token stands for at most as many bytes of a text as the longest entry of the vocabulary has, provided that no step of the
//! tokenizer (normaliser, pre-tokenizer, model) drops characters or makes one token of a run of unknown ones. The steps that
//! published tokenizers have are known; for others a generous number is assumed.

use serde_json::Value;
use tokenizers::{Model as _, ModelWrapper, Tokenizer};

use super::sentencepiece;

/// Assumed where nothing bounds the bytes of a token. Prompts of more than this for each token that fits are refused.
const ASSUMED: usize = 1024;
/// How much shorter Unicode's normal forms can make a text: a composition replaces up to four characters of up to four
/// bytes by one.
const NORMAL_FORM: usize = 16;
/// How much shorter lower case can be: the Kelvin sign has three bytes, its lower case one.
const LOWER_CASE: usize = 4;

/// The most bytes that a token can stand for, and the white space that special tokens may remove.
#[derive(Debug)]
pub(super) struct ByteBound {
    bytes_per_token: usize,
    swallowing: Vec<Swallowing>,
    /// Tokens that swallow white space are looked for in the normalised text, so any white space may be swallowed.
    any_space: bool,
}

/// A token that swallows the white space before or after it.
#[derive(Debug)]
struct Swallowing {
    text: String,
    before: bool,
    after: bool,
}

impl ByteBound {
    pub(super) fn of_hugging_face(tokenizer: &Tokenizer) -> Self {
        let json = |value: serde_json::Result<Value>| value.unwrap_or_default();
        let normalizer = json(serde_json::to_value(tokenizer.get_normalizer()));
        let pre_tokenizer = json(serde_json::to_value(tokenizer.get_pre_tokenizer()));
        let shrinks = shrinkage(&normalizer);
        let bytes_per_token = shrinks.filter(|_| keeps_all(&pre_tokenizer)).and_then(|shrinks| {
            let in_bytes = mentions_byte_level(&normalizer) || mentions_byte_level(&pre_tokenizer);
            has_token_for_everything(tokenizer, in_bytes).then(|| longest(tokenizer, in_bytes).saturating_mul(shrinks))
        });
        let added = tokenizer.get_added_vocabulary().get_added_tokens_decoder();
        let swallowing = added.values().filter(|token| token.lstrip || token.rstrip);
        Self {
            bytes_per_token: bytes_per_token.unwrap_or(ASSUMED).max(1),
            any_space: normalizer != Value::Null && swallowing.clone().any(|token| token.normalized),
            swallowing: swallowing
                .filter(|token| !token.content.is_empty())
                .map(|token| Swallowing { text: token.content.clone(), before: token.lstrip, after: token.rstrip })
                .collect(),
        }
    }

    pub(super) fn of_sentencepiece(model: &sentencepiece::Model) -> Self {
        let bytes_per_token = model.bytes_per_token().unwrap_or(ASSUMED).max(1);
        Self { bytes_per_token, swallowing: Vec::new(), any_space: false }
    }

    /// A lower bound of the number of tokens of `text`.
    pub(super) fn min_tokens(&self, text: &str) -> usize {
        let counted = if self.any_space {
            text.chars().filter(|character| !character.is_whitespace()).map(char::len_utf8).sum()
        } else {
            let swallowed: usize = self.swallowing.iter().map(|token| token.swallowed(text)).sum();
            text.len().saturating_sub(swallowed)
        };
        counted / self.bytes_per_token
    }
}

impl Swallowing {
    /// Bytes of white space beside the occurrences of the token.
    fn swallowed(&self, text: &str) -> usize {
        text.match_indices(&self.text)
            .map(|(start, found)| {
                let (before, rest) = text.split_at(start);
                let after = rest.get(found.len()..).unwrap_or_default();
                let before = if self.before { before.len() - before.trim_end().len() } else { 0 };
                let after = if self.after { after.len() - after.trim_start().len() } else { 0 };
                before + after
            })
            .sum()
    }
}

fn kind(step: &Value) -> &str {
    step.get("type").and_then(Value::as_str).unwrap_or_default()
}

fn steps<'a>(sequence: &'a Value, name: &str) -> &'a [Value] {
    sequence.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// By what factor a normaliser shortens a text at most; `None` where nothing bounds it.
fn shrinkage(normalizer: &Value) -> Option<usize> {
    match kind(normalizer) {
        _ if normalizer.is_null() => Some(1),
        "Sequence" => steps(normalizer, "normalizers")
            .iter()
            .try_fold(1usize, |factor, step| Some(factor.saturating_mul(shrinkage(step)?))),
        "Prepend" | "ByteLevel" => Some(1),
        "NFC" | "NFD" | "NFKC" | "NFKD" => Some(NORMAL_FORM),
        "Lowercase" => Some(LOWER_CASE),
        "Replace" => {
            let pattern = normalizer.pointer("/pattern/String")?.as_str()?;
            let content = normalizer.get("content")?.as_str().filter(|content| !content.is_empty())?;
            Some(pattern.len().div_ceil(content.len()).max(1))
        }
        _ => None,
    }
}

/// Whether a pre-tokenizer cuts a text without dropping any of it.
fn keeps_all(pre_tokenizer: &Value) -> bool {
    match kind(pre_tokenizer) {
        _ if pre_tokenizer.is_null() => true,
        "Sequence" => steps(pre_tokenizer, "pretokenizers").iter().all(keeps_all),
        "ByteLevel" | "Metaspace" | "Digits" | "UnicodeScripts" | "FixedLength" => true,
        "Split" | "Punctuation" => pre_tokenizer.get("behavior").and_then(Value::as_str) != Some("Removed"),
        _ => false,
    }
}

/// Whether a step writes each byte as a character of its own.
fn mentions_byte_level(step: &Value) -> bool {
    kind(step) == "ByteLevel"
        || steps(step, "normalizers").iter().chain(steps(step, "pretokenizers")).any(mentions_byte_level)
}

/// Whether each byte has a token, so that no character is dropped or becomes a part of a run of unknown ones.
fn has_token_for_everything(tokenizer: &Tokenizer, in_bytes: bool) -> bool {
    let model = tokenizer.get_model();
    let byte_tokens = || (0..=u8::MAX).all(|byte| model.token_to_id(&format!("<0x{byte:02X}>")).is_some());
    match model {
        ModelWrapper::BPE(bpe) => {
            let each_unknown_alone = |name: &String| !bpe.fuse_unk && model.token_to_id(name).is_some();
            (in_bytes && byte_level_alphabet().all(|character| model.token_to_id(&character.to_string()).is_some()))
                || (bpe.byte_fallback && byte_tokens())
                || bpe.unk_token.as_ref().is_some_and(each_unknown_alone)
        }
        ModelWrapper::Unigram(unigram) => unigram.byte_fallback() && byte_tokens(),
        _ => false,
    }
}

/// The characters that stand for the 256 bytes in byte-level vocabularies: printable ones for themselves, the others
/// from U+0100 on.
fn byte_level_alphabet() -> impl Iterator<Item = char> {
    let printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let others = (0..=u8::MAX).filter(move |byte| !printable(byte)).count() as u32;
    (0..=u8::MAX).filter(printable).map(char::from).chain((0..others).filter_map(|n| char::from_u32(0x100 + n)))
}

/// The bytes of a text that the longest token stands for.
fn longest(tokenizer: &Tokenizer, in_bytes: bool) -> usize {
    let model = tokenizer.get_model();
    let length = |text: String| if in_bytes { text.chars().count() } else { text.len() };
    let ids = 0..u32::try_from(tokenizer.get_vocab_size(true)).unwrap_or(u32::MAX);
    let in_model = ids.filter_map(|id| model.id_to_token(id)).map(length);
    let added = tokenizer.get_added_vocabulary().get_added_tokens_decoder().values().map(|token| token.content.len());
    // A character of four bytes may be one unknown token.
    in_model.chain(added).chain([4]).max().unwrap_or(ASSUMED)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;
    use serde_json::json;

    use super::super::{Special, Tokenizer as Ours};
    use super::*;

    /// A byte-pair tokenizer without merges over a few letters, with `changes` made to it.
    fn tokenizer(changes: &[(&str, Value)]) -> Tokenizer {
        let mut json = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": null, "post_processor": null, "decoder": null,
            "model": { "type": "BPE", "unk_token": "<unk>", "fuse_unk": false, "byte_fallback": false,
                       "vocab": { "<unk>": 0, "a": 1, "b": 2, " ": 3, "ab": 4 }, "merges": ["a b"] },
        });
        for (pointer, value) in changes {
            *json.pointer_mut(pointer).expect("a part of the tokenizer") = value.clone();
        }
        Tokenizer::from_bytes(json.to_string()).unwrap()
    }

    #[test]
    fn only_steps_that_keep_every_character_give_a_bound() {
        let step = |pointer, value: Value| vec![(pointer, value)];
        let replace = |pattern: Value, content: &str| {
            step("/normalizer", json!({ "type": "Replace", "pattern": pattern, "content": content }))
        };
        for (changes, bytes) in [
            (vec![], 5),
            (step("/normalizer", json!({ "type": "NFC" })), 5 * NORMAL_FORM),
            (step("/normalizer", json!({ "type": "Strip", "strip_left": true, "strip_right": true })), ASSUMED),
            (step("/normalizer", json!({ "type": "StripAccents" })), ASSUMED),
            (replace(json!({ "String": "abcd" }), "a"), 20),
            (replace(json!({ "String": "a" }), ""), ASSUMED),
            (replace(json!({ "Regex": " +" }), " "), ASSUMED),
            (step("/pre_tokenizer", json!({ "type": "Whitespace" })), ASSUMED),
            (step("/pre_tokenizer", json!({ "type": "WhitespaceSplit" })), ASSUMED),
            (step("/pre_tokenizer", json!({ "type": "Punctuation", "behavior": "Removed" })), ASSUMED),
            (step("/pre_tokenizer", json!({ "type": "Punctuation", "behavior": "Isolated" })), 5),
            // A run of unknown characters is one token, or none.
            (step("/model/fuse_unk", json!(true)), ASSUMED),
            (step("/model/unk_token", Value::Null), ASSUMED),
        ] {
            let bound = ByteBound::of_hugging_face(&tokenizer(&changes));
            assert_eq!(bound.bytes_per_token, bytes, "{changes:?}");
        }
    }

    #[test]
    fn white_space_that_a_token_swallows_is_not_counted() {
        let added = |normalized: bool| {
            json!([{ "id": 5, "content": "<end>", "single_word": false, "lstrip": false, "rstrip": true,
                     "normalized": normalized, "special": true }])
        };
        let spaces = " ".repeat(10_000);
        for (normalizer, normalized, text, tokens) in [
            (Value::Null, false, format!("{spaces}<end>"), 2001),
            (Value::Null, false, format!("<end>{spaces}"), 1),
            (Value::Null, false, format!("<end>a{spaces}"), 2001),
            (json!({ "type": "Lowercase" }), true, format!("<END>{spaces}a"), 0),
        ] {
            let inner = tokenizer(&[("/normalizer", normalizer), ("/added_tokens", added(normalized))]);
            let bound = ByteBound::of_hugging_face(&inner);
            assert_eq!(bound.min_tokens(&text), tokens);
            assert!(bound.min_tokens(&text) <= inner.encode_fast(text, false).unwrap().len());
        }
    }

    fn opened() -> Vec<(String, Ours)> {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/fixtures");
        let directories = std::fs::read_dir(fixtures).unwrap().map(|entry| entry.unwrap().path());
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo");
        directories
            .chain([demo])
            .filter(|path| path.join("config.json").exists() || path.join("params.json").exists())
            .map(|path| (path.display().to_string(), Ours::open(&path).unwrap()))
            .collect()
    }

    #[test]
    fn no_text_has_fewer_tokens_than_its_bytes_say() {
        let tokenizers = opened();
        assert!(tokenizers.len() > 10);
        let pieces = prop::collection::vec(
            prop::sample::select(vec![
                " ",
                "  ",
                "\n",
                "\t",
                "\u{a0}",
                "\u{3000}",
                "a",
                "the ",
                "e\u{301}",
                "\u{1F389}",
                "\u{2581}",
                "\0",
                "#",
                "7",
                "<s>",
                "</s>",
                "<|assistant|>",
                "<|end|>",
                "<unk>",
                "[INST]",
                "한",
                "ﬁ",
            ]),
            0..40,
        );
        let repeats = 1usize..60;
        let mut runner = proptest::test_runner::TestRunner::default();
        runner
            .run(&(pieces, repeats), |(pieces, repeats)| {
                let text: String = pieces.iter().map(|piece| piece.repeat(repeats)).collect();
                for (name, tokenizer) in &tokenizers {
                    let tokens = tokenizer.encode(&text, Special::Skip).unwrap().len();
                    prop_assert!(tokenizer.min_tokens(&text) <= tokens, "{} {:?}", name, text);
                }
                Ok(())
            })
            .unwrap();
    }

    #[test]
    fn the_tokenizers_of_the_families_have_a_bound() {
        for (name, tokenizer) in opened() {
            let text = "a".repeat(1 << 20);
            assert!(tokenizer.min_tokens(&text) > 20_000, "{name}: {}", tokenizer.min_tokens(&text));
        }
    }
}

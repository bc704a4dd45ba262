//! Words that are not generated. Requests come with their token ids, and vLLM takes texts, which it turns into token ids itself: so a
//! text is sent where that comes to the very words of the request.

use std::collections::BTreeSet;

use kaito_engine::{DecodeOptions, Special, Tokenizer};

/// With more words than this, those of one token are ruled out by their ids at once.
const MANY: usize = 256;

/// How words are told to the engine.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct BadWords {
    /// As texts.
    pub(crate) texts: Vec<String>,
    /// Words of a single token that no text says alone: those are left out of the tokens that are allowed.
    pub(crate) tokens: BTreeSet<u32>,
}

/// Finds out how `words` are told to an engine with this tokenizer.
///
/// # Errors
/// A word that can't be told.
pub(crate) fn told<'a>(tokenizer: &Tokenizer, words: &'a [Vec<u32>]) -> Result<BadWords, &'a [u32]> {
    let wanted: BTreeSet<&[u32]> = words.iter().map(Vec::as_slice).filter(|word| !word.is_empty()).collect();
    let mut covered = BTreeSet::<Vec<u32>>::new();
    let mut told = BadWords::default();
    for word in &wanted {
        if covered.contains(*word) {
            continue;
        }
        if let [token] = word
            && wanted.len() > MANY
        {
            told.tokens.insert(*token);
            continue;
        }
        let text = text_of(tokenizer, word);
        let meant = meant_by(tokenizer, &text);
        let exact = !meant.is_empty() && meant.iter().all(|meant| wanted.contains(meant.as_slice()));
        match word {
            word if exact && meant.iter().any(|meant| meant == word) => {
                covered.extend(meant);
                told.texts.push(text);
            }
            [token] => {
                told.tokens.insert(*token);
            }
            word => return Err(word),
        }
    }
    Ok(told)
}

fn text_of(tokenizer: &Tokenizer, word: &[u32]) -> String {
    let options = DecodeOptions { skip_special_tokens: false, clean_up_tokenization_spaces: false };
    tokenizer.decode(word, options).trim_start().to_owned()
}

/// The words that vLLM makes of a text: its tokens at the beginning of a text, and behind a space where that makes another word of as
/// many tokens.
fn meant_by(tokenizer: &Tokenizer, text: &str) -> Vec<Vec<u32>> {
    if text.is_empty() {
        return Vec::new();
    }
    let encode = |text: &str| tokenizer.encode(text, Special::Skip).ok().filter(|ids| !ids.is_empty());
    let Some(alone) = encode(text) else { return Vec::new() };
    let behind_space = encode(&format!(" {text}"));
    let other = behind_space.filter(|ids| ids.len() == alone.len() && ids.first() != alone.first());
    std::iter::once(alone).chain(other).collect()
}

/// A word that could be completed by tokens of the answer although it begins in the prompt. The reference rules it out, vLLM looks at
/// the answer alone.
pub(crate) fn begun_in_prompt<'a>(prompt: &[u32], words: &'a [Vec<u32>]) -> Option<&'a [u32]> {
    let begun =
        |word: &[u32]| (1..word.len()).any(|count| word.get(..count).is_some_and(|start| prompt.ends_with(start)));
    words.iter().map(Vec::as_slice).find(|word| begun(word))
}

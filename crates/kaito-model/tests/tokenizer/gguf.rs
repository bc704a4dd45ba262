//! Tokenizers of GGUF files, which `tests/gguf/make.py` converted as llama.cpp does: they encode as the tokenizers that they were
//! made of.

use std::fs;
use std::path::{Path, PathBuf};

use kaito_model::tokenizer::{ChatMessage, Special, Tokenizer};
use serde_json::Value;

use crate::{OPTIONS, fixture};

fn gguf(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/gguf/fixtures/tokenizers").join(name)
}

fn open(name: &str) -> Tokenizer {
    Tokenizer::open(&gguf(&format!("{name}.gguf"))).unwrap()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// A tokenizer, that which it was made of, and whether that one always marks a word's start: behind a special token, and before a text
/// that begins with a space. GGUF can't say that it does not.
const MADE_OF: [(&str, &str, bool); 5] = [
    ("llama2", "llama_model_legacy", true),
    ("no-prefix", "llama_model_no_prefix", true),
    ("mistral", "mistral_v03", false),
    ("phi3", "phi3", true),
    ("falcon", "falcon", true),
];

#[test]
fn texts_become_the_tokens_of_the_original() {
    for (name, original, marks) in MADE_OF {
        let tokenizer = open(name);
        let special: Vec<String> = tokenizer.special_ids().iter().filter_map(|&id| tokenizer.token_text(id)).collect();
        let cases = json(&fixture(original).join("cases.json"));
        let mut compared = 0;
        for case in cases["encode"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let may_differ = text.starts_with([' ', '\u{2581}']) || special.iter().any(|token| text.contains(token));
            // Nor can it say that a user-defined token is found in a text whose spaces are marks already.
            if !marks && may_differ || text.contains("<custom>") {
                continue;
            }
            compared += 1;
            assert_eq!(tokenizer.encode(text, Special::Add).unwrap(), ids(&case["ids"]), "{name}: {text:?}");
            assert_eq!(tokenizer.encode(text, Special::Skip).unwrap(), ids(&case["plain"]), "{name}: {text:?}");
            for (options, expected) in OPTIONS.into_iter().zip(case["decoded"].as_array().unwrap()) {
                assert_eq!(
                    tokenizer.decode(&ids(&case["ids"]), options),
                    expected.as_str().unwrap(),
                    "{name}: {text:?}"
                );
            }
        }
        assert!(compared >= 150, "{name}: {compared}");
        assert_eq!(tokenizer.vocab_size() as u64, cases["vocab_size"].as_u64().unwrap(), "{name}");
        assert_eq!(tokenizer.eos_token_id().map(u64::from), cases["eos"].as_u64(), "{name}");
    }
}

#[test]
fn rules_of_byte_level_tokenizers_cut_as_those_of_the_originals() {
    let files = json(&gguf("tokenizers.json"));
    for file in files.as_array().unwrap() {
        let name = file["file"].as_str().unwrap().trim_end_matches(".gguf");
        let tokenizer = open(name);
        let cases = file["encode"].as_array().unwrap();
        assert!(cases.len() > 50, "{name}: {}", cases.len());
        for case in cases {
            let text = case["text"].as_str().unwrap();
            assert_eq!(tokenizer.encode(text, Special::Add).unwrap(), ids(&case["ids"]), "{name}: {text:?}");
        }
    }
}

#[test]
fn conversations_are_rendered_and_end_where_the_file_says() {
    let llama = open("llama2");
    let messages = [ChatMessage { role: "user".to_owned(), content: "Hi".to_owned() }];
    assert_eq!(llama.apply_chat_template(&messages, true).unwrap(), "<|user|>Hi</s>");
    assert_eq!((llama.bos_token_id(), llama.unk_token_id(), llama.pad_token_id()), (Some(1), Some(0), None));
    assert_eq!(llama.end_token_ids(), [2]);
    assert!(!open("falcon").has_chat_template());
    let phi3 = open("phi3");
    assert_eq!((phi3.eos_token_id(), phi3.pad_token_id()), (Some(600), Some(600)));
    let ends: Vec<_> = phi3.end_token_ids().iter().map(|&id| phi3.token_text(id).unwrap()).collect();
    assert_eq!(ends.first().map(String::as_str), Some("<|endoftext|>"), "{ends:?}");
    assert!(ends.iter().any(|end| end == "<|end|>"), "the end of a turn ends an answer: {ends:?}");
}

//! The vocabularies that llama.cpp publishes with its source: tokenizers of real models as GGUF files, and the ids that it gives to some
//! texts. `tests/gguf/vocabularies` fetches them, and names their folder in `VOCABULARIES`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are failures of the test")]

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use kaito_model::tokenizer::{Special, Tokenizer};

/// Those that are read. A name of llama.cpp's rules (`pre`) is in each, but in the two of SentencePiece.
const READ: [&str; 10] =
    ["command-r", "deepseek-coder", "falcon", "gpt-2", "llama-bpe", "llama-spm", "mpt", "phi-3", "refact", "starcoder"];

fn folder() -> PathBuf {
    env::var_os("VOCABULARIES").expect("VOCABULARIES names the folder; tests/gguf/vocabularies sets it").into()
}

/// Texts, and the ids that llama.cpp gives them. Its list of texts has a separator after each one.
fn cases(vocabulary: &Path) -> Vec<(String, Vec<u32>)> {
    let texts = fs::read_to_string(vocabulary.with_extension("gguf.inp")).unwrap();
    let ids = fs::read_to_string(vocabulary.with_extension("gguf.out")).unwrap();
    let texts = texts.strip_suffix("\n__ggml_vocab_test__\n").unwrap().split("\n__ggml_vocab_test__\n");
    let ids = ids.lines().map(|line| line.split_whitespace().map(|id| id.parse().unwrap()).collect());
    let (texts, ids): (Vec<&str>, Vec<Vec<u32>>) = (texts.collect(), ids.collect());
    assert_eq!(texts.len(), ids.len(), "{vocabulary:?}");
    texts.into_iter().map(str::to_owned).zip(ids).collect()
}

#[test]
fn texts_have_the_ids_that_llama_cpp_gives_them() {
    for name in READ {
        let path = folder().join(format!("ggml-vocab-{name}.gguf"));
        let tokenizer = Tokenizer::open(&path).unwrap();
        let cases = cases(&path);
        assert!(cases.len() > 40, "{name}: {} texts", cases.len());
        for (text, ids) in cases {
            assert_eq!(tokenizer.encode(&text, Special::Skip).unwrap(), ids, "{name}: {text:?}");
        }
    }
}

/// Whatever is not read is refused, and the error says what it lacks: nothing is encoded by rules that are only like its own.
#[test]
fn other_vocabularies_are_refused_by_name() {
    let mut refused = 0;
    for entry in fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().trim_start_matches("ggml-vocab-");
        if path.extension().is_none_or(|kind| kind != "gguf") || READ.contains(&name) {
            continue;
        }
        // Some come without texts, so that they can't be compared.
        if path.with_extension("gguf.out").exists() {
            let error = Tokenizer::open(&path).err().unwrap_or_else(|| panic!("{name} is read")).to_string();
            assert!(error.contains("uses the ") && error.contains("not supported"), "{name}: {error}");
            refused += 1;
        }
    }
    assert!(refused > 3, "{refused} were refused");
}

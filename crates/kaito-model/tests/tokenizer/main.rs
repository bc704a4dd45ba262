//! The tokenizer's tests: against the references, on any input, and on damaged files.
#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test they are failures of the test")]

mod chat_templates;
mod conversations;
mod damage;
mod gguf;
mod properties;
mod references;
mod token_bytes;

use std::fs;
use std::path::{Path, PathBuf};

use kaito_model::tokenizer::{DecodeOptions, StreamingDecoder, Tokenizer, sentencepiece};

const HUGGING_FACE: [&str; 8] = [
    "llama2",
    "llama_model_legacy",
    "llama_model_new",
    "llama_model_no_prefix",
    "mistral_v03",
    "metaspace_first",
    "phi3",
    "falcon",
];
const META: [&str; 5] = ["meta_llama", "meta_unused", "meta_unigram", "meta_unigram_bytes", "meta_suffix"];

/// In the order of the lists `decoded` and `rest` of the fixtures.
const OPTIONS: [DecodeOptions; 4] = [
    DecodeOptions { skip_special_tokens: false, clean_up_tokenization_spaces: false },
    DecodeOptions { skip_special_tokens: false, clean_up_tokenization_spaces: true },
    DecodeOptions { skip_special_tokens: true, clean_up_tokenization_spaces: false },
    DecodeOptions { skip_special_tokens: true, clean_up_tokenization_spaces: true },
];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizer").join(name)
}

/// What a streaming decoder gives, in pieces and at the end.
fn streamed(tokenizer: &Tokenizer, prompt: &[u32], new: &[u32], options: DecodeOptions) -> String {
    let mut decoder = StreamingDecoder::new(tokenizer, prompt, options);
    let mut text: String = new.iter().map(|id| decoder.push(*id)).collect();
    text.push_str(&decoder.finish());
    text
}

fn copy_of(name: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture(name)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), directory.path().join(entry.file_name())).unwrap();
    }
    directory
}

/// A tokenizer with Meta's semantics.
fn open_meta(name: &str) -> Tokenizer {
    let model = sentencepiece::Model::parse(&fs::read(fixture(name).join("tokenizer.model")).unwrap()).unwrap();
    Tokenizer::from_sentencepiece(model)
}

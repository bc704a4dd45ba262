//! A SentencePiece model of any bytes: an error, or a model that encodes any text into its own pieces and decodes any ids.
#![no_main]

use kaito_model::tokenizer::sentencepiece::Model;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    let Ok(model) = Model::parse(file) else { return };
    // The file's own texts are what its pieces match.
    for text in ["  Hello\u{2581}w\u{f6}rld \u{1f600}\n", &String::from_utf8_lossy(file)] {
        let ids = model.encode(text);
        assert!(ids.iter().all(|id| (*id as usize) < model.size()), "{ids:?} of {}", model.size());
        model.decode(&ids);
    }
    let all: Vec<u32> = (0..=model.size() as u32).collect();
    model.decode(&all);
});

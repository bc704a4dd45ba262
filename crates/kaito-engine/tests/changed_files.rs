//! Weights are read where they lie in mapped files, so what is done to the files is done to the model.
#![allow(clippy::unwrap_used, reason = "the lints spare test functions, but not their helpers")]

use std::fs;
use std::path::{Path, PathBuf};

use kaito_engine::{LanguageModel, LoadOptions, Quantization, WhatChanged};

fn copy_of(model: &str, folder: &Path) {
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/fixtures").join(model);
    for entry in fs::read_dir(source).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
        }
    }
}

fn append(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    bytes.push(0);
    fs::write(file, bytes).unwrap();
}

#[test]
fn each_file_that_is_read_from_is_watched_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    copy_of("llama-multi-head", folder.path());
    let cache = tempfile::tempdir().unwrap();
    let load = |quantize| {
        let quantized_cache = Some(cache.path().to_owned());
        let options =
            LoadOptions { quantize, quantized_cache, kv_cache_memory: Some(16 << 20), ..LoadOptions::default() };
        LanguageModel::load(folder.path(), &options, &|_| ()).unwrap()
    };
    let weights = folder.path().join("model.safetensors");
    let bytes = fs::metadata(&weights).unwrap().len();
    let (plain, _making) = (load(None), load(Some(Quantization::Int8)));
    let quantized = load(Some(Quantization::Int8));
    assert_eq!((plain.changed_files(), quantized.changed_files()), (vec![], vec![]));

    append(&folder.path().join("config.json"));
    assert_eq!(plain.changed_files(), []);
    append(&weights);
    let [change] = &plain.changed_files()[..] else { panic!("{:?}", plain.changed_files()) };
    assert_eq!((&change.path, &change.what), (&weights, &WhatChanged::Size { before: bytes, now: bytes + 1 }));

    let before = quantized.changed_files();
    assert!(!before.iter().any(|change| change.path.starts_with(cache.path())), "{before:?}");
    let file = fs::read_dir(cache.path()).unwrap().next().unwrap().unwrap().path();
    append(&file);
    assert!(quantized.changed_files().iter().any(|change| change.path == file), "{:?}", quantized.changed_files());
}

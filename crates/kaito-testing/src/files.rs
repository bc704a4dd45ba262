//! Where the models of the tests lie, and copies that a test may spoil.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

/// The root of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// A tiny model of random weights, made by the reference implementation.
pub fn parity_model(name: &str) -> PathBuf {
    repository().join("tests/parity/fixtures").join(name)
}

/// An adapter for one of them, `one` or `two`.
pub fn parity_adapter(model: &str, adapter: &str) -> PathBuf {
    repository().join("tests/parity/adapters").join(model).join(adapter)
}

/// The tiny model for tests to which any will do: in the hub's format, without a chat template.
pub fn tiny_model() -> PathBuf {
    parity_model("mistral-window")
}

/// The tokenizer of the null model, `kaito_engine::testing::NullModel`: 64 tokens, a letter each.
pub fn letters() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/letters")
}

/// Copies the files of a folder into another, which exists.
pub fn copy_files(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    }
}

/// A copy of a folder's files that a test may spoil.
pub fn copy_of(folder: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    copy_files(folder, copy.path());
    copy
}

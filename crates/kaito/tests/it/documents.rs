//! The documents of this repository, and what they print.

use std::fs;

use kaito_testing::files::repository;

/// A file of the repository.
pub fn read(path: &str) -> String {
    fs::read_to_string(repository().join(path)).unwrap()
}

/// The fenced blocks of a document: their languages and texts.
pub fn blocks(markdown: &str) -> Vec<(&str, &str)> {
    markdown.split("```").skip(1).step_by(2).map(|block| block.split_once('\n').unwrap()).collect()
}

/// The texts of the blocks of one language.
pub fn blocks_of<'a>(markdown: &'a str, language: &str) -> Vec<&'a str> {
    blocks(markdown).into_iter().filter(|(of, _)| *of == language).map(|(_, text)| text).collect()
}

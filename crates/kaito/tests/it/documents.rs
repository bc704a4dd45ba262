//! The documents of this repository: what they print, and that the files, headings and tests that they name exist.

use std::{
    fs,
    path::{Path, PathBuf},
};

use kaito_testing::files::repository;

/// A file of the repository.
pub fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    fs::read_to_string(repository().join(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The fenced blocks of a document: their languages and texts.
pub fn blocks(markdown: &str) -> Vec<(&str, &str)> {
    markdown.split("```").skip(1).step_by(2).map(|block| block.split_once('\n').unwrap()).collect()
}

/// The texts of the blocks of one language.
pub fn blocks_of<'a>(markdown: &'a str, language: &str) -> Vec<&'a str> {
    blocks(markdown).into_iter().filter(|(of, _)| *of == language).map(|(_, text)| text).collect()
}

/// Folders of the repository that documents name by their whole path.
const FOLDERS: &[&str] =
    &[".ci/", "bench/", "charts/", "crates/", "docker/", "docs/", "examples/", "fuzz/", "models/", "tests/"];

/// Every document, by its path from the root of the repository.
fn documents() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![PathBuf::new()];
    while let Some(folder) = left.pop() {
        for entry in fs::read_dir(repository().join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let (name, kind) = (entry.file_name().into_string().unwrap(), entry.file_type().unwrap());
            // What is hidden or built belongs to tools.
            if kind.is_dir() && !name.starts_with('.') && name != "target" {
                left.push(folder.join(name));
            } else if kind.is_file() && name.ends_with(".md") {
                found.push(folder.join(name));
            }
        }
    }
    assert!(found.len() > 10, "{found:?}");
    found
}

/// A document without its fenced blocks.
fn prose(markdown: &str) -> String {
    markdown.split("```").step_by(2).collect()
}

/// What stands between backticks.
fn quoted(markdown: &str) -> Vec<String> {
    prose(markdown).split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The anchors of a document's headings.
fn anchors(markdown: &str) -> Vec<String> {
    let headings = prose(markdown);
    let headings = headings.lines().filter(|line| line.starts_with('#'));
    let anchor = |heading: &str| {
        let kept = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
        kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn every_link_leads_somewhere() {
    let mut followed = 0;
    for document in documents() {
        let markdown = read(&document);
        for target in prose(&markdown).split("](").skip(1).filter_map(|rest| rest.split(')').next().map(str::to_owned))
        {
            if target.contains("://") {
                continue;
            }
            followed += 1;
            let (file, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let path = match file {
                "" => document.clone(),
                file => document.parent().unwrap().join(file),
            };
            assert!(repository().join(&path).exists(), "{}: {target} leads nowhere", document.display());
            let known = || anchors(&read(&path));
            assert!(
                anchor.is_empty() || known().iter().any(|known| known == anchor),
                "{}: {target}: no such heading among {:?}",
                document.display(),
                known()
            );
        }
    }
    assert!(followed > 40, "only {followed} links were found");
}

#[test]
fn every_path_that_the_map_of_the_source_names_exists() {
    let mut named = 0;
    for document in ["ARCHITECTURE.md", "CONTRIBUTING.md", "docs/glossary.md"] {
        for path in quoted(&read(Path::new(document))) {
            // A path with a placeholder is one that the reader makes.
            let is_path = FOLDERS.iter().any(|folder| path.starts_with(folder)) && !path.contains(' ');
            if is_path && !path.contains("NAME") {
                named += 1;
                assert!(repository().join(&path).exists(), "{document} names {path}, which does not exist");
            }
        }
    }
    assert!(named > 100, "only {named} paths were found");
}

#[test]
fn every_test_that_a_guide_runs_exists() {
    let mut found = 0;
    for document in ["CONTRIBUTING.md", "tests/parity/README.md"] {
        for command in quoted(&read(Path::new(document))) {
            let words: Vec<&str> = command.split_whitespace().collect();
            let after = |flag: &str| words.windows(2).find(|pair| pair[0] == flag).map(|pair| pair[1]);
            let (Some("cargo"), Some(name)) = (words.first().copied(), after("-p")) else { continue };
            found += 1;
            let folder = repository().join("crates").join(name);
            assert!(folder.join("Cargo.toml").is_file(), "{document}: {command}: no such crate");
            if let Some(test) = after("--test") {
                let files =
                    [format!("{test}.rs"), format!("{test}/main.rs")].map(|file| folder.join("tests").join(file));
                assert!(files.iter().any(|file| file.is_file()), "{document}: {command}: no such test");
            }
        }
    }
    assert!(found >= 5, "only {found} commands were found");
}

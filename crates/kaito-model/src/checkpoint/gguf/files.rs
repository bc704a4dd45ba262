//! Which files a model in GGUF is made of.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use super::super::{CheckpointError, has_other_weights};

const SUFFIX: &str = ".gguf";
/// Digits of the numbers in the name of a part.
const DIGITS: usize = 5;
/// Most models that an error lists.
const LISTED: usize = 8;

/// A file's name: that of its model, and which part of how many it is.
#[derive(Debug, PartialEq, Eq)]
struct Name<'a> {
    model: &'a str,
    part: Option<(usize, usize)>,
}

impl<'a> Name<'a> {
    /// `None` unless the name is that of a GGUF file.
    fn of(name: &'a str) -> Option<Self> {
        let at = name.len().checked_sub(SUFFIX.len())?;
        let (stem, suffix) = name.split_at_checked(at)?;
        if !suffix.eq_ignore_ascii_case(SUFFIX) || stem.is_empty() {
            return None;
        }
        let number = |digits: &str| {
            let is_number = digits.len() == DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit());
            is_number.then(|| digits.parse().ok()).flatten()
        };
        let part = stem.rsplit_once("-of-").and_then(|(rest, count)| {
            let (model, part) = rest.rsplit_once('-')?;
            let (part, count): (usize, usize) = (number(part)?, number(count)?);
            (part >= 1 && part <= count && !model.is_empty()).then_some(Self { model, part: Some((part, count)) })
        });
        Some(part.unwrap_or(Self { model: stem, part: None }))
    }

    /// The names of all parts.
    fn all(&self, name: &str) -> Vec<String> {
        match self.part {
            None => vec![name.to_owned()],
            Some((_, count)) => {
                (1..=count).map(|part| format!("{}-{part:05}-of-{count:05}{SUFFIX}", self.model)).collect()
            }
        }
    }
}

/// What a model in a GGUF file is called, by the file's name: `name` without ending and number of the part.
pub fn model_name(name: &str) -> Option<&str> {
    Name::of(name).map(|name| name.model)
}

/// The files of the model at `path`, in order: a GGUF file, with the other parts where it is one of several, or the only GGUF model
/// in a directory. `None` where `path` is a directory with weights in another format, or without any.
///
/// # Errors
/// For a file that is no GGUF file by its name, parts that are missing, and a directory with several models.
pub fn find(path: &Path) -> Result<Option<Vec<PathBuf>>, CheckpointError> {
    if path.is_dir() {
        return if has_other_weights(path) { Ok(None) } else { only_model(path) };
    }
    let not_a_model = || CheckpointError::NotADirectory { path: path.to_owned() };
    let file_name = path.file_name().and_then(|name| name.to_str()).ok_or_else(not_a_model)?;
    if !path.is_file() {
        return Err(not_a_model());
    }
    let name = Name::of(file_name).ok_or_else(not_a_model)?;
    all_parts(path.parent().unwrap_or(Path::new("")), &name, file_name).map(Some)
}

fn only_model(dir: &Path) -> Result<Option<Vec<PathBuf>>, CheckpointError> {
    let io = |source| CheckpointError::Io { path: dir.to_owned(), source };
    // By model and number of parts: one file of each.
    let mut models = BTreeMap::new();
    for entry in fs::read_dir(dir).map_err(io)? {
        let file_name = entry.map_err(io)?.file_name();
        let Some(file_name) = file_name.to_str() else { continue };
        if let Some(name) = Name::of(file_name).filter(|_| dir.join(file_name).is_file()) {
            models.insert((name.model.to_owned(), name.part.map(|(_, count)| count)), file_name.to_owned());
        }
    }
    let Some(first) = models.values().next() else { return Ok(None) };
    if models.len() > 1 {
        let mut listed = models.values().take(LISTED).cloned().collect::<Vec<_>>().join(", ");
        if models.len() > LISTED {
            listed.push_str(", ...");
        }
        return Err(CheckpointError::SeveralModels { dir: dir.to_owned(), count: models.len(), listed });
    }
    let name = Name::of(first).unwrap_or(Name { model: first, part: None });
    all_parts(dir, &name, first).map(Some)
}

fn all_parts(dir: &Path, name: &Name, file_name: &str) -> Result<Vec<PathBuf>, CheckpointError> {
    let names = name.all(file_name);
    match names.iter().find(|name| !dir.join(name).is_file()) {
        Some(missing) => {
            Err(CheckpointError::MissingPart { dir: dir.to_owned(), parts: names.len(), missing: missing.clone() })
        }
        None => Ok(names.into_iter().map(|name| dir.join(name)).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_which_part_a_file_is() {
        for (name, expected) in [
            ("a.gguf", Some(("a", None))),
            ("a.Q4_K_M.GGUF", Some(("a.Q4_K_M", None))),
            ("a-00002-of-00003.gguf", Some(("a", Some((2, 3))))),
            ("a-00004-of-00003.gguf", Some(("a-00004-of-00003", None))),
            ("a-2-of-3.gguf", Some(("a-2-of-3", None))),
            ("-00001-of-00001.gguf", Some(("-00001-of-00001", None))),
            (".gguf", None),
            ("a.bin", None),
            ("é", None),
        ] {
            assert_eq!(Name::of(name), expected.map(|(model, part)| Name { model, part }), "{name}");
        }
    }

    #[test]
    fn a_path_is_a_file_its_parts_or_the_only_model_of_a_directory() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        let write = |name: &str| fs::write(dir.join(name), "").unwrap();
        let found = |path: &Path| {
            find(path).map_err(|error| error.to_string().replace(&dir.display().to_string(), "DIR")).map(|files| {
                let name = |path: PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
                files.map(|files| files.into_iter().map(name).collect::<Vec<_>>())
            })
        };
        let names = |names: &[&str]| Ok(Some(names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>()));
        assert_eq!(found(dir), Ok(None));
        assert_eq!(found(&dir.join("no.gguf")), Err("DIR/no.gguf is neither a directory nor a GGUF file".to_owned()));
        write("config.json");
        let other = Err("DIR/config.json is neither a directory nor a GGUF file".to_owned());
        assert_eq!(found(&dir.join("config.json")), other);
        write("m-00001-of-00002.gguf");
        let missing = Err("DIR: m-00002-of-00002.gguf is missing, one of the 2 parts of a model".to_owned());
        assert_eq!(found(dir), missing);
        write("m-00002-of-00002.gguf");
        let both = names(&["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]);
        assert_eq!((found(dir), found(&dir.join("m-00002-of-00002.gguf"))), (both.clone(), both));
        write("n.gguf");
        assert_eq!(found(&dir.join("n.gguf")), names(&["n.gguf"]));
        let several = found(dir).unwrap_err();
        assert_eq!(several, "DIR holds 2 models in GGUF files (m-00002-of-00002.gguf, n.gguf): give the file of one");
        write("model.safetensors");
        assert_eq!(found(dir), Ok(None));
    }
}

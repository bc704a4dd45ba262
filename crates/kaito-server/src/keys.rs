//! API keys: given at the start, and read from a file that is followed as it changes.

use std::convert::Infallible;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use subtle::{Choice, ConstantTimeEq};

use crate::followed::{self, Followed, Source};

/// Largest file of keys, in bytes.
const MAX_FILE: u64 = 64 << 10;

/// Why something is no key, or a file has none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// There is none.
    #[error("there is no API key in it")]
    Empty,
    /// It has a character that no header may have, or that clients encode in several ways.
    #[error(
        "API key {number} has the character {found:?} in it; a header can carry a key of letters, digits, signs and spaces of \
         ASCII alone"
    )]
    Character {
        /// Which of several, from 1.
        number: usize,
        /// The character.
        found: char,
    },
    /// The file cannot be read.
    #[error("the file of API keys {} cannot be read: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// What the file holds is no key.
    #[error("in the file of API keys {}: {source}", path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong there.
        source: Box<KeyError>,
    },
}

/// A secret that clients show, as `Authorization: Bearer KEY` for one. It never appears in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

impl ApiKey {
    /// The keys of a text: one a line, or several with commas between them. White space around them is no part of them.
    ///
    /// # Errors
    /// [`KeyError::Empty`] and [`KeyError::Character`].
    pub fn parse_all(text: &str) -> Result<Vec<Self>, KeyError> {
        let parts = text.split([',', '\n', '\r']).map(str::trim).filter(|key| !key.is_empty());
        let keys: Vec<Self> =
            parts.enumerate().map(|(index, key)| Self::new(key, index + 1)).collect::<Result<_, _>>()?;
        if keys.is_empty() { Err(KeyError::Empty) } else { Ok(keys) }
    }

    fn new(key: &str, number: usize) -> Result<Self, KeyError> {
        match key.chars().find(|c| !matches!(c, '\t' | ' '..='~')) {
            Some(found) => Err(KeyError::Character { number, found }),
            None => Ok(Self(key.to_owned())),
        }
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(..)")
    }
}

/// All keys of a server. Any of them will do, so that one can follow another without a moment in which neither does.
#[derive(Debug, Clone, Default)]
pub struct ApiKeys {
    given: Vec<ApiKey>,
    file: Option<Arc<Followed<KeyFile>>>,
}

impl ApiKeys {
    /// The keys `given` and, if there is a file, those in it, which are read again whenever it changes.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn new(given: Vec<ApiKey>, file: Option<&Path>) -> Result<Self, KeyError> {
        let file = file.map(|path| Followed::open(KeyFile(path.to_owned()))).transpose()?;
        Ok(Self { given, file: file.map(Arc::new) })
    }

    /// Whether anybody needs a key.
    pub fn are_asked_for(&self) -> bool {
        !self.given.is_empty() || self.file.is_some()
    }

    /// Whether `offered` is one of the keys. Takes the same time whichever it is, and wherever it differs from them.
    pub(crate) fn accept(&self, offered: &[u8]) -> bool {
        let read = self.file.as_ref().map(|file| file.value());
        let all = self.given.iter().chain(read.iter().flat_map(|keys| keys.iter()));
        all.fold(Choice::from(0), |found, key| found | key.0.as_bytes().ct_eq(offered)).into()
    }

    /// Reads the file again whenever it changes.
    pub(crate) async fn follow(self) -> Infallible {
        match self.file {
            Some(file) => file.follow().await,
            None => std::future::pending().await,
        }
    }
}

/// A file of keys.
#[derive(Debug)]
struct KeyFile(PathBuf);

impl Source for KeyFile {
    type Value = Vec<ApiKey>;
    type Error = KeyError;

    fn read(&self) -> Result<Vec<ApiKey>, KeyError> {
        let Self(path) = self;
        let unreadable = |reason: String| KeyError::Unreadable { path: path.to_owned(), reason };
        let bytes = followed::read_file(path, MAX_FILE).map_err(|error| unreadable(error.to_string()))?;
        let text = String::from_utf8(bytes).map_err(|_| unreadable("stream did not contain valid UTF-8".to_owned()))?;
        ApiKey::parse_all(&text).map_err(|source| KeyError::InFile { path: path.to_owned(), source: source.into() })
    }

    fn log_taken(&self, keys: &Vec<ApiKey>) {
        tracing::info!(file = %self.0.display(), keys = keys.len(), "the file of API keys was read again");
    }

    fn log_kept(&self, keys: &Vec<ApiKey>, error: &KeyError) {
        tracing::warn!(%error, keys = keys.len(), "the API keys that were read before stay");
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::followed::LOOK_EVERY;

    fn all(text: &str) -> Result<Vec<String>, KeyError> {
        ApiKey::parse_all(text).map(|keys| keys.into_iter().map(|key| key.0).collect())
    }

    #[test]
    fn keys_stand_in_lines_or_between_commas_and_a_newline_is_no_part_of_one() {
        for (text, keys) in [
            ("secret", &["secret"][..]),
            ("secret\n", &["secret"]),
            ("secret\r\n", &["secret"]),
            ("  secret\t", &["secret"]),
            ("old, new", &["old", "new"]),
            ("old\nnew\n\n", &["old", "new"]),
            (",,a,,\r\n,b", &["a", "b"]),
            ("with a space", &["with a space"]),
            ("!\"#$%&'()*+-./:;<=>?@[\\]^_`{|}~", &["!\"#$%&'()*+-./:;<=>?@[\\]^_`{|}~"]),
        ] {
            assert_eq!(all(text).unwrap(), keys, "{text:?}");
        }
        for text in ["", " ", "\n", ",", " , \n\r\n"] {
            assert_eq!(all(text), Err(KeyError::Empty), "{text:?}");
        }
    }

    #[test]
    fn a_key_that_no_header_can_carry_is_refused_without_being_shown() {
        for (text, number, found) in [
            ("a\0b", 1, '\0'),
            ("a, sch\u{fc}ssel", 2, 'ü'),
            ("a\x1b", 1, '\x1b'),
            ("a\u{7f}", 1, '\u{7f}'),
            ("\u{200b}", 1, '\u{200b}'),
        ] {
            assert_eq!(all(text), Err(KeyError::Character { number, found }), "{text:?}");
        }
        assert!(!all("secret, \u{fc}").unwrap_err().to_string().contains("secret"));
    }

    #[test]
    fn any_of_the_keys_will_do() {
        let keys = ApiKeys::new(ApiKey::parse_all("old, new").unwrap(), None).unwrap();
        for (offered, accepted) in
            [("old", true), ("new", true), ("ol", false), ("old, new", false), ("", false), ("neww", false)]
        {
            assert_eq!(keys.accept(offered.as_bytes()), accepted, "{offered:?}");
        }
        assert!(!ApiKeys::default().are_asked_for());
        assert!(!ApiKeys::default().accept(b""));
    }

    #[test]
    fn a_file_without_a_key_is_refused_at_the_start() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let open = || ApiKeys::new(Vec::new(), Some(&path)).map(|_| ()).unwrap_err().to_string();
        for (content, part) in
            [(None, "cannot be read"), (Some("\n"), "there is no API key in it"), (Some("a\nb\x07c"), "API key 2")]
        {
            if let Some(content) = content {
                fs::write(&path, content).unwrap();
            }
            let error = open();
            assert!(error.contains(part) && error.contains(path.to_str().unwrap()), "{error}");
        }
        fs::write(&path, "x".repeat(MAX_FILE as usize + 1)).unwrap();
        assert!(open().contains("more than 65536 bytes"), "{}", open());
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(open().contains("not a regular file"), "{}", open());
    }

    /// Time stands still but for the sleeps, so the test waits for no clock.
    #[tokio::test(start_paused = true)]
    async fn a_file_is_read_again_and_what_is_no_file_of_keys_changes_nothing() {
        type Deed = fn(&Path);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        fs::write(&path, "first\n").unwrap();
        let keys = ApiKeys::new(ApiKey::parse_all("given").unwrap(), Some(&path)).unwrap();
        tokio::spawn(keys.clone().follow());
        for (deed, accepted, refused) in [
            ((|_| {}) as Deed, &["given", "first"][..], &["second"][..]),
            (|path| fs::write(path, "first\nsecond").unwrap(), &["given", "first", "second"], &[]),
            (|path| fs::write(path, "").unwrap(), &["given", "first", "second"], &[]),
            (|path| fs::write(path, "third\n\x07").unwrap(), &["given", "first", "second"], &["third"]),
            (|path| fs::remove_file(path).unwrap(), &["given", "first", "second"], &[]),
            (|path| fs::create_dir(path).unwrap(), &["given", "first", "second"], &[]),
            (
                // As Kubernetes changes what it mounts.
                |path| {
                    fs::remove_dir(path).unwrap();
                    let next = path.with_extension("next");
                    fs::write(&next, "third").unwrap();
                    std::os::unix::fs::symlink(&next, path.with_extension("link")).unwrap();
                    fs::rename(path.with_extension("link"), path).unwrap();
                },
                &["given", "third"],
                &["first", "second"],
            ),
        ] {
            deed(&path);
            // Several looks, which other threads take part in.
            for _ in 0..20 {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            for key in accepted {
                assert!(keys.accept(key.as_bytes()), "{key}");
            }
            for key in refused {
                assert!(!keys.accept(key.as_bytes()), "{key}");
            }
        }
    }
}

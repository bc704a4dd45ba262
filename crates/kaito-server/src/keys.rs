//! API keys: given at the start, and read from a file that is followed as it changes.

use std::convert::Infallible;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use subtle::{Choice, ConstantTimeEq};

/// Largest file of keys, in bytes.
const MAX_FILE: u64 = 64 << 10;
/// How often the file is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long the file must stay as it is before it counts, so that half-written keys are not taken.
const SETTLED: Duration = Duration::from_millis(100);

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

/// A secret that clients show as `Authorization: Bearer KEY`. It never appears in logs.
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
    file: Option<Arc<KeyFile>>,
}

impl ApiKeys {
    /// The keys `given` and, if there is a file, those in it, which are read again whenever it changes.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn new(given: Vec<ApiKey>, file: Option<&Path>) -> Result<Self, KeyError> {
        Ok(Self { given, file: file.map(KeyFile::open).transpose()?.map(Arc::new) })
    }

    /// Whether anybody needs a key.
    pub fn are_asked_for(&self) -> bool {
        !self.given.is_empty() || self.file.is_some()
    }

    /// Whether `offered` is one of the keys. Takes the same time whichever it is, and wherever it differs from them.
    pub(crate) fn accept(&self, offered: &[u8]) -> bool {
        let read = self.file.as_ref().map(|file| file.keys());
        let all = self.given.iter().chain(read.iter().flat_map(|keys| keys.iter()));
        all.fold(Choice::from(0), |found, key| found | key.0.as_bytes().ct_eq(offered)).into()
    }

    /// Reads the file again whenever it changes.
    pub(crate) async fn follow(self) -> Infallible {
        let Some(file) = self.file else { return std::future::pending().await };
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let Some(first) = read_aside(&file).await else { continue };
            if file.is_news(&first) {
                tokio::time::sleep(SETTLED).await;
                if read_aside(&file).await.as_ref() == Some(&first) {
                    file.take(first);
                }
            }
        }
    }
}

/// A disk may take its time.
async fn read_aside(file: &Arc<KeyFile>) -> Option<Result<Vec<ApiKey>, KeyError>> {
    let file = Arc::clone(file);
    tokio::task::spawn_blocking(move || read(&file.path)).await.ok()
}

#[derive(Debug)]
struct KeyFile {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    keys: Arc<[ApiKey]>,
    /// What the log has been told is wrong with the file.
    trouble: Option<KeyError>,
}

impl KeyFile {
    fn open(path: &Path) -> Result<Self, KeyError> {
        let keys = read(path)?.into();
        Ok(Self { path: path.to_owned(), state: Mutex::new(State { keys, trouble: None }) })
    }

    fn keys(&self) -> Arc<[ApiKey]> {
        Arc::clone(&self.state.lock().unwrap_or_else(PoisonError::into_inner).keys)
    }

    fn is_news(&self, read: &Result<Vec<ApiKey>, KeyError>) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match read {
            Ok(keys) => **keys != *state.keys || state.trouble.is_some(),
            Err(error) => state.trouble.as_ref() != Some(error),
        }
    }

    fn take(&self, read: Result<Vec<ApiKey>, KeyError>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match read {
            Ok(keys) => {
                tracing::info!(file = %self.path.display(), keys = keys.len(), "the file of API keys was read again");
                *state = State { keys: keys.into(), trouble: None };
            }
            Err(error) => {
                tracing::warn!(%error, keys = state.keys.len(), "the API keys that were read before stay");
                state.trouble = Some(error);
            }
        }
    }
}

fn read(path: &Path) -> Result<Vec<ApiKey>, KeyError> {
    let unreadable = |reason: String| KeyError::Unreadable { path: path.to_owned(), reason };
    let text = read_text(path).map_err(|error| unreadable(error.to_string()))?;
    if text.len() as u64 > MAX_FILE {
        return Err(unreadable(format!("it has more than {MAX_FILE} bytes")));
    }
    ApiKey::parse_all(&text).map_err(|source| KeyError::InFile { path: path.to_owned(), source: source.into() })
}

fn read_text(path: &Path) -> io::Result<String> {
    // To open a pipe would wait for its other end.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut text = String::new();
    File::open(path)?.take(MAX_FILE + 1).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

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

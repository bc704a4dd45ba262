//! Values that are read from files at the start, and again whenever the files change.

use std::convert::Infallible;
use std::fmt::{self, Display};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How often the files are looked at.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long they must stay as they are before they count, so that what is half written is not taken.
const SETTLED: Duration = Duration::from_millis(100);

/// Files with a value in them.
pub(crate) trait Source: Send + Sync + 'static {
    /// What they hold.
    type Value: PartialEq + Send + Sync + 'static;
    /// Why they hold none.
    type Error: PartialEq + Display + Send + 'static;

    /// Reads them. May wait for a disk.
    fn read(&self) -> Result<Self::Value, Self::Error>;

    /// Tells the log that `value` counts from now on.
    fn log_taken(&self, value: &Self::Value);

    /// Tells the log that `value`, which was read before, stays.
    fn log_kept(&self, value: &Self::Value, error: &Self::Error);
}

/// The latest value of a source.
pub(crate) struct Followed<S: Source> {
    source: S,
    state: Mutex<State<S>>,
}

struct State<S: Source> {
    value: Arc<S::Value>,
    /// What the log has been told is wrong with the files.
    trouble: Option<S::Error>,
}

impl<S: Source> fmt::Debug for Followed<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Followed").finish_non_exhaustive()
    }
}

impl<S: Source> Followed<S> {
    /// Reads the files for the first time.
    pub(crate) fn open(source: S) -> Result<Self, S::Error> {
        let value = Arc::new(source.read()?);
        Ok(Self { source, state: Mutex::new(State { value, trouble: None }) })
    }

    /// What counts now.
    pub(crate) fn value(&self) -> Arc<S::Value> {
        Arc::clone(&self.state.lock().unwrap_or_else(PoisonError::into_inner).value)
    }

    /// Reads the files again whenever they change.
    pub(crate) async fn follow(self: Arc<Self>) -> Infallible {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let Some(first) = self.read_aside().await else { continue };
            if self.is_news(&first) {
                tokio::time::sleep(SETTLED).await;
                if self.read_aside().await.as_ref() == Some(&first) {
                    self.take(first);
                }
            }
        }
    }

    /// A disk may take its time.
    async fn read_aside(self: &Arc<Self>) -> Option<Result<S::Value, S::Error>> {
        let followed = Arc::clone(self);
        tokio::task::spawn_blocking(move || followed.source.read()).await.ok()
    }

    fn is_news(&self, read: &Result<S::Value, S::Error>) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match read {
            Ok(value) => *value != *state.value || state.trouble.is_some(),
            Err(error) => state.trouble.as_ref() != Some(error),
        }
    }

    fn take(&self, read: Result<S::Value, S::Error>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match read {
            Ok(value) => {
                self.source.log_taken(&value);
                *state = State { value: Arc::new(value), trouble: None };
            }
            Err(error) => {
                self.source.log_kept(&state.value, &error);
                state.trouble = Some(error);
            }
        }
    }
}

/// The bytes of a file that has at most `limit`.
pub(crate) fn read_file(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    // To open a pipe would wait for its other end.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::other(format!("it has more than {limit} bytes")));
    }
    Ok(bytes)
}

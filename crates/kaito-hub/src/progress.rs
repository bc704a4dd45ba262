use std::time::Duration;

/// Told what a download is doing. Called from several threads at once.
pub trait Progress: Sync {
    /// Something happened.
    fn event(&self, event: Event<'_>);
}

impl<F: Fn(Event<'_>) + Sync> Progress for F {
    fn event(&self, event: Event<'_>) {
        self(event);
    }
}

/// A file that has to be fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedFile {
    /// Its name in the repository.
    pub name: String,
    /// Its length in bytes, where the hub tells.
    pub size: Option<u64>,
}

/// What a download is doing. `file` is an index into the planned files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<'a> {
    /// These files are about to be fetched; what the cache has already is not among them.
    Planned {
        /// In the order of their names.
        files: &'a [PlannedFile],
    },
    /// The file has this many bytes now. Goes back when a file has to be started anew.
    Position {
        /// Which file.
        file: usize,
        /// Its length so far, bytes of earlier downloads included.
        bytes: u64,
    },
    /// Another process is fetching the same file; this one waits for it.
    Waiting {
        /// Which file.
        file: usize,
    },
    /// A request failed and will be made again.
    Retrying {
        /// What went wrong.
        cause: &'a str,
        /// After this time.
        delay: Duration,
    },
    /// The file is complete, checked and in its place.
    Finished {
        /// Which file.
        file: usize,
    },
}

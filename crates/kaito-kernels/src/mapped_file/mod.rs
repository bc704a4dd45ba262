#[cfg(unix)]
mod bus_error;

use std::{
    fmt,
    fs::{File, Metadata},
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// A file mapped read-only into memory.
///
/// Its bytes are what the file holds at the moment of reading, so no process may write to it while it is mapped, and reading beyond
/// the end of a truncated file ends this process. Weights are published once and not edited: a new version is another file,
/// which may be renamed into the place of this one. If a file is edited all the same, [`MappedFile::change`] says so, and if the
/// process ends for it, its last line on stderr names the file.
#[derive(Debug)]
pub struct MappedFile {
    map: memmap2::Mmap,
    /// Kept open, since the path may by now name another file.
    file: File,
    path: PathBuf,
    opened: State,
    #[cfg(unix)]
    _named: Option<bus_error::Named>,
}

/// By what a changed file is recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    len: u64,
    modified: Option<SystemTime>,
}

impl State {
    fn of(metadata: &Metadata) -> Self {
        Self { len: metadata.len(), modified: metadata.modified().ok() }
    }
}

/// What happened to a file while it was mapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileChange {
    /// The path that it was opened by.
    pub path: PathBuf,
    /// What happened to it.
    pub what: WhatChanged,
}

/// What happened to a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WhatChanged {
    /// It is shorter or longer than it was.
    Size {
        /// Bytes when it was mapped.
        before: u64,
        /// Bytes now.
        now: u64,
    },
    /// It was written to.
    Contents,
    /// The system no longer says, for this reason.
    Unknown(String),
}

impl fmt::Display for FileChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match &self.what {
            WhatChanged::Size { before, now } => {
                write!(f, "{path} had {before} bytes when it was loaded and has {now} now")
            }
            WhatChanged::Contents => write!(f, "{path} was written to after it was loaded"),
            WhatChanged::Unknown(reason) => write!(f, "{path} cannot be looked at any more: {reason}"),
        }
    }
}

impl MappedFile {
    /// Maps `path`. An empty file maps to an empty slice.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let opened = State::of(&file.metadata()?);
        // SAFETY: the map is read-only and private; see the type's contract on files that are edited.
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Ok(Self {
            #[cfg(unix)]
            _named: bus_error::Named::new(path, &map),
            map,
            file,
            path: path.to_owned(),
            opened,
        })
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// When the file was last written, where the system knows.
    pub fn modified(&self) -> Option<SystemTime> {
        self.opened.modified
    }

    /// What happened to the file since it was mapped: to the mapped one, wherever it is by now. To remove it, or to rename
    /// another into its place, is no change.
    pub fn change(&self) -> Option<FileChange> {
        let changed = |what| Some(FileChange { path: self.path.clone(), what });
        match self.file.metadata() {
            Err(error) => changed(WhatChanged::Unknown(error.to_string())),
            Ok(metadata) => match State::of(&metadata) {
                now if now.len != self.opened.len => {
                    changed(WhatChanged::Size { before: self.opened.len, now: now.len })
                }
                now if now.modified != self.opened.modified => changed(WhatChanged::Contents),
                _ => None,
            },
        }
    }

    /// Takes a range out of this process's memory. The next use of it waits for its pages, which come from the page cache
    /// or from the disk. A range beyond the end is cut.
    pub fn release(&self, offset: usize, len: usize) {
        let Some(rest) = self.map.get(offset..) else { return };
        let len = len.min(rest.len());
        // SAFETY: the pages of a read-only map are the file's: what comes back is what was there.
        #[cfg(unix)]
        let _ = unsafe { self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, offset, len) };
    }

    /// Reads a range into memory and enters its pages in the process's page table, so that their first use does not wait.
    /// A range beyond the end is cut. What can't be read is no error here; its first use ends the process.
    pub fn populate(&self, offset: usize, len: usize) {
        let Some(rest) = self.map.get(offset..) else { return };
        let range = &rest[..len.min(rest.len())];
        #[cfg(target_os = "linux")]
        if self.map.advise_range(memmap2::Advice::PopulateRead, offset, range.len()).is_ok() {
            return;
        }
        // Kernels before 5.14 and other systems: a byte of each page is enough.
        const SMALLEST_PAGE: usize = 4096;
        for page in range.chunks(SMALLEST_PAGE) {
            std::hint::black_box(page[0]);
        }
    }
}

#[cfg(test)]
mod tests;

use std::{fs::File, io, path::Path};

/// A file mapped read-only into memory.
///
/// The file must not be truncated while it is mapped: reading past its new end ends the process. Weight files are
/// published once and not edited, so this is the usual contract of every server that maps them.
#[derive(Debug)]
pub struct MappedFile {
    map: memmap2::Mmap,
}

impl MappedFile {
    /// Maps `path`. An empty file maps to an empty slice.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: the map is read-only and private; see the type's contract on truncation.
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Ok(Self { map })
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }
}

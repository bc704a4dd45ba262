use std::{fs::File, io, path::Path, time::SystemTime};

/// A file mapped read-only into memory.
///
/// The file must not be truncated while it is mapped: reading past its new end ends the process. Weight files are
/// published once and not edited, so this is the usual contract of every server that maps them.
#[derive(Debug)]
pub struct MappedFile {
    map: memmap2::Mmap,
    modified: Option<SystemTime>,
}

impl MappedFile {
    /// Maps `path`. An empty file maps to an empty slice.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let modified = file.metadata()?.modified().ok();
        // SAFETY: the map is read-only and private; see the type's contract on truncation.
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Ok(Self { map, modified })
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// When the file was last written, where the system tells.
    pub fn modified(&self) -> Option<SystemTime> {
        self.modified
    }

    /// Takes a range out of this process's memory: whoever uses it again waits for its pages, which come from the page cache
    /// or from the disk. A range beyond the end is cut.
    pub fn release(&self, offset: usize, len: usize) {
        let Some(rest) = self.map.get(offset..) else { return };
        let len = len.min(rest.len());
        // SAFETY: the pages of a read-only map are the file's: what comes back is what was there.
        #[cfg(unix)]
        let _ = unsafe { self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, offset, len) };
    }

    /// Reads a range into memory and enters its pages in the page table, so that the first use of them waits for nothing.
    /// A range beyond the end is cut; what can't be read here shows when it is used.
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
mod tests {
    use super::*;

    #[test]
    fn ranges_beyond_the_end_are_populated_and_released_as_far_as_they_go() {
        let path = std::env::temp_dir().join(format!("kaito-populate-{}", std::process::id()));
        let content: Vec<u8> = (0..10_000u32).map(|at| at as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let file = MappedFile::open(&path).unwrap();
        for (offset, len) in [(0, 0), (0, 10_000), (4097, 1), (9_999, usize::MAX), (10_000, 5), (usize::MAX, 1)] {
            file.populate(offset, len);
            file.release(offset, len);
        }
        assert_eq!(file.bytes(), content);
        std::fs::remove_file(&path).unwrap();
    }
}

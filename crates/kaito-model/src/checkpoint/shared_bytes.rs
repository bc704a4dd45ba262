use std::{ops::Range, sync::Arc};

use kaito_kernels::{MappedFile, ThreadPool};

/// A range of a mapped file, or memory of its own; cheap to clone.
#[derive(Clone)]
pub struct SharedBytes {
    source: Source,
    range: Range<usize>,
}

#[derive(Clone)]
enum Source {
    Mapped(Arc<MappedFile>),
    Owned(Arc<Vec<u8>>),
}

impl SharedBytes {
    /// Memory of its own.
    pub fn owned(bytes: Vec<u8>) -> Self {
        Self { range: 0..bytes.len(), source: Source::Owned(Arc::new(bytes)) }
    }

    /// `None` unless `range` lies in the file.
    pub fn mapped(file: Arc<MappedFile>, range: Range<usize>) -> Option<Self> {
        file.bytes().get(range.clone())?;
        Some(Self { source: Source::Mapped(file), range })
    }

    /// How many bytes.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.source {
            Source::Mapped(file) => &file.bytes()[self.range.clone()],
            Source::Owned(bytes) => &bytes[self.range.clone()],
        }
    }

    /// The file that the bytes lie in.
    pub fn file(&self) -> Option<&Arc<MappedFile>> {
        match &self.source {
            Source::Mapped(file) => Some(file),
            Source::Owned(_) => None,
        }
    }

    /// `range` within these bytes, which it must lie in.
    pub fn slice(&self, range: Range<usize>) -> Self {
        debug_assert!(range.start <= range.end && range.end <= self.len());
        Self { source: self.source.clone(), range: self.range.start + range.start..self.range.start + range.end }
    }

    /// Brings mapped bytes into memory with all threads of `pool`, so that their first use waits for nothing.
    pub fn populate(&self, pool: &ThreadPool) {
        const PIECE: usize = 16 << 20;
        if let Some(file) = self.file() {
            pool.for_each(self.len().div_ceil(PIECE), &|piece| {
                let start = self.range.start + piece * PIECE;
                file.populate(start, PIECE.min(self.range.end - start));
            });
        }
    }

    /// Takes mapped bytes that nobody will use soon out of this process's memory.
    pub fn release(&self) {
        if let Some(file) = self.file() {
            file.release(self.range.start, self.len());
        }
    }
}

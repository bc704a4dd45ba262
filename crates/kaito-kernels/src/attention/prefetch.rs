//! Software prefetch of the KV block that comes next, while one is computed.

use std::ops::Range;

use super::{MAX_BLOCK_PAGES, PagedHeads};
use crate::simd::{CACHE_LINE, STREAMS, Simd};

/// Bytes that [`Prefetch::next`] asks for at once.
pub(super) const PREFETCHED_BYTES: usize = STREAMS * CACHE_LINE;

/// The cache lines of a block's keys and values, still to be prefetched in [`STREAMS`] streams.
pub(super) struct Prefetch {
    /// Where the pages of keys begin, then those of values.
    pages: [*const u8; 2 * MAX_BLOCK_PAGES],
    count: usize,
    page_bytes: usize,
    /// Pages of a stream.
    stream_pages: usize,
    /// Where all streams are: at a page of their own, which begins at one of `starts`, and a place in it.
    page: usize,
    starts: [*const u8; STREAMS],
    place: usize,
}

impl Prefetch {
    /// All lines of `pages`, each of `page_bytes` bytes.
    pub(super) fn new<E>(keys: &PagedHeads<E>, values: &PagedHeads<E>, pages: Range<usize>, page_bytes: usize) -> Self {
        let keys = pages.clone().map(|page| keys.start_of(page));
        Self::of(keys.chain(pages.map(|page| values.start_of(page))), page_bytes)
    }

    fn of(starts: impl Iterator<Item = *const u8>, page_bytes: usize) -> Self {
        let mut pages = [std::ptr::null(); 2 * MAX_BLOCK_PAGES];
        let count = pages.iter_mut().zip(starts).map(|(page, start)| *page = start).count();
        let stream_pages = count.div_ceil(STREAMS);
        let mut prefetch =
            Self { pages, count, page_bytes, stream_pages, page: 0, starts: [pages[0]; STREAMS], place: 0 };
        prefetch.begin_pages();
        prefetch
    }

    /// Prefetches the next line of each stream, if there is one.
    #[inline(always)]
    pub(super) fn next<S: Simd>(&mut self, simd: S) {
        if self.page == self.stream_pages {
            return;
        }
        for start in self.starts {
            simd.prefetch(start.wrapping_add(self.place));
        }
        self.advance();
    }

    #[inline(always)]
    fn advance(&mut self) {
        self.place += CACHE_LINE;
        if self.place >= self.page_bytes {
            self.place = 0;
            self.page += 1;
            self.begin_pages();
        }
    }

    /// Sets each stream to its next page. One that has no more stays where it is.
    fn begin_pages(&mut self) {
        for (stream, start) in self.starts.iter_mut().enumerate() {
            if let Some(page) = self.pages[..self.count].get(stream * self.stream_pages + self.page) {
                *start = *page;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_of_each_page_is_prefetched() {
        for count in 0..=2 * MAX_BLOCK_PAGES {
            for page_bytes in [16, 64, 96, 4096] {
                let starts = (1..=count).map(|page| std::ptr::without_provenance(page << 20));
                let mut prefetch = Prefetch::of(starts, page_bytes);
                let mut lines = Vec::new();
                while prefetch.page < prefetch.stream_pages {
                    lines.extend(prefetch.starts.map(|start| start.wrapping_add(prefetch.place)));
                    prefetch.advance();
                }
                lines.sort();
                lines.dedup();
                let lines_of = |page: usize| (page << 20..(page << 20) + page_bytes).step_by(CACHE_LINE);
                let expected: Vec<_> = (1..=count).flat_map(lines_of).map(std::ptr::without_provenance).collect();
                assert_eq!(lines, expected, "{count} pages of {page_bytes} bytes");
            }
        }
    }
}

//! What is asked for while a span is computed: the next one.

use std::ops::Range;

use super::{MAX_SPAN_PAGES, PagedHeads};
use crate::simd::{CACHE_LINE, STREAMS, Simd};

/// What [`Ahead::ask`] asks for at once.
pub(super) const ASKED_BYTES: usize = STREAMS * CACHE_LINE;

/// The lines of a span's keys and values.
pub(super) struct Ahead {
    /// Where the pages of keys begin, then those of values.
    pages: [*const u8; 2 * MAX_SPAN_PAGES],
    count: usize,
    page_bytes: usize,
    /// Pages of a stream.
    stretch: usize,
    /// Where all streams are: at a page of their own, which begins at one of `starts`, and a place in it.
    page: usize,
    starts: [*const u8; STREAMS],
    place: usize,
}

impl Ahead {
    /// All lines of `pages`, each of `page_bytes` bytes.
    pub(super) fn new(keys: &PagedHeads, values: &PagedHeads, pages: Range<usize>, page_bytes: usize) -> Self {
        let keys = pages.clone().map(|page| keys.start_of(page));
        Self::of(keys.chain(pages.map(|page| values.start_of(page))), page_bytes)
    }

    fn of(starts: impl Iterator<Item = *const u8>, page_bytes: usize) -> Self {
        let mut pages = [std::ptr::null(); 2 * MAX_SPAN_PAGES];
        let count = pages.iter_mut().zip(starts).map(|(page, start)| *page = start).count();
        let stretch = count.div_ceil(STREAMS);
        let mut ahead = Self { pages, count, page_bytes, stretch, page: 0, starts: [pages[0]; STREAMS], place: 0 };
        ahead.turn();
        ahead
    }

    /// Asks for the next line of each stream, if there is one.
    #[inline(always)]
    pub(super) fn ask<S: Simd>(&mut self, simd: S) {
        if self.page == self.stretch {
            return;
        }
        for start in self.starts {
            simd.prefetch(start.wrapping_add(self.place));
        }
        self.go_on();
    }

    #[inline(always)]
    fn go_on(&mut self) {
        self.place += CACHE_LINE;
        if self.place >= self.page_bytes {
            self.place = 0;
            self.page += 1;
            self.turn();
        }
    }

    /// A stream that is shorter than others stays where it is.
    fn turn(&mut self) {
        for (stream, start) in self.starts.iter_mut().enumerate() {
            if let Some(page) = self.pages[..self.count].get(stream * self.stretch + self.page) {
                *start = *page;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_of_each_page_is_asked_for() {
        for count in 0..=2 * MAX_SPAN_PAGES {
            for page_bytes in [16, 64, 96, 4096] {
                let starts = (1..=count).map(|page| std::ptr::without_provenance(page << 20));
                let mut ahead = Ahead::of(starts, page_bytes);
                let mut lines = Vec::new();
                while ahead.page < ahead.stretch {
                    lines.extend(ahead.starts.map(|start| start.wrapping_add(ahead.place)));
                    ahead.go_on();
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

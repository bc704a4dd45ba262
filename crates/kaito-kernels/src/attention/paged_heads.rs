use std::ops::Range;

use super::MAX_SPAN_PAGES;
use crate::{KvBuffer, KvLayout, kv::Heads};

/// The keys, or the values, of one head of a sequence.
pub(super) struct PagedHeads<'a> {
    buffer: &'a KvBuffer,
    pages: &'a [u32],
    layout: KvLayout,
    kv_head: usize,
}

impl<'a> PagedHeads<'a> {
    pub(super) fn new(buffer: &'a KvBuffer, pages: &'a [u32], layout: KvLayout, kv_head: usize) -> Self {
        Self { buffer, pages, layout, kv_head }
    }

    /// The heads of the sequence's tokens from `page * page_size` on.
    pub(super) fn page(&self, page: usize) -> Heads<'a> {
        self.buffer.heads(self.layout.slot(self.kv_head, self.pages[page]), self.layout.page_size)
    }

    /// Where they begin.
    pub(super) fn start_of(&self, page: usize) -> *const u8 {
        self.page(page).start
    }

    /// Where they begin for some consecutive pages of a span.
    pub(super) fn starts(&self, pages: Range<usize>) -> Starts {
        let mut starts = Starts { starts: [std::ptr::null(); MAX_SPAN_PAGES], pages: pages.len() };
        pages.zip(&mut starts.starts).for_each(|(page, start)| *start = self.start_of(page));
        starts
    }

    /// Copies what the numbers of each slot of the pages are multiplied by. Whether they are.
    pub(super) fn copy_scales(&self, pages: Range<usize>, target: &mut [f32]) -> bool {
        let mut scaled = false;
        for (page, target) in pages.zip(target.chunks_exact_mut(self.layout.page_size)) {
            let scales = self.page(page).scales;
            target[..scales.len()].copy_from_slice(scales);
            scaled = !scales.is_empty();
        }
        scaled
    }
}

/// Where the pages of a span begin.
pub(super) struct Starts {
    starts: [*const u8; MAX_SPAN_PAGES],
    pages: usize,
}

impl Starts {
    pub(super) fn as_slice(&self) -> &[*const u8] {
        &self.starts[..self.pages]
    }
}

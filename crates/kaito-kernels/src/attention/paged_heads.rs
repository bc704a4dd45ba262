//! Keys and values of one head, found through the page table of a sequence.

use std::{marker::PhantomData, ops::Range};

use super::{MAX_BLOCK_PAGES, PAGE_TOKENS};
use crate::{
    KvBuffer, KvLayout,
    kv::{Heads, KvElement},
};

/// The keys, or the values, of one head of a sequence, whose elements are of type `E`.
pub(super) struct PagedHeads<'a, E> {
    buffer: &'a KvBuffer,
    pages: &'a [u32],
    layout: KvLayout,
    kv_head: usize,
    elements: PhantomData<&'a [E]>,
}

impl<'a, E: KvElement> PagedHeads<'a, E> {
    /// # Panics
    /// If the buffer has elements of another type.
    pub(super) fn new(buffer: &'a KvBuffer, pages: &'a [u32], layout: KvLayout, kv_head: usize) -> Self {
        assert_eq!(buffer.dtype(), E::DTYPE, "elements of keys and values");
        Self { buffer, pages, layout, kv_head, elements: PhantomData }
    }

    /// The keys or values of a KV block.
    ///
    /// # Panics
    /// If there are more pages than a block has.
    pub(super) fn block(&self, pages: Range<usize>) -> KvBlock<'a, E> {
        let (page_size, dim) = (self.layout.page_size, self.buffer.head_dim());
        assert!(page_size.is_multiple_of(PAGE_TOKENS), "pages of {page_size} tokens");
        let mut starts = [std::ptr::null(); MAX_BLOCK_PAGES];
        for (start, page) in starts[..pages.len()].iter_mut().zip(pages.clone()) {
            *start = self.start_of(page);
        }
        KvBlock { starts, pages: pages.len(), page_size, dim, elements: PhantomData }
    }
}

impl<'a, E> PagedHeads<'a, E> {
    /// The heads of the sequence's tokens from `page * page_size` on.
    fn page(&self, page: usize) -> Heads<'a> {
        self.buffer.heads(self.layout.slot(self.kv_head, self.pages[page]), self.layout.page_size)
    }

    /// Where they begin.
    pub(super) fn start_of(&self, page: usize) -> *const u8 {
        self.page(page).start
    }

    /// Copies the scale of each slot of the pages, if they have scales. Whether they have.
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

/// The keys, or the values, of one head in the pages of a KV block. Each page has `page_size * dim` elements of type `E`:
/// [`PagedHeads::block`] alone makes one, from pages of a buffer.
pub(super) struct KvBlock<'a, E> {
    starts: [*const u8; MAX_BLOCK_PAGES],
    pages: usize,
    page_size: usize,
    dim: usize,
    elements: PhantomData<&'a [E]>,
}

impl<E> Clone for KvBlock<'_, E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for KvBlock<'_, E> {}

impl<E> KvBlock<'_, E> {
    /// Where the elements of each page begin.
    #[inline(always)]
    pub(super) fn pages(&self) -> &[*const u8] {
        &self.starts[..self.pages]
    }

    /// Tokens of a page: a multiple of [`PAGE_TOKENS`].
    #[inline(always)]
    pub(super) fn page_size(&self) -> usize {
        self.page_size
    }

    /// Elements of a head.
    #[inline(always)]
    pub(super) fn dim(&self) -> usize {
        self.dim
    }
}

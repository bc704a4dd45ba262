use super::AttentionShape;
use crate::{KvBuffer, kv::Heads};

/// The keys, or the values, of one head of a sequence.
pub(super) struct PagedHeads<'a> {
    buffer: &'a KvBuffer,
    pages: &'a [u32],
    num_kv_heads: usize,
    kv_head: usize,
    page_size: usize,
}

impl<'a> PagedHeads<'a> {
    pub(super) fn new(buffer: &'a KvBuffer, pages: &'a [u32], shape: &AttentionShape, kv_head: usize) -> Self {
        Self { buffer, pages, num_kv_heads: shape.num_kv_heads, kv_head, page_size: shape.page_size }
    }

    /// The heads of the sequence's tokens from `page * page_size` on.
    pub(super) fn page(&self, page: usize) -> Heads<'a> {
        let slot = (self.pages[page] as usize * self.num_kv_heads + self.kv_head) * self.page_size;
        self.buffer.heads(slot, self.page_size)
    }

    /// Where they begin; null if the sequence has no such page.
    pub(super) fn start_of(&self, page: usize) -> *const u8 {
        if page < self.pages.len() { self.page(page).start } else { std::ptr::null() }
    }
}

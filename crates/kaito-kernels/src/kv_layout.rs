//! Where the key or value of a token's head lies in the KV cache.

use crate::{MAX_PAGE_TOKENS, PAGE_TOKENS};

/// The slots of keys, or of values: `[kv head][page][token]`. The pages of a sequence mostly follow each other, and then
/// attention reads each of its heads sequentially.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvLayout {
    /// KV heads.
    pub num_kv_heads: usize,
    /// Pages of all sequences.
    pub pages: usize,
    /// Tokens of a page: a multiple of [`PAGE_TOKENS`], at most [`MAX_PAGE_TOKENS`].
    pub page_size: usize,
}

impl KvLayout {
    /// Whether pages have a size that attention can go through.
    pub fn is_supported(self) -> bool {
        (1..=MAX_PAGE_TOKENS).contains(&self.page_size) && self.page_size.is_multiple_of(PAGE_TOKENS)
    }

    /// All slots; `None` if they cannot be counted.
    pub fn slots(self) -> Option<usize> {
        self.num_kv_heads.checked_mul(self.pages)?.checked_mul(self.page_size)
    }

    /// The slot of the first token of a page.
    pub fn slot(self, kv_head: usize, page: u32) -> usize {
        (kv_head * self.pages + page as usize) * self.page_size
    }
}

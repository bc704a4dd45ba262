//! What a block of queries attends to.

use std::ops::Range;

use super::{AttentionStep, PagedHeads, Prefetch, block_pages, step::Block};
use crate::{AttentionShape, KvLayout, kv::KvElement};

/// The keys and the values of a block's queries, and what they see of them.
pub(super) struct Context<'a, E> {
    pub visible: Visible,
    pub keys: PagedHeads<'a, E>,
    pub values: PagedHeads<'a, E>,
    pub page_size: usize,
    pub head_dim: usize,
    /// Pages of the sequence that a query sees some of.
    pub pages: Range<usize>,
}

impl<'a, E: KvElement> Context<'a, E> {
    pub(super) fn of(block: &Block<'a>) -> Self {
        let AttentionStep { shape, heads_per_kv_head, keys, values, .. } = *block.step();
        let AttentionShape { head_dim, layout, window, .. } = *shape;
        let KvLayout { page_size, .. } = layout;
        let (sequence, kv_head) = (block.sequence(), block.kv_head());
        let before = sequence.context - sequence.rows;
        let visible = Visible { before, start: block.start(), heads_per_kv_head, window };
        let table = &sequence.pages[..sequence.context.div_ceil(page_size)];
        let last = block.queries() - 1;
        Self {
            visible,
            keys: PagedHeads::new(keys, table, layout, kv_head),
            values: PagedHeads::new(values, table, layout, kv_head),
            page_size,
            head_dim,
            pages: visible.to(0).start / page_size..visible.to(last).end.div_ceil(page_size),
        }
    }

    /// Pages of a KV block.
    pub(super) fn block_pages(&self) -> usize {
        block_pages(self.page_size)
    }

    /// The first page of the first KV block.
    pub(super) fn first_page(&self) -> usize {
        self.pages.start - self.pages.start % self.block_pages()
    }

    /// Pages of the KV block that begins with page `first`, as far as a query sees some of them.
    pub(super) fn pages_from(&self, first: usize) -> Range<usize> {
        first.max(self.pages.start)..(first + self.block_pages()).min(self.pages.end)
    }

    /// Positions of the KV block that begins with page `first`.
    pub(super) fn positions(&self, first: usize) -> Range<usize> {
        first * self.page_size..(first + self.block_pages()) * self.page_size
    }

    /// The cache lines of `pages`, to be prefetched.
    pub(super) fn prefetch(&self, pages: Range<usize>) -> Prefetch {
        Prefetch::new(&self.keys, &self.values, pages, self.page_size * self.head_dim * E::SIZE)
    }
}

/// What the queries of a block see: the causal mask, and the window if there is one.
#[derive(Clone, Copy)]
pub(super) struct Visible {
    /// Tokens of the sequence before its first query token.
    before: usize,
    /// The block's first query.
    start: usize,
    heads_per_kv_head: usize,
    window: Option<usize>,
}

impl Visible {
    /// The positions that query `i` of the block sees: neither end decreases with `i`.
    pub(super) fn to(&self, i: usize) -> Range<usize> {
        let end = self.before + (self.start + i) / self.heads_per_kv_head + 1;
        self.window.map_or(0, |window| end.saturating_sub(window))..end
    }

    /// Those of them that lie in `positions`, counted from their beginning.
    pub(super) fn within(&self, i: usize, positions: &Range<usize>) -> Range<usize> {
        let seen = self.to(i);
        let start = seen.start.clamp(positions.start, positions.end);
        start - positions.start..seen.end.clamp(start, positions.end) - positions.start
    }
}

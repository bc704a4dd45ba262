//! Paged attention: of query tokens to keys and values that lie in pages of the KV cache.
//!
//! Some pages together are a KV block, the unit of the online softmax (Milakov and Gimelshein 2018; FlashAttention, Dao et al.
//! 2022): a block's scores, the new maximum, then the rescaled sums. Blocks begin at fixed positions, multiples of a block's
//! tokens. So what a query computes depends on its own position and pages alone: not on how chunked prefill cut the prompt into
//! steps, nor on which other sequences are in the step. Values that all queries of a query block see are summed up for all of them
//! together, the others for one query after the other, which changes the order of no sum.

mod alibi;
mod paged_heads;
mod prefetch;
mod query_block;
mod scores;
mod soft_cap;
mod step;
mod tiles;
mod weighted_sum;

use std::ops::Range;

pub use self::alibi::{alibi_bias, alibi_slopes};
use self::{
    paged_heads::PagedHeads,
    prefetch::Prefetch,
    query_block::QueryBlock,
    step::{AttentionStep, BLOCK_QUERIES, Block},
};
use crate::{
    KvBuffer, KvDType, KvLayout, Rows, RowsMut, ThreadPool,
    kv::KvElement,
    matmul::element::{Bf16, F32, I8},
    simd::{Kernel, Level, MAX_LANES, Simd, dispatch},
};

/// What is the same for all sequences of a step.
#[derive(Debug, Clone, Copy)]
pub struct AttentionShape<'a> {
    /// Where each query head begins in a row of the queries. Head `h` uses KV head `h / (heads / KV heads)`.
    pub query_offsets: &'a [usize],
    /// Where keys and values lie. The number of query heads is divisible by that of KV heads (grouped-query attention).
    pub layout: KvLayout,
    /// Elements of a head.
    pub head_dim: usize,
    /// What scores are multiplied by.
    pub scale: f32,
    /// Scaled scores are kept between its negative and itself: a score `s` becomes `cap * tanh(s / cap)`.
    pub soft_cap: Option<f32>,
    /// A query at position `p` sees the positions `j` with `p - window < j <= p`.
    pub window: Option<usize>,
    /// For each query head the slope of its bias, see [`alibi_bias`]; empty for models without such biases.
    pub alibi_slopes: &'a [f32],
}

/// The query tokens of one sequence in a step.
#[derive(Debug, Clone, Copy)]
pub struct AttentionSequence<'a> {
    /// Its first row of the queries and of the output: not before the last row of the sequence before it.
    pub first_row: usize,
    /// Number of its query tokens: the last ones of the context.
    pub rows: usize,
    /// Tokens in the cache, these included.
    pub context: usize,
    /// The page of tokens `0..page_size`, of the next ones, ..: indices into the keys and the values.
    pub pages: &'a [u32],
}

/// Tokens of a page are a multiple of this: whole vectors of any instruction set.
pub const PAGE_TOKENS: usize = MAX_LANES;

/// Tokens of a page at most.
pub const MAX_PAGE_TOKENS: usize = BLOCK_TOKENS;

/// `softmax(scale * (q k^T + bias)) v` for each query token and head, over the keys it may see: those up to its own position,
/// within the window if there is one. The bias is 0 without slopes. With a soft cap it is `softmax(capped(scale * q k^T) + scale *
/// bias) v`.
///
/// `keys` and `values` are one layer's. Row `r` of the output is `[heads][head_dim]` for the query token in row `r` of
/// `queries`. Rows of no sequence are left alone.
///
/// # Panics
/// If a shape does not fit its data, a page is not in the pool, or sequences have the same rows or are not in their order.
pub fn paged_attention(
    pool: &ThreadPool,
    shape: &AttentionShape,
    queries: Rows,
    keys: &KvBuffer,
    values: &KvBuffer,
    sequences: &[AttentionSequence],
    output: RowsMut,
) {
    paged_attention_on(Level::chosen(), pool, shape, queries, keys, values, sequences, output);
}

#[allow(clippy::too_many_arguments)]
fn paged_attention_on(
    level: Level,
    pool: &ThreadPool,
    shape: &AttentionShape,
    queries: Rows,
    keys: &KvBuffer,
    values: &KvBuffer,
    sequences: &[AttentionSequence],
    output: RowsMut,
) {
    if shape.query_offsets.is_empty() || shape.head_dim == 0 {
        return;
    }
    let step = AttentionStep::new(shape, queries, keys, values, sequences, output);
    step.for_each_block(pool, |block| dispatch(level, block));
}

impl Kernel for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match self.step().keys.dtype() {
            KvDType::F32 => self.run_typed::<S, F32>(simd),
            KvDType::Bf16 => self.run_typed::<S, Bf16>(simd),
            KvDType::Int8 => self.run_typed::<S, I8>(simd),
        }
    }
}

impl Block<'_> {
    #[inline(always)]
    fn run_typed<S: Simd, E: KvElement>(mut self, simd: S) {
        let AttentionStep { shape, heads_per_kv_head, keys, values, .. } = *self.step();
        let AttentionShape { head_dim, layout, .. } = *shape;
        let page_size = layout.page_size;
        let count = self.queries();
        let (sequence, kv_head) = (self.sequence(), self.kv_head());
        let before = sequence.context - sequence.rows;
        let visible = Visible { before, start: self.start(), heads_per_kv_head, window: shape.window };
        let table = &sequence.pages[..sequence.context.div_ceil(page_size)];
        let keys = PagedHeads::<E>::new(keys, table, layout, kv_head);
        let values = PagedHeads::<E>::new(values, table, layout, kv_head);
        let mut queries = QueryBlock::take(count, shape);
        for i in 0..count {
            queries.set_query(i, self.query(i));
        }
        let pages = visible.to(0).start / page_size..visible.to(count - 1).end.div_ceil(page_size);
        let block_pages = block_pages(page_size);
        let mut first = pages.start - pages.start % block_pages;
        let pages_at = |first: usize| first.max(pages.start)..(first + block_pages).min(pages.end);
        while first < pages.end {
            let next = pages_at(first + block_pages);
            let prefetch = Prefetch::new(&keys, &values, next, page_size * head_dim * E::SIZE);
            let slope = |i: usize| shape.alibi_slopes.get(self.row_and_head(i).1).copied();
            queries.attend(simd, first * page_size, pages_at(first), &visible, slope, &keys, &values, prefetch);
            first += block_pages;
        }
        for i in 0..count {
            queries.write(i, self.output(i));
        }
        queries.give_back();
    }
}

/// Tokens of a KV block, or somewhat fewer if they are not divisible by a page's: enough that what is done once a block costs
/// little beside its products.
const BLOCK_TOKENS: usize = 128;

/// Pages that a KV block has at most.
const MAX_BLOCK_PAGES: usize = BLOCK_TOKENS / PAGE_TOKENS;

/// Pages of a KV block.
fn block_pages(page_size: usize) -> usize {
    BLOCK_TOKENS / page_size
}

/// What the queries of a block see: the causal mask, and the window if there is one.
#[derive(Clone, Copy)]
struct Visible {
    /// Tokens of the sequence before its first query token.
    before: usize,
    /// The block's first query.
    start: usize,
    heads_per_kv_head: usize,
    window: Option<usize>,
}

impl Visible {
    /// The positions that query `i` of the block sees: neither end decreases with `i`.
    fn to(&self, i: usize) -> Range<usize> {
        let end = self.before + (self.start + i) / self.heads_per_kv_head + 1;
        self.window.map_or(0, |window| end.saturating_sub(window))..end
    }

    /// Those of them that lie in `positions`, counted from their beginning.
    fn within(&self, i: usize, positions: &Range<usize>) -> Range<usize> {
        let seen = self.to(i);
        let start = seen.start.clamp(positions.start, positions.end);
        start - positions.start..seen.end.clamp(start, positions.end) - positions.start
    }
}

#[cfg(test)]
mod tests;

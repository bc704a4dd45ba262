//! Attention of query tokens to keys and values that lie in pages.
//!
//! Some pages together are a span, the block of the online softmax (Milakov and Gimelshein 2018; Dao et al. 2022): its
//! scores, the new maximum, then the rescaled sums. Spans begin at fixed positions. So what a query does is fixed by its own
//! position and pages, however the prompt was cut into steps and whoever else is in the step. Values that all queries of
//! a block see are gone through together, the others one query after the other, which changes the order of no sum.

mod ahead;
mod alibi;
mod paged_heads;
mod query_block;
mod scores;
mod tiles;
mod weigh;

use std::ops::Range;

pub use self::alibi::{alibi_bias, alibi_slopes};
use self::{ahead::Ahead, paged_heads::PagedHeads, query_block::QueryBlock};
use crate::{
    KvBuffer, KvDType, KvLayout, Rows, RowsMut, ThreadPool,
    matmul::element::{Bf16, Element, F32, I8},
    matrix::SharedRows,
    simd::{Kernel, Level, MAX_LANES, Simd, dispatch},
};

/// What is the same for all sequences of a step.
#[derive(Debug, Clone, Copy)]
pub struct AttentionShape<'a> {
    /// Where each query head begins in a row of the queries. Head `h` uses key head `h / (heads / kv heads)`.
    pub query_offsets: &'a [usize],
    /// Where keys and values lie. Their heads divide the number of query heads.
    pub layout: KvLayout,
    /// Elements of a head.
    pub head_dim: usize,
    /// What scores are multiplied by.
    pub scale: f32,
    /// A query at position `p` sees the positions `j` with `p - window < j <= p`.
    pub window: Option<usize>,
    /// For each query head how much the key at position `j` gains by it, see [`alibi_bias`]; empty where positions are not told
    /// so.
    pub alibi_slopes: &'a [f32],
}

/// The query tokens of one sequence in a step.
#[derive(Debug, Clone, Copy)]
pub struct AttentionSequence<'a> {
    /// Its first row of the queries and of the output.
    pub first_row: usize,
    /// Number of its query tokens: the last ones of the context.
    pub rows: usize,
    /// Tokens in the cache, these included.
    pub context: usize,
    /// The page of tokens `0..page_size`, of the next ones, ..: indices into the keys and the values.
    pub pages: &'a [u32],
}

/// The tokens of a page are a multiple of this: whole vectors of any instruction set.
pub const PAGE_TOKENS: usize = MAX_LANES;

/// The tokens of a page at most.
pub const MAX_PAGE_TOKENS: usize = SPAN_TOKENS;

/// Queries, of one group of heads, that a piece of work takes through the pages together.
const BLOCK_QUERIES: usize = 16;

/// `softmax(scale * (q k^T + bias)) v` for each query token and head, over the keys it may see: those up to its own position,
/// within the window if there is one. The bias is 0 without slopes.
///
/// `keys` and `values` are one layer's. Row `r` of the output is `[heads][head_dim]` for the query token in row `r` of
/// `queries`. Rows of no sequence are left alone.
///
/// # Panics
/// If a shape does not fit its data, or a page is not in the pool.
pub fn paged_attention(
    pool: &ThreadPool,
    shape: &AttentionShape,
    queries: Rows,
    keys: &KvBuffer,
    values: &KvBuffer,
    sequences: &[AttentionSequence],
    output: RowsMut,
) {
    paged_attention_on(Level::best(), pool, shape, queries, keys, values, sequences, output);
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
    let heads = shape.query_offsets.len();
    let KvLayout { num_kv_heads, pages, page_size } = shape.layout;
    if heads == 0 || shape.head_dim == 0 {
        return;
    }
    assert!(
        num_kv_heads > 0 && heads.is_multiple_of(num_kv_heads),
        "{heads} query heads do not share out {num_kv_heads} key heads"
    );
    let slopes = shape.alibi_slopes.len();
    assert!(slopes == 0 || slopes == heads, "{slopes} slopes for {heads} query heads");
    assert!(
        shape.layout.is_supported(),
        "pages of {page_size} tokens are not a multiple of {PAGE_TOKENS} of up to {MAX_PAGE_TOKENS}"
    );
    let kind = |buffer: &KvBuffer| (buffer.dtype(), buffer.slots(), buffer.head_dim());
    assert_eq!(kind(keys), kind(values), "keys and values go together");
    assert_eq!((keys.interleaved(), values.interleaved()), (page_size, 1), "layouts of keys and of values");
    assert_eq!(keys.head_dim(), shape.head_dim, "elements of a head");
    assert_eq!(Some(keys.slots()), shape.layout.slots(), "slots of {:?}", shape.layout);
    let mut rows = 0;
    for sequence in sequences {
        let AttentionSequence { first_row, rows: count, context, pages: table } = *sequence;
        assert!(count <= context, "{count} query tokens of a context of {context}");
        let used = context.div_ceil(page_size);
        assert!(used <= table.len(), "{} pages of {page_size} do not hold {context} tokens", table.len());
        for &page in &table[..used] {
            assert!((page as usize) < pages, "page {page} is not one of {pages}");
        }
        rows = rows.max(first_row + count);
    }
    queries.check("queries", rows, shape.query_offsets.iter().max().map_or(0, |last| last + shape.head_dim));
    let output = output.share("output", rows, heads * shape.head_dim);

    let group = heads / num_kv_heads;
    let starts_of = |sequence: &AttentionSequence| (sequence.rows * group).div_ceil(BLOCK_QUERIES);
    // The last queries of a sequence first: they see most.
    let block = |mut piece: usize| {
        sequences.iter().find_map(|sequence| {
            let blocks = starts_of(sequence) * num_kv_heads;
            let Some(after) = piece.checked_sub(blocks) else {
                let start = (starts_of(sequence) - 1 - piece / num_kv_heads) * BLOCK_QUERIES;
                return Some(Block { sequence, kv_head: piece % num_kv_heads, start });
            };
            piece = after;
            None
        })
    };
    let pieces = sequences.iter().map(starts_of).sum::<usize>() * num_kv_heads;
    pool.for_each(pieces, &|piece| {
        if let Some(block) = block(piece) {
            dispatch(level, Piece { block, shape, group, queries, keys, values, output });
        }
    });
}

/// Up to [`BLOCK_QUERIES`] queries of one sequence and one key head, from `start` on. Query `i` is token
/// `i / group` of the sequence's rows and head `i % group` of the group.
#[derive(Clone, Copy)]
struct Block<'a> {
    sequence: &'a AttentionSequence<'a>,
    kv_head: usize,
    start: usize,
}

struct Piece<'a> {
    block: Block<'a>,
    shape: &'a AttentionShape<'a>,
    group: usize,
    queries: Rows<'a>,
    keys: &'a KvBuffer,
    values: &'a KvBuffer,
    output: SharedRows<'a>,
}

impl Kernel for Piece<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match self.keys.dtype() {
            KvDType::F32 => self.run_typed::<S, F32>(simd),
            KvDType::Bf16 => self.run_typed::<S, Bf16>(simd),
            KvDType::Int8 => self.run_typed::<S, I8>(simd),
        }
    }
}

impl Piece<'_> {
    #[inline(always)]
    fn run_typed<S: Simd, E: Element>(&self, simd: S) {
        let &Self { block: Block { sequence, kv_head, start }, shape, group, .. } = self;
        let AttentionShape { query_offsets, head_dim, layout, .. } = *shape;
        let page_size = layout.page_size;
        let count = BLOCK_QUERIES.min(sequence.rows * group - start);
        let row_and_head = |i: usize| (sequence.first_row + (start + i) / group, kv_head * group + (start + i) % group);

        let sight = Sight { before: sequence.context - sequence.rows, start, group, window: shape.window };
        let table = &sequence.pages[..sequence.context.div_ceil(page_size)];
        let paged = |buffer| PagedHeads::new(buffer, table, layout, kv_head);
        let (keys, values) = (paged(self.keys), paged(self.values));
        let mut block = QueryBlock::take(count, shape);
        for i in 0..count {
            let (row, head) = row_and_head(i);
            let offset = query_offsets[head];
            block.set_query(i, &self.queries.row(row, offset + head_dim)[offset..]);
        }
        let pages = sight.of(0).start / page_size..sight.of(count - 1).end.div_ceil(page_size);
        let span_pages = span_pages(page_size);
        let mut first = pages.start - pages.start % span_pages;
        let span_at = |first: usize| first.max(pages.start)..(first + span_pages).min(pages.end);
        while first < pages.end {
            let ahead = Ahead::new(&keys, &values, span_at(first + span_pages), page_size * head_dim * E::SIZE);
            let slope = |i: usize| shape.alibi_slopes.get(row_and_head(i).1).copied();
            // SAFETY: the buffers hold the element type.
            unsafe {
                block.absorb::<S, E>(simd, first * page_size, span_at(first), &sight, slope, &keys, &values, ahead);
            }
            first += span_pages;
        }
        for i in 0..count {
            let (row, head) = row_and_head(i);
            // SAFETY: no other piece has this query and head.
            block.write(i, unsafe { self.output.slice(row, head * head_dim, head_dim) });
        }
        block.give_back();
    }
}

/// Tokens of a span, or somewhat fewer if pages do not share them out: enough that what is done once for a span costs
/// little beside its products.
const SPAN_TOKENS: usize = 128;

/// Pages that a span has at most.
const MAX_SPAN_PAGES: usize = SPAN_TOKENS / PAGE_TOKENS;

/// Pages of a span.
fn span_pages(page_size: usize) -> usize {
    SPAN_TOKENS / page_size
}

/// What the queries of a block see.
#[derive(Clone, Copy)]
struct Sight {
    /// Tokens of the sequence before its first query token.
    before: usize,
    /// The block's first query.
    start: usize,
    group: usize,
    window: Option<usize>,
}

impl Sight {
    /// The positions that query `i` of the block sees: neither end decreases with `i`.
    fn of(&self, i: usize) -> Range<usize> {
        let end = self.before + (self.start + i) / self.group + 1;
        self.window.map_or(0, |window| end.saturating_sub(window))..end
    }

    /// Those of them that lie in `positions`, counted from their beginning.
    fn within(&self, i: usize, positions: &Range<usize>) -> Range<usize> {
        let seen = self.of(i);
        let start = seen.start.clamp(positions.start, positions.end);
        start - positions.start..seen.end.clamp(start, positions.end) - positions.start
    }
}

#[cfg(test)]
mod tests;

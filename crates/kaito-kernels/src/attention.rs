//! Attention of query tokens to keys and values that lie in pages.
//!
//! A page is the block of the online softmax (Milakov and Gimelshein 2018; Dao et al. 2022): its scores, the new
//! maximum, then the rescaled sums. So what a query does is fixed by its own position and pages, however the prompt was
//! cut into steps and whoever else is in the step. Queries that see the whole of a page go through it together, those
//! that see a part of it one by one, which changes the order of no sum.

use crate::{
    Rows, RowsMut, ThreadPool,
    matrix::SharedRows,
    simd::{Kernel, Level, Simd, dispatch},
};

/// What is the same for all sequences of a step.
#[derive(Debug, Clone, Copy)]
pub struct AttentionShape<'a> {
    /// Where each query head begins in a row of the queries. Head `h` uses key head `h / (heads / num_kv_heads)`.
    pub query_offsets: &'a [usize],
    /// Key and value heads; divides the number of query heads.
    pub num_kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Tokens of a page.
    pub page_size: usize,
    /// What scores are multiplied by.
    pub scale: f32,
    /// A query at position `p` sees the positions `j` with `p - window < j <= p`.
    pub window: Option<usize>,
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

/// Queries, of one group of heads, that a piece of work takes through the pages together.
const BLOCK_QUERIES: usize = 16;

/// `softmax(scale * q k^T) v` for each query token and head, over the keys it may see: those up to its own position,
/// within the window if there is one.
///
/// `keys` and `values` are one layer's `[page][kv head][slot][head_dim]`. Row `r` of the output is
/// `[heads][head_dim]` for the query token in row `r` of `queries`. Rows of no sequence are left alone.
///
/// # Panics
/// If a shape does not fit its data, or a page is not in the pool.
pub fn paged_attention(
    pool: &ThreadPool,
    shape: &AttentionShape,
    queries: Rows,
    keys: &[f32],
    values: &[f32],
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
    keys: &[f32],
    values: &[f32],
    sequences: &[AttentionSequence],
    output: RowsMut,
) {
    let heads = shape.query_offsets.len();
    if heads == 0 || shape.head_dim == 0 {
        return;
    }
    assert!(
        shape.num_kv_heads > 0 && heads % shape.num_kv_heads == 0,
        "{heads} query heads do not share out {} key heads",
        shape.num_kv_heads
    );
    assert!(shape.page_size > 0, "pages hold tokens");
    let page_elements = shape.num_kv_heads * shape.page_size * shape.head_dim;
    assert_eq!(keys.len(), values.len(), "keys and values go together");
    let pages = keys.len() / page_elements;
    let mut rows = 0;
    for sequence in sequences {
        let AttentionSequence { first_row, rows: count, context, pages: table } = *sequence;
        assert!(count <= context, "{count} query tokens of a context of {context}");
        let used = context.div_ceil(shape.page_size);
        assert!(used <= table.len(), "{} pages of {} do not hold {context} tokens", table.len(), shape.page_size);
        for &page in &table[..used] {
            assert!((page as usize) < pages, "page {page} is not one of {pages}");
        }
        rows = rows.max(first_row + count);
    }
    queries.check("queries", rows, shape.query_offsets.iter().max().map_or(0, |last| last + shape.head_dim));
    let output = output.share("output", rows, heads * shape.head_dim);

    let group = heads / shape.num_kv_heads;
    let blocks: Vec<Block> = sequences
        .iter()
        .flat_map(|sequence| {
            let starts = (0..sequence.rows * group).step_by(BLOCK_QUERIES).rev();
            starts.flat_map(move |start| (0..shape.num_kv_heads).map(move |kv_head| Block { sequence, kv_head, start }))
        })
        .collect();
    pool.for_each(blocks.len(), &|i| {
        dispatch(level, Piece { block: blocks[i], shape, group, queries, keys, values, output });
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
    keys: &'a [f32],
    values: &'a [f32],
    output: SharedRows<'a>,
}

/// What a query has summed up over the pages so far.
#[derive(Clone, Copy)]
struct Running {
    max: f32,
    sum: f32,
}

impl Kernel for Piece<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { block: Block { sequence, kv_head, start }, shape, group, .. } = self;
        let dim = shape.head_dim;
        let count = BLOCK_QUERIES.min(sequence.rows * group - start);
        let mut scores = vec![0.0; shape.page_size];
        for i in start..start + count {
            let (row, head) = (i / group, kv_head * group + i % group);
            let position = sequence.context - sequence.rows + row;
            let first = shape.window.map_or(0, |window| (position + 1).saturating_sub(window));
            let query = &self.queries.row(sequence.first_row + row, shape.query_offsets[head] + dim)
                [shape.query_offsets[head]..];
            // SAFETY: no other piece has this query.
            let out = unsafe { self.output.slice(sequence.first_row + row, head * dim, dim) };
            out.fill(0.0);
            let mut running = Running { max: f32::NEG_INFINITY, sum: 0.0 };
            for page in first / shape.page_size..=position / shape.page_size {
                let base = page * shape.page_size;
                let slots = first.max(base) - base..(position + 1 - base).min(shape.page_size);
                let at = (sequence.pages[page] as usize * shape.num_kv_heads + kv_head) * shape.page_size * dim;
                let keys = &self.keys[at..at + shape.page_size * dim];
                let values = &self.values[at..at + shape.page_size * dim];
                let mut max = running.max;
                for slot in slots.clone() {
                    let mut sum = simd.splat(0.0);
                    for (q, k) in query.chunks(S::LANES).zip(keys[slot * dim..(slot + 1) * dim].chunks(S::LANES)) {
                        sum = simd.mul_add(simd.load_partial(q), simd.load_partial(k), sum);
                    }
                    scores[slot] = simd.sum(sum) * shape.scale;
                    max = if scores[slot] > max { scores[slot] } else { max };
                }
                let correction = (running.max - max).exp();
                running.max = max;
                running.sum *= correction;
                out.iter_mut().for_each(|out| *out *= correction);
                for slot in slots {
                    let p = (scores[slot] - max).exp();
                    running.sum += p;
                    for (out, v) in out.iter_mut().zip(&values[slot * dim..(slot + 1) * dim]) {
                        *out += p * v;
                    }
                }
            }
            let scale = 1.0 / running.sum;
            out.iter_mut().for_each(|out| *out *= scale);
        }
    }
}

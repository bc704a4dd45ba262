//! The inputs and the output of a step, checked, and their division among threads.

use std::marker::PhantomData;

use super::{AttentionSequence, AttentionShape, MAX_PAGE_TOKENS, PAGE_TOKENS};
use crate::{KvBuffer, KvLayout, Rows, RowsMut, ThreadPool};

/// A step whose parts fit each other: [`AttentionStep::new`] checks it.
pub(super) struct AttentionStep<'a> {
    pub(super) shape: &'a AttentionShape<'a>,
    /// Grouped-query attention: so many query heads share a KV head.
    pub(super) heads_per_kv_head: usize,
    pub(super) queries: Rows<'a>,
    pub(super) keys: &'a KvBuffer,
    pub(super) values: &'a KvBuffer,
    /// Ascending, and of different rows.
    sequences: &'a [AttentionSequence<'a>],
    /// The first element of the output, and from one row to the next.
    output: *mut f32,
    output_stride: usize,
    /// Queries of a [`Block`] at most.
    block_queries: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: all fields but the output are shared references. The output stands for an exclusive borrow of `f32`s, of which each
// `Block` writes its own.
unsafe impl Sync for AttentionStep<'_> {}

impl<'a> AttentionStep<'a> {
    /// # Panics
    /// If a shape does not fit its data, a page is not in the pool, or rows of sequences do not follow each other.
    pub(super) fn new(
        shape: &'a AttentionShape,
        queries: Rows<'a>,
        keys: &'a KvBuffer,
        values: &'a KvBuffer,
        sequences: &'a [AttentionSequence],
        output: RowsMut<'a>,
        block_queries: usize,
    ) -> Self {
        let heads = shape.query_offsets.len();
        let KvLayout { num_kv_heads, pages, page_size } = shape.layout;
        assert!(
            num_kv_heads > 0 && heads.is_multiple_of(num_kv_heads),
            "{heads} query heads are not divisible by {num_kv_heads} KV heads"
        );
        let slopes = shape.alibi_slopes.len();
        assert!(slopes == 0 || slopes == heads, "{slopes} slopes for {heads} query heads");
        assert!(shape.soft_cap.is_none_or(|cap| cap > 0.0), "a soft cap of {:?}", shape.soft_cap);
        assert!(
            shape.layout.is_supported(),
            "pages of {page_size} tokens are not a multiple of {PAGE_TOKENS} of up to {MAX_PAGE_TOKENS}"
        );
        let kind = |buffer: &KvBuffer| (buffer.form(), buffer.slots(), buffer.head_dim());
        assert_eq!(kind(keys), kind(values), "keys and values go together");
        assert_eq!((keys.interleaved(), values.interleaved()), (page_size, 1), "layouts of keys and of values");
        assert_eq!(keys.head_dim(), shape.head_dim, "elements of a head");
        assert_eq!(Some(keys.slots()), shape.layout.slots(), "slots of {:?}", shape.layout);
        let mut rows = 0;
        for sequence in sequences {
            let AttentionSequence { first_row, rows: count, context, pages: table } = *sequence;
            assert!(
                rows <= first_row,
                "a sequence begins at row {first_row}, before the end of the last one's rows, {rows}"
            );
            assert!(count <= context, "{count} query tokens of a context of {context}");
            let used = context.div_ceil(page_size);
            assert!(used <= table.len(), "{} pages of {page_size} do not hold {context} tokens", table.len());
            for &page in &table[..used] {
                assert!((page as usize) < pages, "page {page} is not one of {pages}");
            }
            rows = first_row + count;
        }
        queries.check("queries", rows, shape.query_offsets.iter().max().map_or(0, |last| last + shape.head_dim));
        output.check("output", rows, heads * shape.head_dim);
        Self {
            shape,
            heads_per_kv_head: heads / num_kv_heads,
            queries,
            keys,
            values,
            sequences,
            output: output.data.as_mut_ptr().wrapping_add(output.offset),
            output_stride: output.stride,
            block_queries,
            lifetime: PhantomData,
        }
    }

    /// Calls `task` once for each block of queries, on the threads of `pool`.
    pub(super) fn for_each_block(self, pool: &ThreadPool, task: impl Fn(Block) + Sync) {
        let kv_heads = self.shape.layout.num_kv_heads;
        let starts_of =
            |sequence: &AttentionSequence| (sequence.rows * self.heads_per_kv_head).div_ceil(self.block_queries);
        let count = self.sequences.iter().map(starts_of).sum::<usize>() * kv_heads;
        pool.for_each(count, &|mut i| {
            for sequence in self.sequences {
                let starts = starts_of(sequence);
                if i < starts * kv_heads {
                    // The last queries of a sequence first: they see most.
                    let start = (starts - 1 - i / kv_heads) * self.block_queries;
                    task(Block { step: &self, sequence, kv_head: i % kv_heads, start });
                    return;
                }
                i -= starts * kv_heads;
            }
        });
    }
}

/// Queries that a thread takes through the pages together: some of one sequence and one KV head, from `start` on. Query `i` of the sequence and KV head is
/// token `i / heads_per_kv_head` of the sequence's rows, and head `i % heads_per_kv_head` of those that share the KV head.
///
/// [`AttentionStep::for_each_block`] alone makes blocks, and no two of the same queries.
pub(super) struct Block<'a> {
    step: &'a AttentionStep<'a>,
    sequence: &'a AttentionSequence<'a>,
    kv_head: usize,
    start: usize,
}

impl<'a> Block<'a> {
    /// The step that it is a part of.
    pub(super) fn step(&self) -> &'a AttentionStep<'a> {
        self.step
    }

    /// The sequence of its queries.
    pub(super) fn sequence(&self) -> &'a AttentionSequence<'a> {
        self.sequence
    }

    /// The KV head of its queries.
    pub(super) fn kv_head(&self) -> usize {
        self.kv_head
    }

    /// Its first query, of those of its sequence and KV head.
    pub(super) fn start(&self) -> usize {
        self.start
    }

    /// Number of queries.
    pub(super) fn queries(&self) -> usize {
        self.step.block_queries.min(self.sequence.rows * self.step.heads_per_kv_head - self.start)
    }

    /// The row and the query head of query `i` of the block.
    pub(super) fn row_and_head(&self, i: usize) -> (usize, usize) {
        let (query, heads) = (self.start + i, self.step.heads_per_kv_head);
        (self.sequence.first_row + query / heads, self.kv_head * heads + query % heads)
    }

    /// The slope of query `i`'s head, if it has one.
    pub(super) fn slope(&self, i: usize) -> Option<f32> {
        let slopes = self.step.shape.alibi_slopes;
        if slopes.is_empty() { None } else { slopes.get(self.row_and_head(i).1).copied() }
    }

    /// The elements of query `i`.
    pub(super) fn query(&self, i: usize) -> &[f32] {
        let ((row, head), shape) = (self.row_and_head(i), self.step.shape);
        let offset = shape.query_offsets[head];
        &self.step.queries.row(row, offset + shape.head_dim)[offset..]
    }

    /// The output of query `i`.
    pub(super) fn output(&mut self, i: usize) -> &mut [f32] {
        assert!(i < self.queries());
        let ((row, head), head_dim) = (self.row_and_head(i), self.step.shape.head_dim);
        // SAFETY: the output has this row of all heads' elements, and rows do not overlap. No other block has this query, since
        // sequences have different rows, and blocks of a sequence different queries; the pool makes each block once.
        unsafe {
            let first = self.step.output.add(row * self.step.output_stride + head * head_dim);
            std::slice::from_raw_parts_mut(first, head_dim)
        }
    }
}

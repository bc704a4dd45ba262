//! A few queries and their online softmax so far, in f32.

use std::{cell::Cell, ops::Range};

use super::{
    AttentionShape, Context, Prefetch, alibi::add_alibi, block_pages, scores::Scores, soft_cap::SoftCap,
    weighted_sum::WeightedSum,
};
use crate::{KvLayout, kv::KvElement, simd::Simd};

/// Queries that go through the pages together.
pub(super) const BLOCK_QUERIES: usize = 16;

/// Queries that go through pages together. Nothing that one of them sums up depends on the others.
#[derive(Default)]
pub(super) struct QueryBlock {
    /// `[query][head_dim]`.
    queries: Vec<f32>,
    count: usize,
    head_dim: usize,
    page_size: usize,
    scale: f32,
    soft_cap: Option<f32>,
    /// `[query][score_stride]`: scores of one KV block and then their exponentials.
    scores: Vec<f32>,
    /// The tokens of a KV block.
    score_stride: usize,
    /// For each token of a KV block what its key, then its value, is multiplied by.
    slot_scales: Vec<f32>,
    /// For each query the greatest score so far.
    max: Vec<f32>,
    /// For each query the sum of `e^(score - max)`.
    sum: Vec<f32>,
    /// `[query][head_dim]`: the sum of `e^(score - max) * value`.
    weighted: Vec<f32>,
}

thread_local! {
    /// The block that this thread used last, kept for its memory.
    static LAST: Cell<QueryBlock> = Cell::default();
}

impl QueryBlock {
    /// A block that has seen nothing yet, in this thread's memory for one.
    pub(super) fn take(count: usize, shape: &AttentionShape) -> Self {
        let AttentionShape { head_dim, layout: KvLayout { page_size, .. }, scale, soft_cap, .. } = *shape;
        let score_stride = block_pages(page_size) * page_size;
        let mut block = Self { count, head_dim, page_size, scale, soft_cap, score_stride, ..LAST.take() };
        // Room for the largest block at once, so that no later one allocates. What lies there is written before it is read.
        for (numbers, width) in
            [(&mut block.queries, head_dim), (&mut block.scores, score_stride), (&mut block.slot_scales, score_stride)]
        {
            numbers.resize(numbers.len().max(BLOCK_QUERIES * width), 0.0);
        }
        for (numbers, width, value) in
            [(&mut block.max, 1, f32::NEG_INFINITY), (&mut block.sum, 1, 0.0), (&mut block.weighted, head_dim, 0.0)]
        {
            numbers.clear();
            numbers.reserve_exact(BLOCK_QUERIES * width);
            numbers.resize(count * width, value);
        }
        block
    }

    pub(super) fn set_query(&mut self, i: usize, query: &[f32]) {
        self.queries[i * self.head_dim..(i + 1) * self.head_dim].copy_from_slice(query);
    }

    /// Leaves the memory to the next block of this thread.
    pub(super) fn give_back(self) {
        LAST.set(self);
    }

    /// Attention to the KV block that begins with page `first_page`, as far as the queries see it. Query `i` has the `slope` of its head, if that
    /// has one. What comes after the block is prefetched meanwhile.
    #[inline(always)]
    pub(super) fn attend<S: Simd, E: KvElement>(
        &mut self,
        simd: S,
        first_page: usize,
        context: &Context<E>,
        slope: impl Fn(usize) -> Option<f32>,
        mut prefetch: Prefetch,
    ) {
        let (page_size, count) = (self.page_size, self.count);
        let Context { visible, keys, values, .. } = context;
        let (pages, positions) = (context.pages_from(first_page), context.positions(first_page));
        let first = positions.start;
        // Where the pages begin in a row of scores.
        let place = pages.start * page_size - first;
        let scaled = keys.copy_scales(pages.clone(), &mut self.slot_scales[place..]);
        simd.call(Scores {
            queries: &self.queries[..count * self.head_dim],
            keys: keys.block(pages.clone()),
            scale: self.scale,
            slot_scales: if scaled { &self.slot_scales[place..] } else { &[] },
            scores: &mut self.scores[place..],
            score_stride: self.score_stride,
            prefetch: &mut prefetch,
        });
        for i in 0..count {
            let scores = &mut self.scores[i * self.score_stride..(i + 1) * self.score_stride];
            let scores = &mut scores[place..place + pages.len() * page_size];
            if let Some(cap) = self.soft_cap {
                simd.call(SoftCap { cap, scores });
            }
            if let Some(slope) = slope(i) {
                add_alibi(scores, slope, pages.start * page_size, self.scale);
            }
        }
        let scaled = values.copy_scales(pages.clone(), &mut self.slot_scales[place..]);
        let seen = |i: usize| visible.within(i, &positions);
        for i in 0..count {
            if !seen(i).is_empty() {
                self.update_softmax(simd, i, seen(i), scaled);
            }
        }
        let values = values.block(pages);
        let mut add_weighted = |queries: Range<usize>, tokens: Range<usize>| {
            if !tokens.is_empty() {
                let dim = self.head_dim;
                simd.call(WeightedSum {
                    weights: &self.scores[queries.start * self.score_stride + place..],
                    weight_stride: self.score_stride,
                    values,
                    tokens: tokens.start - place..tokens.end - place,
                    sums: &mut self.weighted[queries.start * dim..queries.end * dim],
                    prefetch: &mut prefetch,
                });
            }
        };
        // Each query has its values in order: those that some do not see, those that all see, and the others.
        let (all_from, all_to) = (seen(count - 1).start, seen(0).end);
        if all_from >= all_to {
            (0..count).for_each(|i| add_weighted(i..i + 1, seen(i)));
        } else {
            (0..count).for_each(|i| add_weighted(i..i + 1, seen(i).start..all_from));
            add_weighted(0..count, all_from..all_to);
            (0..count).for_each(|i| add_weighted(i..i + 1, all_to..seen(i).end));
        }
    }

    /// Turns the scores of query `i`, those of the block that it sees, into `e^(score - max)`, `scaled` as values are, and
    /// rescales its sums if there is a new maximum.
    #[inline(always)]
    fn update_softmax<S: Simd>(&mut self, simd: S, i: usize, seen: Range<usize>, scaled: bool) {
        // Whole vectors: what is added for the others is zero.
        let whole = seen.start - seen.start % S::LANES..seen.end.next_multiple_of(S::LANES);
        let scores = &mut self.scores[i * self.score_stride..(i + 1) * self.score_stride];
        scores[whole.start..seen.start].fill(f32::NEG_INFINITY);
        scores[seen.end..whole.end].fill(f32::NEG_INFINITY);
        let scales = &self.slot_scales[whole.clone()];
        let scores = &mut scores[whole];
        let mut lanes = simd.splat(f32::NEG_INFINITY);
        for part in scores.chunks_exact(S::LANES) {
            lanes = simd.max(simd.load_slice(part), lanes);
        }
        let greatest = simd.greatest(lanes);
        let max = if greatest > self.max[i] { greatest } else { self.max[i] };
        if self.max[i] == f32::NEG_INFINITY {
            // Nothing is summed up yet.
            self.max[i] = max;
        } else if max != self.max[i] {
            let correction = (self.max[i] - max).exp();
            self.max[i] = max;
            self.sum[i] *= correction;
            for x in &mut self.weighted[i * self.head_dim..(i + 1) * self.head_dim] {
                *x *= correction;
            }
        }
        let mut sum = simd.splat(0.0);
        for (part, scales) in scores.chunks_exact_mut(S::LANES).zip(scales.chunks_exact(S::LANES)) {
            let e = simd.exp(simd.sub(simd.load_slice(part), simd.splat(max)));
            simd.store_slice(part, if scaled { simd.mul(e, simd.load_slice(scales)) } else { e });
            sum = simd.add(sum, e);
        }
        self.sum[i] += simd.sum(sum);
    }

    /// The result of query `i`.
    #[inline(always)]
    pub(super) fn write(&self, i: usize, output: &mut [f32]) {
        let weighted = &self.weighted[i * self.head_dim..(i + 1) * self.head_dim];
        let sum = self.sum[i];
        for (y, x) in output.iter_mut().zip(weighted) {
            *y = x / sum;
        }
    }
}

//! A few queries and their softmax so far, in f32.

use std::{cell::Cell, marker::PhantomData, ops::Range};

use super::{AttentionShape, BLOCK_QUERIES, PagedHeads, Sight, span_pages, weigh::Weigh};
use crate::{
    kv::Heads,
    matmul::{
        element::Element,
        tile::{Product, Sums, Tokens, WeightRows},
    },
    simd::{MAX_LANES, Simd},
};

/// Queries that go through pages together. Nothing that one of them sums up depends on the others.
#[derive(Default)]
pub(super) struct QueryBlock {
    /// `[query][head_dim]`.
    pub(super) queries: Vec<f32>,
    head_dim: usize,
    page_size: usize,
    scale: f32,
    /// `[query][score_stride]`: scores of one span and then their exponentials.
    scores: Vec<f32>,
    /// The tokens of a span, filled up to whole vectors.
    score_stride: usize,
    /// For each query the greatest score so far.
    max: Vec<f32>,
    /// For each query the sum of `e^(score - max)`.
    sum: Vec<f32>,
    /// `[query][head_dim]`: the sum of `e^(score - max) * value`.
    weighted: Vec<f32>,
}

thread_local! {
    /// The block that this thread used last, for its memory.
    static LAST: Cell<QueryBlock> = Cell::default();
}

/// Queries that see the same slots of a page.
#[derive(Clone)]
struct Seen {
    queries: Range<usize>,
    slots: Range<usize>,
}

impl QueryBlock {
    /// A block that has seen nothing yet, in this thread's memory for one.
    pub(super) fn take(count: usize, shape: &AttentionShape) -> Self {
        let AttentionShape { head_dim, page_size, scale, .. } = *shape;
        let score_stride = (span_pages(page_size) * page_size).next_multiple_of(MAX_LANES);
        let mut block = Self { head_dim, page_size, scale, score_stride, ..LAST.take() };
        for (numbers, width, value) in [
            (&mut block.queries, head_dim, 0.0),
            (&mut block.scores, score_stride, 0.0),
            (&mut block.max, 1, f32::NEG_INFINITY),
            (&mut block.sum, 1, 0.0),
            (&mut block.weighted, head_dim, 0.0),
        ] {
            numbers.clear();
            // The largest block at once, so that no later one asks for memory.
            numbers.reserve_exact(BLOCK_QUERIES * width);
            numbers.resize(count * width, value);
        }
        block
    }

    /// Leaves the memory to the next block of this thread.
    pub(super) fn give_back(self) {
        LAST.set(self);
    }

    /// The queries see what they may of `pages`, which lie in one span. The span begins at position `first`.
    ///
    /// # Safety
    /// `keys` and `values` have elements `E`.
    #[inline(always)]
    pub(super) unsafe fn absorb<S: Simd, E: Element>(
        &mut self,
        simd: S,
        first: usize,
        pages: Range<usize>,
        sight: &Sight,
        keys: &PagedHeads,
        values: &PagedHeads,
    ) {
        // What comes next is asked for meanwhile: keys, values, and the keys of the next span.
        for page in pages.clone() {
            let next = if page + 1 < pages.end { keys.start_of(page + 1) } else { values.start_of(pages.start) };
            let (heads, place) = (keys.page(page), page * self.page_size - first);
            for seen in self.seen(page, sight) {
                // SAFETY: by contract, and these are the page's heads.
                unsafe { self.score::<S, E>(simd, seen, place, heads, next) };
            }
        }
        let positions = first..first + span_pages(self.page_size) * self.page_size;
        for i in 0..self.max.len() {
            let seen = sight.within(i, &positions);
            if !seen.is_empty() {
                self.exponentiate(simd, i, seen);
            }
        }
        for page in pages.clone() {
            let next = if page + 1 < pages.end { values.start_of(page + 1) } else { keys.start_of(page + 1) };
            let (heads, place) = (values.page(page), page * self.page_size - first);
            for seen in self.seen(page, sight) {
                self.scale_scores(&seen, place, heads.scales);
                let dim = self.head_dim;
                let Seen { queries, slots } = seen;
                simd.call(Weigh::<E> {
                    weights: &self.scores[queries.start * self.score_stride + place + slots.start..],
                    weight_stride: self.score_stride,
                    values: heads.start.wrapping_add(slots.start * dim * E::SIZE),
                    rows: slots.len(),
                    dim,
                    sums: &mut self.weighted[queries.start * dim..queries.end * dim],
                    next,
                    element: PhantomData,
                });
            }
        }
    }

    /// All queries together if they see the whole page, else those that see something of it one by one.
    fn seen(&self, page: usize, sight: &Sight) -> impl Iterator<Item = Seen> + use<> {
        let count = self.max.len();
        let positions = page * self.page_size..(page + 1) * self.page_size;
        let slots = [0, count - 1].map(|i| sight.within(i, &positions));
        let whole = slots.iter().all(|slots| slots.len() == self.page_size);
        let together = whole.then_some(Seen { queries: 0..count, slots: 0..self.page_size });
        let sight = *sight;
        let one = move |i: usize| {
            let slots = sight.within(i, &positions);
            (!slots.is_empty()).then_some(Seen { queries: i..i + 1, slots })
        };
        together.into_iter().chain((0..if whole { 0 } else { count }).filter_map(one))
    }

    /// Writes scores from `place` on.
    ///
    /// # Safety
    /// `keys` are the heads of a page, of elements `E`.
    #[inline(always)]
    unsafe fn score<S: Simd, E: Element>(&mut self, simd: S, seen: Seen, place: usize, keys: Heads, next: *const u8) {
        let dim = self.head_dim;
        let Seen { queries, slots } = seen.clone();
        let scores = &mut self.scores[queries.start * self.score_stride..queries.end * self.score_stride];
        let product = Product {
            weight: WeightRows::<E> {
                start: keys.start.wrapping_add(slots.start * dim * E::SIZE),
                stride: dim * E::SIZE,
                element: PhantomData,
            },
            input: Tokens { start: self.queries[queries.start * dim..queries.end * dim].as_ptr(), stride: dim },
            output: Sums { start: scores[place + slots.start..].as_mut_ptr(), stride: self.score_stride, add: false },
            rows: slots.len(),
            tokens: queries.len(),
            columns: dim,
            next,
        };
        // SAFETY: the page has these slots; the slices have just been cut to these sizes; a row of scores has room for a
        // span's slots.
        simd.call(unsafe { product.promise() });
        self.scale_scores(&seen, place, keys.scales);
    }

    /// Multiplies what belongs to a slot, a score or its exponential, by the slot's scale.
    #[inline(always)]
    fn scale_scores(&mut self, seen: &Seen, place: usize, scales: &[f32]) {
        if scales.is_empty() {
            return;
        }
        let Seen { queries, slots } = seen;
        let rows = &mut self.scores[queries.start * self.score_stride..queries.end * self.score_stride];
        for row in rows.chunks_exact_mut(self.score_stride) {
            for (score, scale) in row[place + slots.start..place + slots.end].iter_mut().zip(&scales[slots.clone()]) {
                *score *= scale;
            }
        }
    }

    /// Turns the scores of query `i`, those of the span that it sees, into `e^(score - max)`, and rescales its sums if there
    /// is a new maximum.
    #[inline(always)]
    fn exponentiate<S: Simd>(&mut self, simd: S, i: usize, seen: Range<usize>) {
        // Whole vectors: what is added for the others is zero.
        let whole = seen.start - seen.start % S::LANES..seen.end.next_multiple_of(S::LANES);
        let scores = &mut self.scores[i * self.score_stride..(i + 1) * self.score_stride];
        scores[whole.start..seen.start].fill(f32::NEG_INFINITY);
        scores[seen.end..whole.end].fill(f32::NEG_INFINITY);
        let scores = &mut scores[whole];
        let mut lanes = simd.splat(f32::NEG_INFINITY);
        for part in scores.chunks_exact_mut(S::LANES) {
            let v = simd.mul(simd.load_slice(part), simd.splat(self.scale));
            simd.store_slice(part, v);
            lanes = simd.max(v, lanes);
        }
        let greatest = simd.greatest(lanes);
        let max = if greatest > self.max[i] { greatest } else { self.max[i] };
        if max != self.max[i] {
            let correction = (self.max[i] - max).exp();
            self.max[i] = max;
            self.sum[i] *= correction;
            for x in &mut self.weighted[i * self.head_dim..(i + 1) * self.head_dim] {
                *x *= correction;
            }
        }
        let mut sum = simd.splat(0.0);
        for part in scores.chunks_exact_mut(S::LANES) {
            let e = simd.exp(simd.sub(simd.load_slice(part), simd.splat(max)));
            simd.store_slice(part, e);
            sum = simd.add(sum, e);
        }
        self.sum[i] += simd.sum(sum);
    }

    /// The result of query `i`.
    pub(super) fn write(&self, i: usize, output: &mut [f32]) {
        let weighted = &self.weighted[i * self.head_dim..(i + 1) * self.head_dim];
        let sum = self.sum[i];
        output.iter_mut().zip(weighted).for_each(|(y, x)| *y = x / sum);
    }
}

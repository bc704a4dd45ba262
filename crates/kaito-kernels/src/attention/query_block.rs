//! A few queries and their softmax so far, in f32.

use std::{cell::Cell, marker::PhantomData, ops::Range};

use super::BLOCK_QUERIES;
use crate::{
    kv::Heads,
    matmul::{
        element::Element,
        tile::{Product, Sums, Tokens, WeightRows},
    },
    simd::{Kernel, MAX_LANES, Simd},
};

/// Queries that go through pages together. Nothing that one of them sums up depends on the others.
#[derive(Default)]
pub(super) struct QueryBlock {
    /// `[query][head_dim]`.
    pub(super) queries: Vec<f32>,
    head_dim: usize,
    scale: f32,
    /// `[query][score_stride]`: scores of one page and then their exponentials, filled up to whole vectors.
    scores: Vec<f32>,
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

impl QueryBlock {
    /// A block that has seen nothing yet, in this thread's memory for one.
    pub(super) fn take(count: usize, head_dim: usize, page_size: usize, scale: f32) -> Self {
        let score_stride = page_size.next_multiple_of(MAX_LANES);
        let mut block = Self { head_dim, scale, score_stride, ..LAST.take() };
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

    /// The queries `which` see the slots `slots` of a page.
    ///
    /// # Safety
    /// `keys` and `values` are the heads of all slots of the page, of elements `E`.
    #[inline(always)]
    pub(super) unsafe fn absorb<S: Simd, E: Element>(
        &mut self,
        simd: S,
        which: Range<usize>,
        slots: Range<usize>,
        keys: Heads,
        values: Heads,
    ) {
        let dim = self.head_dim;
        let first = slots.start * dim * E::SIZE;
        let scores = &mut self.scores[which.start * self.score_stride..which.end * self.score_stride];
        let product = Product {
            weight: WeightRows::<E> {
                start: keys.start.wrapping_add(first),
                stride: dim * E::SIZE,
                element: PhantomData,
            },
            input: Tokens { start: self.queries[which.start * dim..which.end * dim].as_ptr(), stride: dim },
            output: Sums { start: scores[slots.start..].as_mut_ptr(), stride: self.score_stride, add: false },
            rows: slots.len(),
            tokens: which.len(),
            columns: dim,
            next: std::ptr::null(),
        };
        // SAFETY: the page has these slots; the slices have just been cut to these sizes; a row of scores has room for a
        // page's slots.
        simd.call(unsafe { product.promise() });
        self.scale_scores(which.clone(), slots.clone(), keys.scales);
        for i in which.clone() {
            self.exponentiate(simd, i, slots.clone());
        }
        self.scale_scores(which.clone(), slots.clone(), values.scales);
        simd.call(Weigh::<E> {
            weights: &self.scores[which.start * self.score_stride + slots.start..],
            weight_stride: self.score_stride,
            values: values.start.wrapping_add(first),
            rows: slots.len(),
            dim,
            sums: &mut self.weighted[which.start * dim..which.end * dim],
            element: PhantomData,
        });
    }

    /// Multiplies what belongs to a slot, a score or its exponential, by the slot's scale.
    #[inline(always)]
    fn scale_scores(&mut self, which: Range<usize>, slots: Range<usize>, scales: &[f32]) {
        if scales.is_empty() {
            return;
        }
        let rows = &mut self.scores[which.start * self.score_stride..which.end * self.score_stride];
        for row in rows.chunks_exact_mut(self.score_stride) {
            for (score, scale) in row[slots.clone()].iter_mut().zip(&scales[slots.clone()]) {
                *score *= scale;
            }
        }
    }

    /// Turns the scores of query `i` into `e^(score - max)`, and rescales its sums if there is a new maximum.
    #[inline(always)]
    fn exponentiate<S: Simd>(&mut self, simd: S, i: usize, slots: Range<usize>) {
        let scores = &mut self.scores[i * self.score_stride..(i + 1) * self.score_stride];
        scores[..slots.start].fill(f32::NEG_INFINITY);
        scores[slots.end..].fill(f32::NEG_INFINITY);
        let mut lanes = simd.splat(f32::NEG_INFINITY);
        for part in scores.chunks_exact_mut(S::LANES) {
            let v = simd.mul(simd.load_slice(part), simd.splat(self.scale));
            simd.store_slice(part, v);
            lanes = simd.max(v, lanes);
        }
        let mut greatest = [f32::NEG_INFINITY; MAX_LANES];
        simd.store_slice(&mut greatest, lanes);
        let mut max = self.max[i];
        for x in greatest {
            max = if x > max { x } else { max };
        }
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
        let scale = 1.0 / self.sum[i];
        output.iter_mut().zip(weighted).for_each(|(y, x)| *y = x * scale);
    }
}

/// `sums[q][d] += sum_s weights[q][s] * values[s][d]`, in the order of `s`. Made by [`QueryBlock::absorb`] alone, which
/// knows that the values are there.
struct Weigh<'a, E> {
    weights: &'a [f32],
    weight_stride: usize,
    /// `rows` rows of `dim` elements.
    values: *const u8,
    rows: usize,
    dim: usize,
    sums: &'a mut [f32],
    element: PhantomData<E>,
}

impl<E: Element> Kernel for Weigh<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let queries = self.sums.len() / self.dim;
        let mut q = 0;
        while q + 4 <= queries {
            self.queries::<S, 4>(simd, q);
            q += 4;
        }
        while q < queries {
            self.queries::<S, 1>(simd, q);
            q += 1;
        }
    }
}

impl<E: Element> Weigh<'_, E> {
    #[inline(always)]
    fn queries<S: Simd, const Q: usize>(&mut self, simd: S, q: usize) {
        let mut d = 0;
        while d + 2 * S::LANES <= self.dim {
            self.tile::<S, Q, 2>(simd, q, d);
            d += 2 * S::LANES;
        }
        while d + S::LANES <= self.dim {
            self.tile::<S, Q, 1>(simd, q, d);
            d += S::LANES;
        }
        if d < self.dim {
            self.tail::<S, Q>(simd, q, d);
        }
    }

    /// Where element `d` of row `s` lies.
    #[inline(always)]
    fn value(&self, s: usize, d: usize) -> *const u8 {
        self.values.wrapping_add((s * self.dim + d) * E::SIZE)
    }

    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // Iterators take closures, which are not compiled for the instruction set.
    fn tile<S: Simd, const Q: usize, const D: usize>(&mut self, simd: S, q: usize, d: usize) {
        let mut sums = [[simd.splat(0.0); D]; Q];
        for i in 0..Q {
            for j in 0..D {
                sums[i][j] = simd.load_slice(&self.sums[(q + i) * self.dim + d + j * S::LANES..]);
            }
        }
        let mut values = [simd.splat(0.0); D];
        for s in 0..self.rows {
            for j in 0..D {
                // SAFETY: `D` vectors from `d` on lie within a row, see `queries`.
                values[j] = unsafe { E::load(simd, self.value(s, d + j * S::LANES)) };
            }
            for i in 0..Q {
                let weight = simd.splat(self.weights[(q + i) * self.weight_stride + s]);
                for j in 0..D {
                    sums[i][j] = simd.mul_add(weight, values[j], sums[i][j]);
                }
            }
        }
        for i in 0..Q {
            for j in 0..D {
                simd.store_slice(&mut self.sums[(q + i) * self.dim + d + j * S::LANES..], sums[i][j]);
            }
        }
    }

    /// The dimensions from `d` on, fewer than a vector.
    #[inline(always)]
    fn tail<S: Simd, const Q: usize>(&mut self, simd: S, q: usize, d: usize) {
        for i in q..q + Q {
            let (place, left) = (i * self.dim + d..(i + 1) * self.dim, self.dim - d);
            let mut sum = simd.load_partial(&self.sums[place.clone()]);
            for s in 0..self.rows {
                let weight = simd.splat(self.weights[i * self.weight_stride + s]);
                // SAFETY: what is left of a row.
                let value = unsafe { E::load_partial(simd, self.value(s, d), left) };
                sum = simd.mul_add(weight, value, sum);
            }
            simd.store_partial(&mut self.sums[place], sum);
        }
    }
}

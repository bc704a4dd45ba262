//! The sum of the values of a KV block, weighted by the exponentials of scores.

use std::ops::Range;

use super::{
    Prefetch,
    paged_heads::KvBlock,
    tiles::{Tile, Tiles, tiled},
};
use crate::{
    kv::KvElement,
    simd::{Kernel, Simd},
};

/// `sums[q][d] += sum_t weights[q][t] * values[t][d]`, in the order of `t`, for some tokens `t` of a few pages.
pub(super) struct WeightedSum<'a, E> {
    /// A weight for each token of the pages, `weight_stride` from one query to the next.
    pub weights: &'a [f32],
    pub weight_stride: usize,
    /// `[page_size][dim]` in each page.
    pub values: KvBlock<'a, E>,
    pub tokens: Range<usize>,
    /// `[query][dim]`.
    pub sums: &'a mut [f32],
    /// What is prefetched meanwhile.
    pub prefetch: &'a mut Prefetch,
}

/// Pages that are gone through before the next vectors of their values: more would not stay in the first level cache,
/// fewer store and load the sums more often.
const PAGES_AT_ONCE: usize = 2;

impl<E: KvElement> Kernel for WeightedSum<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let tiles = Tiles::of(self.sums.len() / self.values.dim());
        let mut tokens = self.tokens.clone();
        while tokens.start < tokens.end {
            let page_size = self.values.page_size();
            let page = tokens.start / page_size;
            let end = ((page + PAGES_AT_ONCE) * page_size).min(tokens.end);
            let part = tokens.start..end;
            match tiles.vectors::<S>() {
                8 if const { S::MANY_REGISTERS } => self.part::<S, 8>(simd, &tiles, &part),
                2 if const { !S::MANY_REGISTERS } => self.part::<S, 2>(simd, &tiles, &part),
                _ => self.part::<S, 4>(simd, &tiles, &part),
            }
            tokens.start = end;
        }
    }
}

impl<E: KvElement> WeightedSum<'_, E> {
    /// Some tokens, `D` vectors of their values at a time.
    #[inline(always)]
    fn part<S: Simd, const D: usize>(&mut self, simd: S, tiles: &Tiles, tokens: &Range<usize>) {
        let dim = self.values.dim();
        let mut d = 0;
        while d + D * S::LANES <= dim {
            tiled!(tiles, S, D, |Q, tile| self.tile::<S, Q, D>(simd, tokens, tile, d));
            d += D * S::LANES;
        }
        while d + 2 * S::LANES <= dim {
            tiled!(tiles, S, 2, |Q, tile| self.tile::<S, Q, 2>(simd, tokens, tile, d));
            d += 2 * S::LANES;
        }
        if d + S::LANES <= dim {
            tiled!(tiles, S, 1, |Q, tile| self.tile::<S, Q, 1>(simd, tokens, tile, d));
            d += S::LANES;
        }
        if d < dim {
            tiled!(tiles, S, 1, |Q, tile| self.tail::<S, Q>(simd, tokens, tile, d));
        }
    }

    /// In bytes, how far element `d` of slot `slot` is from the beginning of a page.
    #[inline(always)]
    fn place(&self, slot: usize, d: usize) -> usize {
        (slot * self.values.dim() + d) * E::SIZE
    }

    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // Iterators take closures, which are not compiled for the instruction set.
    fn tile<S: Simd, const Q: usize, const D: usize>(&mut self, simd: S, tokens: &Range<usize>, tile: Tile, d: usize) {
        let (dim, page_size) = (self.values.dim(), self.values.page_size());
        let totals = self.sums[tile.query * dim..][..Q * dim][d..].as_mut_ptr();
        let mut sums = [[simd.splat(0.0); D]; Q];
        for i in 0..Q {
            for j in 0..D {
                // SAFETY: `Q` rows of `dim`, of which `D` vectors from `d` on, see `part`.
                sums[i][j] = unsafe { simd.load(totals.add(i * dim + j * S::LANES)) };
            }
        }
        let row = dim * E::SIZE;
        let mut page = tokens.start / page_size;
        let mut start = tokens.start;
        while start < tokens.end {
            let end = tokens.end.min((page + 1) * page_size);
            let mut weights = [std::ptr::null(); Q];
            for i in 0..Q {
                weights[i] = self.weights[(tile.query + i) * self.weight_stride..][start..end].as_ptr();
            }
            let first = self.place(start - page * page_size, d);
            let mut due = tile.prefetches(row, D * S::LANES * E::SIZE);
            let mut values = self.values.pages()[page].wrapping_add(first);
            for s in 0..end - start {
                if due.is_now(s * row) {
                    self.prefetch.next(simd);
                }
                // SAFETY: a page of a `KvBlock` has `page_size` tokens, rows of `dim` elements, of which `D` vectors from `d` on; there
                // are weights from `start` to `end`.
                unsafe {
                    let mut vectors = [simd.splat(0.0); D];
                    for j in 0..D {
                        vectors[j] = E::load(simd, values.add(j * S::LANES * E::SIZE));
                    }
                    for i in 0..Q {
                        let weight = simd.splat(*weights[i].add(s));
                        for j in 0..D {
                            sums[i][j] = simd.mul_add(weight, vectors[j], sums[i][j]);
                        }
                    }
                }
                values = values.wrapping_add(row);
            }
            start = end;
            page += 1;
        }
        for i in 0..Q {
            for j in 0..D {
                // SAFETY: as above.
                unsafe { simd.store(totals.add(i * dim + j * S::LANES), sums[i][j]) };
            }
        }
    }

    /// The dimensions from `d` on, fewer than a vector.
    #[inline(always)]
    fn tail<S: Simd, const Q: usize>(&mut self, simd: S, tokens: &Range<usize>, tile: Tile, d: usize) {
        let (dim, page_size) = (self.values.dim(), self.values.page_size());
        for i in tile.query..tile.query + Q {
            let (place, left) = (i * dim + d..(i + 1) * dim, dim - d);
            let mut sum = simd.load_partial(&self.sums[place.clone()]);
            for token in tokens.clone() {
                let weight = simd.splat(self.weights[i * self.weight_stride + token]);
                let row = self.place(token % page_size, d);
                let value = self.values.pages()[token / page_size].wrapping_add(row);
                // SAFETY: what is left of a row of `dim` elements, of which a page of a `KvBlock` has `page_size`.
                let value = unsafe { E::load_partial(simd, value, left) };
                sum = simd.mul_add(weight, value, sum);
            }
            simd.store_partial(&mut self.sums[place], sum);
        }
    }
}

//! The sum of values, weighted.

use std::{marker::PhantomData, ops::Range};

use super::{
    Ahead,
    tiles::{Tile, Tiles, tiled},
};
use crate::{
    matmul::element::Element,
    simd::{Kernel, Simd},
};

/// `sums[q][d] += sum_t weights[q][t] * values[t][d]`, in the order of `t`, for some tokens `t` of a few pages. Made by
/// [`super::QueryBlock::absorb`] alone, which knows that the values are there.
pub(super) struct Weigh<'a, E> {
    /// A weight for each token of the pages, `weight_stride` from one query to the next.
    pub weights: &'a [f32],
    pub weight_stride: usize,
    /// Where the values `[page_size][dim]` of each page begin.
    pub pages: &'a [*const u8],
    pub page_size: usize,
    pub tokens: Range<usize>,
    pub dim: usize,
    /// `[query][dim]`.
    pub sums: &'a mut [f32],
    /// What is asked for meanwhile.
    pub ahead: &'a mut Ahead,
    pub element: PhantomData<E>,
}

/// Pages that are gone through before the next vectors of their values: more would not stay in the first level cache,
/// fewer store and load the sums more often.
const PAGES_AT_ONCE: usize = 2;

impl<E: Element> Kernel for Weigh<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let tiles = Tiles::of(self.sums.len() / self.dim);
        let mut tokens = self.tokens.clone();
        while tokens.start < tokens.end {
            let page = tokens.start / self.page_size;
            let end = ((page + PAGES_AT_ONCE) * self.page_size).min(tokens.end);
            let part = tokens.start..end;
            match tiles.vectors::<S>() {
                8 => self.part::<S, 8>(simd, &tiles, &part),
                4 => self.part::<S, 4>(simd, &tiles, &part),
                _ => self.part::<S, 2>(simd, &tiles, &part),
            }
            tokens.start = end;
        }
    }
}

impl<E: Element> Weigh<'_, E> {
    /// Some tokens, `D` vectors of their values at a time.
    #[inline(always)]
    fn part<S: Simd, const D: usize>(&mut self, simd: S, tiles: &Tiles, tokens: &Range<usize>) {
        let mut d = 0;
        while d + D * S::LANES <= self.dim {
            tiled!(tiles, |Q, tile| self.tile::<S, Q, D>(simd, tokens, tile, d));
            d += D * S::LANES;
        }
        while d + 2 * S::LANES <= self.dim {
            tiled!(tiles, |Q, tile| self.tile::<S, Q, 2>(simd, tokens, tile, d));
            d += 2 * S::LANES;
        }
        if d + S::LANES <= self.dim {
            tiled!(tiles, |Q, tile| self.tile::<S, Q, 1>(simd, tokens, tile, d));
            d += S::LANES;
        }
        if d < self.dim {
            tiled!(tiles, |Q, tile| self.tail::<S, Q>(simd, tokens, tile, d));
        }
    }

    /// In bytes, how far element `d` of slot `slot` is from the beginning of a page.
    #[inline(always)]
    fn place(&self, slot: usize, d: usize) -> usize {
        (slot * self.dim + d) * E::SIZE
    }

    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // Iterators take closures, which are not compiled for the instruction set.
    fn tile<S: Simd, const Q: usize, const D: usize>(&mut self, simd: S, tokens: &Range<usize>, tile: Tile, d: usize) {
        let totals = self.sums[tile.query * self.dim..][..Q * self.dim][d..].as_mut_ptr();
        let mut sums = [[simd.splat(0.0); D]; Q];
        for i in 0..Q {
            for j in 0..D {
                // SAFETY: `Q` rows of `dim`, of which `D` vectors from `d` on, see `part`.
                sums[i][j] = unsafe { simd.load(totals.add(i * self.dim + j * S::LANES)) };
            }
        }
        let row = self.dim * E::SIZE;
        let mut page = tokens.start / self.page_size;
        let mut start = tokens.start;
        while start < tokens.end {
            let end = tokens.end.min((page + 1) * self.page_size);
            let mut weights = [std::ptr::null(); Q];
            for i in 0..Q {
                weights[i] = self.weights[(tile.query + i) * self.weight_stride..][start..end].as_ptr();
            }
            let first = self.place(start - page * self.page_size, d);
            let mut asked = tile.asked(row, D * S::LANES * E::SIZE);
            let mut values = self.pages[page].wrapping_add(first);
            for s in 0..end - start {
                if asked.is_due(s * row) {
                    self.ahead.ask(simd);
                }
                // SAFETY: a page has these tokens, rows of `dim` elements, of which `D` vectors from `d` on.
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
                unsafe { simd.store(totals.add(i * self.dim + j * S::LANES), sums[i][j]) };
            }
        }
    }

    /// The dimensions from `d` on, fewer than a vector.
    #[inline(always)]
    fn tail<S: Simd, const Q: usize>(&mut self, simd: S, tokens: &Range<usize>, tile: Tile, d: usize) {
        for i in tile.query..tile.query + Q {
            let (place, left) = (i * self.dim + d..(i + 1) * self.dim, self.dim - d);
            let mut sum = simd.load_partial(&self.sums[place.clone()]);
            for token in tokens.clone() {
                let weight = simd.splat(self.weights[i * self.weight_stride + token]);
                let row = self.place(token % self.page_size, d);
                // SAFETY: what is left of a row.
                let value =
                    unsafe { E::load_partial(simd, self.pages[token / self.page_size].wrapping_add(row), left) };
                sum = simd.mul_add(weight, value, sum);
            }
            simd.store_partial(&mut self.sums[place], sum);
        }
    }
}

//! The sum of values, weighted.

use std::marker::PhantomData;

use crate::{
    matmul::element::Element,
    simd::{CACHE_LINE, Kernel, Simd},
};

/// `sums[q][d] += sum_s weights[q][s] * values[s][d]`, in the order of `s`. Made by [`super::QueryBlock::absorb`] alone, which
/// knows that the values are there.
pub(super) struct Weigh<'a, E> {
    pub weights: &'a [f32],
    pub weight_stride: usize,
    /// `rows` rows of `dim` elements.
    pub values: *const u8,
    pub rows: usize,
    pub dim: usize,
    pub sums: &'a mut [f32],
    /// As many bytes from here on are asked for meanwhile. Null if there are none.
    pub next: *const u8,
    pub element: PhantomData<E>,
}

impl<E: Element> Kernel for Weigh<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let queries = self.sums.len() / self.dim;
        let mut q = 0;
        while q + 4 <= queries {
            if S::MANY_REGISTERS {
                self.queries::<S, 4, 4>(simd, q);
            } else {
                self.queries::<S, 4, 2>(simd, q);
            }
            q += 4;
        }
        while q < queries {
            // So many sums that none waits for the one before it.
            self.queries::<S, 1, 8>(simd, q);
            q += 1;
        }
    }
}

impl<E: Element> Weigh<'_, E> {
    /// `Q` queries from `q` on, `D` vectors of their sums at a time.
    #[inline(always)]
    fn queries<S: Simd, const Q: usize, const D: usize>(&mut self, simd: S, q: usize) {
        let mut d = 0;
        while d + D * S::LANES <= self.dim {
            self.tile::<S, Q, D>(simd, q, d);
            d += D * S::LANES;
        }
        while d + 2 * S::LANES <= self.dim {
            self.tile::<S, Q, 2>(simd, q, d);
            d += 2 * S::LANES;
        }
        if d + S::LANES <= self.dim {
            self.tile::<S, Q, 1>(simd, q, d);
            d += S::LANES;
        }
        if d < self.dim {
            self.tail::<S, Q>(simd, q, d);
        }
    }

    /// In bytes, how far element `d` of row `s` is from the first.
    #[inline(always)]
    fn place(&self, s: usize, d: usize) -> usize {
        (s * self.dim + d) * E::SIZE
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
        let mut weights = [[].as_slice(); Q];
        for i in 0..Q {
            weights[i] = &self.weights[(q + i) * self.weight_stride..][..self.rows];
        }
        let asks = q == 0 && !self.next.is_null();
        let mut values = [simd.splat(0.0); D];
        for s in 0..self.rows {
            if asks {
                for line in 0..(D * S::LANES * E::SIZE).div_ceil(CACHE_LINE) {
                    simd.prefetch(self.next.wrapping_add(self.place(s, d) + line * CACHE_LINE));
                }
            }
            for j in 0..D {
                // SAFETY: `D` vectors from `d` on lie within a row, see `queries`.
                values[j] = unsafe { E::load(simd, self.values.wrapping_add(self.place(s, d + j * S::LANES))) };
            }
            for i in 0..Q {
                let weight = simd.splat(weights[i][s]);
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
                let value = unsafe { E::load_partial(simd, self.values.wrapping_add(self.place(s, d)), left) };
                sum = simd.mul_add(weight, value, sum);
            }
            simd.store_partial(&mut self.sums[place], sum);
        }
    }
}

//! The innermost loop: a few weight rows times a few tokens, held in registers.

use std::marker::PhantomData;

use super::element::Element;
use crate::simd::{CACHE_LINE, Kernel, Simd};

/// Weight rows, whole or one block of their columns.
pub(crate) struct WeightRows<E> {
    /// The first element of the first row.
    pub start: *const u8,
    /// Bytes from one row to the next.
    pub stride: usize,
    pub element: PhantomData<E>,
}

impl<E> Clone for WeightRows<E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for WeightRows<E> {}

/// Tokens, whole or one block of their columns.
#[derive(Clone, Copy)]
pub(crate) struct Tokens {
    pub start: *const f32,
    pub stride: usize,
}

/// Where the sums go: that of token `t` and row `r` to `start[t * stride + r]`.
#[derive(Clone, Copy)]
pub(crate) struct Sums {
    pub start: *mut f32,
    pub stride: usize,
    /// Whether the sums are added to what is there.
    pub add: bool,
}

/// `columns` columns of `rows` weight rows times those of `tokens` tokens.
#[derive(Clone, Copy)]
pub(crate) struct Product<E> {
    pub weight: WeightRows<E>,
    pub input: Tokens,
    pub output: Sums,
    pub rows: usize,
    pub tokens: usize,
    pub columns: usize,
    /// The first of the weights that come next: as many rows and columns at the same stride, which are asked for
    /// meanwhile. Null if there are none.
    pub next: *const u8,
}

/// Which lines of a row a tile asks for: in bytes from its beginning.
#[derive(Clone, Copy)]
struct Lines {
    first: usize,
    step: usize,
}

/// A product that is safe to compute.
pub(crate) struct Checked<E>(Product<E>);

impl<E: Element> Kernel for Checked<E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        // SAFETY: whoever made it promised so.
        unsafe { self.0.compute(simd) };
    }
}

/// As many tokens as a tile takes, so that its sums stay in registers.
const MAX_TILE_TOKENS: usize = 6;

/// The rows that all tiles for `tokens` tokens take at once: few tokens leave registers for more rows.
#[inline(always)]
pub(crate) fn strip_rows<S: Simd>(tokens: usize) -> usize {
    let smallest = tokens / tokens.div_ceil(MAX_TILE_TOKENS);
    if smallest == 1 || (S::MANY_REGISTERS && smallest <= 3) { 8 } else { 4 }
}

impl<E: Element> Product<E> {
    /// # Safety
    /// Until the result is gone, the weight has `rows` rows and the input `tokens` rows of `columns` elements each; the output has `tokens` rows
    /// of `rows` elements, and nobody else uses them.
    pub(crate) unsafe fn promise(self) -> Checked<E> {
        Checked(self)
    }

    /// Goes through all rows for each tile of tokens.
    ///
    /// # Safety
    /// As [`Self::promise`].
    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, simd: S) {
        // Tiles of nearly the same size: 8 tokens are 4 and 4, not 6 and 2.
        let tiles = self.tokens.div_ceil(MAX_TILE_TOKENS);
        for tile in 0..tiles {
            let (first, end) = (tile * self.tokens / tiles, (tile + 1) * self.tokens / tiles);
            let part = Product {
                input: Tokens { start: self.input.start.wrapping_add(first * self.input.stride), ..self.input },
                output: Sums { start: self.output.start.wrapping_add(first * self.output.stride), ..self.output },
                tokens: end - first,
                ..*self
            };
            // The tiles share out the lines to ask for: this one has every `tiles`th.
            let lines = Lines { first: tile * CACHE_LINE, step: tiles * CACHE_LINE };
            // SAFETY: a part of the whole.
            unsafe {
                match (part.tokens, S::MANY_REGISTERS) {
                    (1, _) => part.tiles::<S, 8, 1>(simd, lines),
                    (2, true) => part.tiles::<S, 8, 2>(simd, lines),
                    (2, false) => part.tiles::<S, 4, 2>(simd, lines),
                    (3, true) => part.tiles::<S, 8, 3>(simd, lines),
                    (3, false) => part.tiles::<S, 4, 3>(simd, lines),
                    (4, true) => part.tiles::<S, 4, 4>(simd, lines),
                    (4, false) => part.tiles::<S, 2, 4>(simd, lines),
                    (5, true) => part.tiles::<S, 4, 5>(simd, lines),
                    (5, false) => part.tiles::<S, 2, 5>(simd, lines),
                    (6, true) => part.tiles::<S, 4, 6>(simd, lines),
                    (6, false) => part.tiles::<S, 2, 6>(simd, lines),
                    _ => unreachable!(),
                }
            }
        }
    }

    /// # Safety
    /// As [`Self::promise`], and `T == self.tokens`.
    #[inline(always)]
    unsafe fn tiles<S: Simd, const R: usize, const T: usize>(&self, simd: S, lines: Lines) {
        let mut r = 0;
        // SAFETY: rows `r..r + R`, or row `r`, of all.
        unsafe {
            while r + R <= self.rows {
                self.tile::<S, R, T>(simd, r, lines);
                r += R;
            }
            while r < self.rows {
                self.tile::<S, 1, T>(simd, r, lines);
                r += 1;
            }
        }
    }

    /// # Safety
    /// As [`Self::promise`], and there are `R` rows from `first_row` on and `T` tokens.
    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // Iterators take closures.
    unsafe fn tile<S: Simd, const R: usize, const T: usize>(&self, simd: S, first_row: usize, lines: Lines) {
        let mut weight = [self.weight.start; R];
        for r in 0..R {
            weight[r] = self.weight.start.wrapping_add((first_row + r) * self.weight.stride);
        }
        let mut input = [self.input.start; T];
        for t in 0..T {
            input[t] = self.input.start.wrapping_add(t * self.input.stride);
        }
        // No closures from here on: they are functions of their own, which are not compiled for the instruction set.
        let mut sums = [[simd.splat(0.0); T]; R];
        let next = self.next.wrapping_add(first_row * self.weight.stride);
        let mut line = if self.next.is_null() { usize::MAX } else { lines.first };
        // Many tokens have a line's columns without a loop, so that their addresses are made once for all of them. Few wait
        // for memory, and best in short steps.
        let stride = if T >= 4 { CACHE_LINE / E::SIZE } else { S::LANES };
        let mut c = 0;
        // SAFETY: `LANES` columns from `c` on, and at the end those that are left, of rows and tokens of the contract.
        unsafe {
            while c + stride <= self.columns {
                if line < (c + stride) * E::SIZE {
                    for r in 0..R {
                        simd.prefetch(next.wrapping_add(r * self.weight.stride + line));
                    }
                    line += lines.step;
                }
                for step in 0..stride / S::LANES {
                    add_products::<S, E, R, T>(simd, weight, input, c + step * S::LANES, &mut sums);
                }
                c += stride;
            }
            while c + S::LANES <= self.columns {
                add_products::<S, E, R, T>(simd, weight, input, c, &mut sums);
                c += S::LANES;
            }
            // A copy: what follows indexes it by variables, which would keep the sums of the loop above in memory.
            let mut results = [[simd.splat(0.0); R]; T];
            for t in 0..T {
                for r in 0..R {
                    results[t][r] = sums[r][t];
                }
            }
            if c < self.columns {
                let left = self.columns - c;
                for r in 0..R {
                    let w = E::load_partial(simd, weight[r].add(c * E::SIZE), left);
                    for t in 0..T {
                        let x = simd.load_partial(std::slice::from_raw_parts(input[t].add(c), left));
                        results[t][r] = simd.mul_add(x, w, results[t][r]);
                    }
                }
            }
            let mut totals = [[0.0; R]; T];
            let (fours, ones) = results.as_flattened().as_chunks::<4>();
            let (total_fours, total_ones) = totals.as_flattened_mut().as_chunks_mut::<4>();
            for (total, v) in total_fours.iter_mut().zip(fours) {
                *total = simd.sum4(*v);
            }
            for (total, v) in total_ones.iter_mut().zip(ones) {
                *total = simd.sum(*v);
            }
            for (t, totals) in totals.iter().enumerate() {
                let y = self.output.start.add(t * self.output.stride + first_row);
                for (y, total) in std::slice::from_raw_parts_mut(y, R).iter_mut().zip(totals) {
                    *y = if self.output.add { *y + total } else { *total };
                }
            }
        }
    }
}

/// Adds the products of `LANES` columns from `column` on to the sums of rows and tokens.
///
/// # Safety
/// Each row and each token has these columns.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // Iterators take closures.
unsafe fn add_products<S: Simd, E: Element, const R: usize, const T: usize>(
    simd: S,
    weight: [*const u8; R],
    input: [*const f32; T],
    column: usize,
    sums: &mut [[S::Vector; T]; R],
) {
    // SAFETY: by contract.
    unsafe {
        // The fewer vectors are kept, so that one register is enough for the others.
        if R < T {
            let mut w = [simd.splat(0.0); R];
            for r in 0..R {
                w[r] = E::load(simd, weight[r].add(column * E::SIZE));
            }
            for t in 0..T {
                let x = simd.load(input[t].add(column));
                for r in 0..R {
                    sums[r][t] = simd.mul_add(x, w[r], sums[r][t]);
                }
            }
        } else {
            let mut x = [simd.splat(0.0); T];
            for t in 0..T {
                x[t] = simd.load(input[t].add(column));
            }
            for r in 0..R {
                let w = E::load(simd, weight[r].add(column * E::SIZE));
                for t in 0..T {
                    sums[r][t] = simd.mul_add(x[t], w, sums[r][t]);
                }
            }
        }
    }
}

//! The innermost loop: a few weight rows times a few tokens, held in registers.

use std::{hint::black_box, marker::PhantomData, mem::MaybeUninit, ops::Range};

use super::{
    element::Element,
    input::{Tile, TiledInput},
};
use crate::{
    matrix::SharedRows,
    simd::{CACHE_LINE, Kernel, Simd},
};

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

/// `columns` columns of `rows` weight rows times those of all tokens of some tiles.
pub(crate) struct Product<'a, E> {
    pub weight: WeightRows<E>,
    pub input: &'a TiledInput,
    pub tiles: Range<usize>,
    /// The column of the input that the weight begins with: whole vectors.
    pub first_column: usize,
    pub output: SharedRows<'a>,
    /// The output's column of the first weight row.
    pub first_row: usize,
    /// From one weight row's column of the output to that of the next.
    pub apart: usize,
    /// Whether the sums are added to what is there.
    pub add: bool,
    pub rows: usize,
    pub columns: usize,
    /// Columns after which the next tile has its turn.
    pub span: usize,
    /// The first of the weights that come next: as many rows at the same stride, which are asked for meanwhile. Null if
    /// there are none.
    pub next: *const u8,
}

/// One tile of tokens and one span of columns.
struct Pass<'a> {
    tile: Tile<'a>,
    columns: Range<usize>,
    /// Which weights are asked for: those from here on, in all rows.
    next: *const u8,
    lines: Lines,
    /// The tile's first place among the sums that are kept.
    kept: usize,
}

/// Which lines of a row a tile asks for: in bytes from its beginning.
#[derive(Clone, Copy)]
struct Lines {
    first: usize,
    step: usize,
}

/// A product that is safe to compute.
pub(crate) struct Checked<'a, E>(Product<'a, E>);

impl<E: Element> Kernel for Checked<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        // SAFETY: whoever made it promised so.
        unsafe { self.0.compute(simd) };
    }
}

/// The rows that all tiles of at least `tokens` tokens take at once: few tokens leave registers for more rows.
#[inline(always)]
pub(crate) fn strip_rows<S: Simd>(tokens: usize) -> usize {
    if S::MANY_REGISTERS && tokens <= 3 { MAX_STRIP_ROWS } else { 4 }
}

const MAX_STRIP_ROWS: usize = 8;

/// A product that is cut into spans has at most so many tokens, and [`MAX_STRIP_ROWS`].
pub(crate) const MAX_SPAN_TOKENS: usize = 16;

/// Sums that wait for the next span of columns, `[tile][row][token]`.
type Kept<V> = [MaybeUninit<V>; MAX_STRIP_ROWS * MAX_SPAN_TOKENS];

impl<'a, E: Element> Product<'a, E> {
    /// # Safety
    /// Until the result is gone, the weight has `rows` rows of `columns` elements, the input as many columns from `first_column`
    /// on and was made for the level that this is computed on, the output has `rows` elements `apart` from each other, from
    /// `first_row` on, in each of the tiles' tokens, and nobody else uses them.
    pub(crate) unsafe fn promise(self) -> Checked<'a, E> {
        Checked(self)
    }

    /// Goes through all rows for each tile of tokens, and through all tiles for each span of columns.
    ///
    /// # Safety
    /// As [`Self::promise`].
    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, simd: S) {
        let first_token = self.input.tile_at(self.tiles.start).first_token;
        let mut kept: Kept<S::Vector> = [MaybeUninit::uninit(); MAX_STRIP_ROWS * MAX_SPAN_TOKENS];
        for start in (0..self.columns).step_by(self.span) {
            let columns = start..self.columns.min(start + self.span);
            let next = if columns.end < self.columns {
                self.weight.start.wrapping_add(columns.end * E::SIZE)
            } else {
                self.next
            };
            for i in self.tiles.clone() {
                let tile = self.input.tile_at(i);
                // The tiles share out the lines to ask for: this one has every `tiles`th.
                let tiles = self.tiles.len();
                let lines = Lines { first: (i - self.tiles.start) * CACHE_LINE, step: tiles * CACHE_LINE };
                let kept_of_tile = (tile.first_token - first_token) * self.rows;
                let part = Pass { tile, columns: columns.clone(), next, lines, kept: kept_of_tile };
                // SAFETY: a part of the whole.
                unsafe {
                    match (part.tile.tokens, S::MANY_REGISTERS) {
                        (1, true) => self.rows_of::<S, 8, 1>(simd, &part, &mut kept),
                        (1, false) => self.rows_of::<S, 4, 1>(simd, &part, &mut kept),
                        (2, true) => self.rows_of::<S, 8, 2>(simd, &part, &mut kept),
                        (2, false) => self.rows_of::<S, 4, 2>(simd, &part, &mut kept),
                        (3, true) => self.rows_of::<S, 8, 3>(simd, &part, &mut kept),
                        (3, false) => self.rows_of::<S, 4, 3>(simd, &part, &mut kept),
                        (4, true) => self.rows_of::<S, 4, 4>(simd, &part, &mut kept),
                        (4, false) => self.rows_of::<S, 2, 4>(simd, &part, &mut kept),
                        (5, true) => self.rows_of::<S, 4, 5>(simd, &part, &mut kept),
                        (5, false) => self.rows_of::<S, 2, 5>(simd, &part, &mut kept),
                        (6, true) => self.rows_of::<S, 4, 6>(simd, &part, &mut kept),
                        (6, false) => self.rows_of::<S, 2, 6>(simd, &part, &mut kept),
                        _ => unreachable!(),
                    }
                }
            }
        }
    }

    /// # Safety
    /// As [`Self::promise`], and the tile has `T` tokens.
    #[inline(always)]
    unsafe fn rows_of<S: Simd, const R: usize, const T: usize>(
        &self,
        simd: S,
        pass: &Pass,
        kept: &mut Kept<S::Vector>,
    ) {
        let mut r = 0;
        // SAFETY: rows `r..r + R`, or row `r`, of all.
        unsafe {
            while r + R <= self.rows {
                self.rows_at::<S, R, T>(simd, r, pass, kept);
                r += R;
            }
            while r < self.rows {
                self.rows_at::<S, 1, T>(simd, r, pass, kept);
                r += 1;
            }
        }
    }

    /// # Safety
    /// As [`Self::promise`], and there are `R` rows from `first_row` on and `T` tokens.
    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // Iterators take closures.
    unsafe fn rows_at<S: Simd, const R: usize, const T: usize>(
        &self,
        simd: S,
        first_row: usize,
        pass: &Pass,
        kept: &mut Kept<S::Vector>,
    ) {
        let mut weight = [self.weight.start; R];
        for r in 0..R {
            weight[r] = self.weight.start.wrapping_add((first_row + r) * self.weight.stride);
        }
        // Otherwise the compiler adds up their distances again at each step of the loop, and a token that waits for memory has
        // fewer loads under way.
        let weight = black_box(weight);
        let values = &pass.tile.values[self.first_column * T..];
        let input = values.as_ptr();
        // No closures from here on: they are functions of their own, which are not compiled for the instruction set.
        let mut sums = [[simd.splat(0.0); T]; R];
        let first_kept = pass.kept + first_row * T;
        if pass.columns.start > 0 {
            for (i, sum) in sums.as_flattened_mut().iter_mut().enumerate() {
                // SAFETY: the span before has left it there.
                *sum = unsafe { kept[first_kept + i].assume_init() };
            }
        }
        if self.add && pass.columns.end == self.columns {
            // What the sums will be added to: tokens lie far apart, often at the same places of the caches.
            let column = self.first_row + first_row * self.apart;
            for t in 0..T {
                simd.prefetch(self.output.at(pass.tile.first_token + t, column).cast());
            }
        }
        let next = pass.next.wrapping_add(first_row * self.weight.stride);
        let mut line = if pass.next.is_null() { usize::MAX } else { pass.lines.first };
        // Many tokens have a line's columns without a loop, so that their addresses are made once for all of them. Few wait
        // for memory, and best in short steps.
        let stride = if T >= 4 { CACHE_LINE / E::SIZE } else { S::LANES };
        let mut c = pass.columns.start;
        let end = pass.columns.end;
        // SAFETY: `LANES` columns from `c` on, and at the end those that are left, of rows and tokens of the contract.
        unsafe {
            while c + stride <= end {
                if line < (c - pass.columns.start + stride) * E::SIZE {
                    for r in 0..R {
                        simd.prefetch(next.wrapping_add(r * self.weight.stride + line));
                    }
                    line += pass.lines.step;
                }
                for step in 0..stride / S::LANES {
                    let c = c + step * S::LANES;
                    add_products::<S, E, R, T>(simd, weight, c, input.add(c * T), &mut sums);
                }
                c += stride;
            }
            while c + S::LANES <= end {
                add_products::<S, E, R, T>(simd, weight, c, input.add(c * T), &mut sums);
                c += S::LANES;
            }
        }
        if end < self.columns {
            for (i, sum) in sums.as_flattened().iter().enumerate() {
                kept[first_kept + i].write(*sum);
            }
            return;
        }
        // SAFETY: as above.
        unsafe {
            // A copy: what follows indexes it by variables, which would keep the sums of the loop above in memory.
            let mut results = [[simd.splat(0.0); R]; T];
            for t in 0..T {
                for r in 0..R {
                    results[t][r] = sums[r][t];
                }
            }
            if c < end {
                for r in 0..R {
                    let w = E::load_partial(simd, weight[r].add(c * E::SIZE), end - c);
                    for t in 0..T {
                        let x = simd.load(input.add(c * T + t * S::LANES));
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
                for (r, total) in totals.iter().enumerate() {
                    let column = self.first_row + (first_row + r) * self.apart;
                    let y = &mut self.output.slice(pass.tile.first_token + t, column, 1)[0];
                    *y = if self.add { *y + total } else { *total };
                }
            }
        }
    }
}

/// Adds the products of `LANES` columns from `column` on, of which the tokens' values are those at `input`, to the sums of
/// rows and tokens.
///
/// # Safety
/// Each row has these columns, and there are `T` vectors of values.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // Iterators take closures.
unsafe fn add_products<S: Simd, E: Element, const R: usize, const T: usize>(
    simd: S,
    weight: [*const u8; R],
    column: usize,
    input: *const f32,
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
                let x = simd.load(input.add(t * S::LANES));
                for r in 0..R {
                    sums[r][t] = simd.mul_add(x, w[r], sums[r][t]);
                }
            }
        } else {
            let mut x = [simd.splat(0.0); T];
            for t in 0..T {
                x[t] = simd.load(input.add(t * S::LANES));
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

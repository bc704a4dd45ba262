//! The innermost loop: a few weight rows times a few tokens, whose sums are held in registers (register blocking).

use std::{hint::black_box, mem::MaybeUninit, ops::Range};

use super::{
    element::Element,
    input::{MAX_TILE_TOKENS, Tile, TiledInput},
    weight_rows::WeightRows,
};
use crate::{
    partition::PartMut,
    simd::{CACHE_LINE, Kernel, Simd},
};

/// Some weight rows times all tokens of some tiles. It is safe to compute whatever its fields are: the weight rows are there, the
/// outputs are the [`PartMut`]'s own, and the input is a slice.
pub(super) struct Product<'a, 'p, E> {
    pub weight: WeightRows<'a, E>,
    /// Made for the level that this is computed on.
    pub input: &'a TiledInput,
    pub tiles: Range<usize>,
    pub output: &'a mut PartMut<'p>,
    /// The output's column of the first weight row.
    pub first_row: usize,
    /// From one weight row's column of the output to that of the next.
    pub apart: usize,
    /// Whether the sums are added to what is there.
    pub add: bool,
    /// Columns of a segment: all tiles are multiplied by one before any is by the next.
    pub segment: usize,
    /// The first of the weights that come next: as many rows at the same stride, which are prefetched meanwhile. Null if
    /// there are none.
    pub next: *const u8,
}

/// One tile of tokens and one segment of columns, counted from the weight's first one.
struct Pass<'a> {
    tile: Tile<'a>,
    columns: Range<usize>,
    /// Which weights are prefetched: those from here on, in all rows.
    next: *const u8,
    lines: Lines,
    /// The next tile's values of these columns, which are prefetched while the last rows are computed. Null if there are none, or if
    /// all tiles stay in the cache.
    next_values: *const f32,
    /// The tile's first place among the sums that are kept.
    kept: usize,
}

/// Which cache lines of a row a tile prefetches: in bytes from its beginning.
#[derive(Clone, Copy)]
struct Lines {
    first: usize,
    step: usize,
}

impl<E: Element> Kernel for Product<'_, '_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        self.compute(simd);
    }
}

/// The weight rows that all tiles of `least` to `most` tokens take at once: few tokens leave registers for more rows.
#[inline(always)]
pub(super) fn strip_rows<S: Simd>(least: usize, most: usize) -> usize {
    match (least, most) {
        _ if !S::MANY_REGISTERS => 4,
        (..=3, _) => MAX_STRIP_ROWS,
        (4, 4) => 6,
        (5, 5) => 5,
        _ => 4,
    }
}

const MAX_STRIP_ROWS: usize = 8;

/// A product whose columns are cut into segments has at most so many tokens, and [`MAX_STRIP_ROWS`].
pub(super) const MAX_SEGMENT_TOKENS: usize = 16;

/// Tiles that it has at most.
const MAX_SEGMENT_TILES: usize = MAX_SEGMENT_TOKENS.div_ceil(MAX_TILE_TOKENS);

/// Sums that wait for the next segment of columns, `[tile][row][token]`.
type Kept<V> = [MaybeUninit<V>; MAX_STRIP_ROWS * MAX_SEGMENT_TOKENS];

impl<E: Element> Product<'_, '_, E> {
    /// Goes through all rows for each tile of tokens, and through all tiles for each segment of columns.
    #[inline(always)]
    fn compute<S: Simd>(&mut self, simd: S) {
        let (rows, columns) = (self.weight.rows(), self.weight.columns().len());
        let first_token = self.input.tile_at(self.tiles.start).first_token;
        let mut kept: Kept<S::Vector> = [MaybeUninit::uninit(); MAX_STRIP_ROWS * MAX_SEGMENT_TOKENS];
        for start in (0..columns).step_by(self.segment) {
            let segment = start..columns.min(start + self.segment);
            let next =
                if segment.end < columns { self.weight.start().wrapping_add(segment.end * E::SIZE) } else { self.next };
            for i in self.tiles.clone() {
                let tile = self.input.tile_at(i);
                // The tiles divide the cache lines to prefetch among themselves: this one has every `tiles`th.
                let tiles = self.tiles.len();
                let lines = Lines { first: (i - self.tiles.start) * CACHE_LINE, step: tiles * CACHE_LINE };
                let kept_of_tile = (tile.first_token - first_token) * rows;
                let next_values = if tiles > MAX_SEGMENT_TILES && i + 1 < self.tiles.end {
                    let next = self.input.tile_at(i + 1);
                    next.values.as_ptr().wrapping_add((self.weight.columns().start + start) * next.tokens)
                } else {
                    std::ptr::null()
                };
                let pass = Pass { tile, columns: segment.clone(), next, lines, next_values, kept: kept_of_tile };
                // SAFETY: the segments come in order, and each goes through the same tiles and rows.
                unsafe {
                    match pass.tile.tokens {
                        1 if const { S::MANY_REGISTERS } => self.rows_of::<S, 8, 1>(simd, &pass, &mut kept),
                        1 => self.rows_of::<S, 4, 1>(simd, &pass, &mut kept),
                        2 if const { S::MANY_REGISTERS } => self.rows_of::<S, 8, 2>(simd, &pass, &mut kept),
                        2 => self.rows_of::<S, 4, 2>(simd, &pass, &mut kept),
                        3 if const { S::MANY_REGISTERS } => self.rows_of::<S, 8, 3>(simd, &pass, &mut kept),
                        3 => self.rows_of::<S, 4, 3>(simd, &pass, &mut kept),
                        4 if const { S::MANY_REGISTERS } => self.rows_of::<S, 6, 4>(simd, &pass, &mut kept),
                        4 => self.rows_of::<S, 2, 4>(simd, &pass, &mut kept),
                        5 if const { S::MANY_REGISTERS } => self.rows_of::<S, 5, 5>(simd, &pass, &mut kept),
                        5 => self.rows_of::<S, 2, 5>(simd, &pass, &mut kept),
                        6 if const { S::MANY_REGISTERS } => self.rows_of::<S, 4, 6>(simd, &pass, &mut kept),
                        6 => self.rows_of::<S, 2, 6>(simd, &pass, &mut kept),
                        _ => unreachable!(),
                    }
                }
            }
        }
    }

    /// All rows of a tile of `T` tokens.
    ///
    /// # Safety
    /// Unless this is the first segment of columns, the one before it was computed for the same tile.
    #[inline(always)]
    unsafe fn rows_of<S: Simd, const R: usize, const T: usize>(
        &mut self,
        simd: S,
        pass: &Pass,
        kept: &mut Kept<S::Vector>,
    ) {
        let (mut r, rows) = (0, self.weight.rows());
        // SAFETY: rows `r..r + R`, four of them, or row `r`, of all, in the same steps for each segment.
        unsafe {
            // Blocks of rows are most of the code that this file becomes.
            if const { !S::IS_FALLBACK } {
                // A few rows are rather taken by fours than some of them one by one.
                if R <= 4 || rows.is_multiple_of(R) || rows >= 4 * R {
                    while r + R <= rows {
                        self.rows_at::<S, R, T>(simd, r, pass, kept);
                        r += R;
                    }
                }
                if const { R > 4 } {
                    while r + 4 <= rows {
                        self.rows_at::<S, 4, T>(simd, r, pass, kept);
                        r += 4;
                    }
                }
            }
            while r < rows {
                self.rows_at::<S, 1, T>(simd, r, pass, kept);
                r += 1;
            }
        }
    }

    /// `R` rows from `first_row` on.
    ///
    /// # Safety
    /// The weight has these rows. Unless this is the first segment of columns, the one before it was computed for the same tile
    /// and rows.
    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // Iterators take closures.
    unsafe fn rows_at<S: Simd, const R: usize, const T: usize>(
        &mut self,
        simd: S,
        first_row: usize,
        pass: &Pass,
        kept: &mut Kept<S::Vector>,
    ) {
        let mut weight = [self.weight.start(); R];
        for r in 0..R {
            weight[r] = self.weight.start().wrapping_add((first_row + r) * self.weight.stride());
        }
        // Without `black_box` the compiler adds up their distances again at each step of the loop, and a single token, which is bound by
        // memory bandwidth, has fewer loads in flight.
        let weight = black_box(weight);
        let (columns, end) = (self.weight.columns(), pass.columns.end);
        // Whole vectors of each token, which the input has: it is padded with zeros.
        let padded = columns.start + columns.len().next_multiple_of(S::LANES);
        let input = pass.tile.values[columns.start * T..padded * T].as_ptr();
        // No closures from here on: they are functions of their own, which are not compiled for the instruction set.
        let mut sums = [[simd.splat(0.0); T]; R];
        let first_kept = pass.kept + first_row * T;
        if pass.columns.start > 0 {
            for (i, sum) in sums.as_flattened_mut().iter_mut().enumerate() {
                // SAFETY: the segment before has left it there.
                *sum = unsafe { kept[first_kept + i].assume_init() };
            }
        }
        if self.add && end == columns.len() {
            // What the sums will be added to: tokens lie far apart, often in the same sets of the caches.
            let column = self.first_row + first_row * self.apart;
            for t in 0..T {
                simd.prefetch(self.output.address(pass.tile.first_token + t, column).cast());
            }
        }
        let next = pass.next.wrapping_add(first_row * self.weight.stride());
        let mut line = if pass.next.is_null() { usize::MAX } else { pass.lines.first };
        // With many tokens a cache line's columns are unrolled, so that their addresses are computed once for all of them. Few
        // tokens are bound by memory bandwidth, and best in short steps.
        let stride = if T >= 4 { CACHE_LINE / E::SIZE } else { S::LANES };
        let next_values = if first_row + R == self.weight.rows() { pass.next_values } else { std::ptr::null() };
        let mut c = pass.columns.start;
        // SAFETY: `LANES` columns from `c` on, and at the end those that are left. The weight has them in these rows, and the input
        // in the tile's tokens, up to `padded`.
        unsafe {
            while c + stride <= end {
                if line < (c - pass.columns.start + stride) * E::SIZE {
                    for r in 0..R {
                        simd.prefetch(next.wrapping_add(r * self.weight.stride() + line));
                    }
                    line += pass.lines.step;
                }
                if const { T >= 4 } && !next_values.is_null() {
                    for line in 0..stride * T * size_of::<f32>() / CACHE_LINE {
                        simd.prefetch_first_level(
                            next_values.wrapping_add(c * T).cast::<u8>().wrapping_add(line * CACHE_LINE),
                        );
                    }
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
        if end < columns.len() {
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
            let column = self.first_row + first_row * self.apart;
            for (t, totals) in totals.iter().enumerate() {
                self.output.write_apart(pass.tile.first_token + t, column, self.apart, totals, self.add);
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
        // Rows or tokens, whichever are fewer, stay in registers; the others need one register at a time.
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

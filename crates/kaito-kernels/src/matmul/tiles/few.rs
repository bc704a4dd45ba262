//! Products of few tokens, which memory bandwidth binds: weights are read from end to end, once.

use std::marker::PhantomData;

use super::{
    Block, FEW_TILES, SHORT_BLOCK_SLICES, SLICE_COLUMNS, Sums, TilePart, ZEROS, add_split_sums,
    strip::{Strip, TileElement, copied},
};
use crate::{
    amx::{TILE_ROW_BYTES, TILE_ROWS, TileShapes, TileUnit, Tiles},
    partition::Part,
    simd::Simd,
};

/// Slices that are copied at a time where weights are not multiplied where they lie: a copy stays in the first level cache.
const COPIED_SLICES: usize = 2;
const _: () = assert!(SHORT_BLOCK_SLICES.is_multiple_of(COPIED_SLICES));

impl<U: TileUnit> TilePart<'_, U> {
    /// A part of a product with few tokens, one tile of rows after the other. Its 16 rows are as many streams. With the 64 of four tiles
    /// the processor prefetches less well, above all where rows do not begin at cache lines, and rows of some pages replace each other in
    /// the first level cache, whose sets their lines share.
    #[inline(always)]
    pub(super) fn few_tokens<S: Simd, E: TileElement, const SPLIT: bool>(mut self, simd: S) {
        let Part { columns: rows, tiles: tokens, .. } = self.part.clone();
        let mut tiles = self.unit.configure(&if self.input.is_one_token() { one_token() } else { TileShapes::full() });
        let all_slices = self.weight.cols().div_ceil(SLICE_COLUMNS);
        let whole = self.weight.cols().is_multiple_of(SLICE_COLUMNS) && rows.len().is_multiple_of(TILE_ROWS);
        let in_place = E::PARTS == 1 && whole;
        let step = match (in_place, SPLIT) {
            (true, false) => all_slices,
            (true, true) => SHORT_BLOCK_SLICES,
            (false, _) => COPIED_SLICES,
        };
        let mut copied = copied::<{ 2 * COPIED_SLICES }>();
        let mut sums = [ZEROS; FEW_TILES];
        for tile in 0..rows.len().div_ceil(TILE_ROWS) {
            let strip = Strip::new(rows.clone(), tile, 1);
            let sources = if in_place { None } else { Some(strip.sources::<E>(&self.weight)) };
            if SPLIT {
                sums = [ZEROS; FEW_TILES];
            }
            for first_slice in (0..all_slices).step_by(step) {
                let slices = step.min(all_slices - first_slice);
                let weights = match &sources {
                    None => strip.in_place(&self.weight, first_slice, slices),
                    Some(sources) => strip.copy::<S, E>(simd, sources, first_slice, slices, &mut copied),
                };
                let mut block = Block::<_, E, SPLIT> {
                    tiles: &mut tiles,
                    input: self.input,
                    first_slice,
                    strip: &strip,
                    weights,
                    element: PhantomData,
                };
                let is_last = first_slice + slices == all_slices;
                match (SPLIT, tokens.len()) {
                    (false, 1) => block.one_row::<1>(tokens.start, is_last, &mut sums),
                    (false, _) => block.one_row::<2>(tokens.start, is_last, &mut sums),
                    (true, 1) => block.one_row_split::<1>(tokens.start, is_last, &mut sums),
                    (true, _) => block.one_row_split::<2>(tokens.start, is_last, &mut sums),
                }
            }
            for (tokens, sums) in tokens.clone().zip(&sums) {
                self.write_sums(simd, strip.rows(tile), tokens, sums);
            }
        }
    }
}

/// The registers of a product with a single token, whose activations and sums have one column: see [`Block`] for which is which.
fn one_token() -> TileShapes {
    const COLUMN: (usize, usize) = (TILE_ROWS, size_of::<u32>());
    const WEIGHTS: (usize, usize) = (TILE_ROWS, TILE_ROW_BYTES);
    TileShapes::new([COLUMN, COLUMN, COLUMN, COLUMN, WEIGHTS, WEIGHTS, COLUMN, COLUMN])
}

// SAFETY of every block below: as for those of `Block`; the registers of a single token have one column, and so have its activations. Its sums
// lie in arrays of a whole register's size.
impl<T: Tiles, E: TileElement, const SPLIT: bool> Block<'_, T, E, SPLIT> {
    /// Adds the products of a block of columns of a tile of rows and one or two tiles of tokens. Sums stay in registers up to the last
    /// column.
    #[inline(always)]
    fn one_row<const TOKENS: usize>(&mut self, tokens: usize, is_last: bool, sums: &mut [Sums; FEW_TILES]) {
        if self.first_slice == 0 {
            self.tiles.zero::<0>();
            self.tiles.zero::<1>();
        }
        self.add_one_row::<TOKENS>(tokens);
        if !is_last {
            return;
        }
        // SAFETY: see above.
        unsafe {
            self.tiles.store::<0>(sums[0].as_mut_ptr().cast(), TILE_ROW_BYTES);
            if TOKENS == 2 {
                self.tiles.store::<1>(sums[1].as_mut_ptr().cast(), TILE_ROW_BYTES);
            }
        }
    }

    /// The same with split activations, whose sums are added up after every 1024 columns.
    #[inline(always)]
    fn one_row_split<const TOKENS: usize>(&mut self, tokens: usize, is_last: bool, sums: &mut [Sums; FEW_TILES]) {
        if self.first_slice.is_multiple_of(SHORT_BLOCK_SLICES) {
            self.tiles.zero::<0>();
            self.tiles.zero::<1>();
            self.tiles.zero::<2>();
            self.tiles.zero::<3>();
        }
        self.add_one_row_split::<0, 1>(tokens);
        if TOKENS == 2 {
            self.add_one_row_split::<2, 3>(tokens + 1);
        }
        if !(is_last || (self.first_slice + self.weights.slices()).is_multiple_of(SHORT_BLOCK_SLICES)) {
            return;
        }
        let [mut first, mut others] = [ZEROS; 2];
        // SAFETY: see above.
        unsafe {
            self.tiles.store::<0>(first.as_mut_ptr().cast(), TILE_ROW_BYTES);
            self.tiles.store::<1>(others.as_mut_ptr().cast(), TILE_ROW_BYTES);
            add_split_sums(&mut sums[0], &first, &others);
            if TOKENS == 2 {
                self.tiles.store::<2>(first.as_mut_ptr().cast(), TILE_ROW_BYTES);
                self.tiles.store::<3>(others.as_mut_ptr().cast(), TILE_ROW_BYTES);
                add_split_sums(&mut sums[1], &first, &others);
            }
        }
    }

    /// To register 0, and to register 1 where there are two tiles of tokens.
    #[inline(always)]
    fn add_one_row<const TOKENS: usize>(&mut self, tokens: usize) {
        let (stride, [slice_apart, part_apart]) = (self.weights.stride(), self.weights.apart());
        let (x_stride, [x_apart, _]) = (self.input.row_bytes(), self.input.apart());
        let (first_x, first_y) = (self.activations(tokens), self.activations(tokens + TOKENS - 1));
        let first_w = self.weights.tile(0);
        for slice in 0..self.weights.slices() {
            for part in 0..E::PARTS {
                // SAFETY: see above.
                unsafe {
                    if part == 0 {
                        self.tiles.load::<6>(first_x.wrapping_add(slice * x_apart), x_stride);
                        if TOKENS == 2 {
                            self.tiles.load::<7>(first_y.wrapping_add(slice * x_apart), x_stride);
                        }
                    }
                    self.tiles.load::<4>(first_w.wrapping_add(slice * slice_apart + part * part_apart), stride);
                    self.tiles.add_bf16::<0, 4, 6>();
                    if TOKENS == 2 {
                        self.tiles.add_bf16::<1, 4, 7>();
                    }
                }
            }
        }
    }

    /// The products with the first parts of the activations to register `FIRST`, those with the other parts to `OTHERS`.
    #[inline(always)]
    fn add_one_row_split<const FIRST: usize, const OTHERS: usize>(&mut self, tokens: usize) {
        let (stride, [slice_apart, part_apart]) = (self.weights.stride(), self.weights.apart());
        let (x_stride, [x_apart, x_part_apart]) = (self.input.row_bytes(), self.input.apart());
        let (first_x, first_w) = (self.activations(tokens), self.weights.tile(0));
        for slice in 0..self.weights.slices() {
            let x = first_x.wrapping_add(slice * x_apart);
            for part in 0..E::PARTS {
                // SAFETY: see above; the parts of a slice lie one after the other.
                unsafe {
                    self.tiles.load::<4>(first_w.wrapping_add(slice * slice_apart + part * part_apart), stride);
                    self.tiles.load::<6>(x, x_stride);
                    self.tiles.load::<7>(x.add(x_part_apart), x_stride);
                    if part == 0 {
                        self.tiles.add_bf16::<FIRST, 4, 6>();
                    } else {
                        self.tiles.add_bf16::<OTHERS, 4, 6>();
                    }
                    self.tiles.load::<6>(x.add(2 * x_part_apart), x_stride);
                    self.tiles.add_bf16::<OTHERS, 4, 7>();
                    self.tiles.add_bf16::<OTHERS, 4, 6>();
                }
            }
        }
    }
}

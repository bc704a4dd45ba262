//! Products of few tokens, which memory bandwidth binds: weights are read from end to end, once for a part's tiles of tokens.

use std::{marker::PhantomData, ops::Range};

use super::{
    BLOCK_SLICES, Sums, TilePart, ZEROS, add_split_sums,
    pack::PackedInput,
    weights::{Operand, TileElement, WeightRows, room},
};
use crate::{
    amx::{TILE_ROW_BYTES, TILE_ROWS, TileShapes, TileUnit, Tiles},
    simd::Simd,
};

/// Tiles of tokens of a part at most, as registers have room for their sums; half as many where activations are split.
pub(super) const MOST_TILES: usize = 4;

/// Slices that are copied at a time where weights are not multiplied where they lie: a copy stays in the first level cache.
const COPIED_SLICES: usize = 2;
const _: () = assert!(BLOCK_SLICES.is_multiple_of(COPIED_SLICES));

impl<U: TileUnit> TilePart<'_, U> {
    /// A part of a product with few tokens, one tile of rows after the other. Its 16 rows are as many streams. With the 64 of four tiles
    /// the processor prefetches less well, above all where rows do not begin at cache lines, and rows of some pages replace each other in
    /// the first level cache, whose sets their lines share.
    #[inline(always)]
    pub(super) fn few_tokens<S: Simd, E: TileElement, const SPLIT: bool>(mut self, simd: S) {
        let tokens = self.part.tiles.clone();
        let mut tiles = self.unit.configure(&if self.input.is_one_token() { one_token() } else { TileShapes::full() });
        let weights = WeightRows::new::<E>(&self.weight, self.part.columns.clone());
        let all_slices = weights.slices();
        let in_place = E::PARTS == 1 && weights.fill_tiles();
        let step = match (in_place, SPLIT) {
            (true, false) => all_slices,
            (true, true) => BLOCK_SLICES,
            (false, _) => COPIED_SLICES,
        };
        let mut room = room::<{ 2 * COPIED_SLICES }>();
        let mut sums = [ZEROS; MOST_TILES];
        for first_row in (0..weights.count()).step_by(TILE_ROWS) {
            if SPLIT {
                sums = [ZEROS; MOST_TILES];
            }
            for first_slice in (0..all_slices).step_by(step) {
                let slices = first_slice..all_slices.min(first_slice + step);
                let is_last = slices.end == all_slices;
                let weights = if in_place {
                    weights.in_place(first_row, slices)
                } else {
                    weights.copied::<S, E>(simd, first_row, slices, &mut room)
                };
                let mut block =
                    Block::<_, E> { tiles: &mut tiles, input: self.input, first_slice, weights, element: PhantomData };
                match (SPLIT, tokens.len()) {
                    (false, 1) => block.add::<1>(tokens.start, is_last, &mut sums),
                    (false, 2) => block.add::<2>(tokens.start, is_last, &mut sums),
                    (false, 3) => block.add::<3>(tokens.start, is_last, &mut sums),
                    (false, _) => block.add::<4>(tokens.start, is_last, &mut sums),
                    (true, 1) => block.add_split::<1>(tokens.start, is_last, &mut sums),
                    (true, _) => block.add_split::<2>(tokens.start, is_last, &mut sums),
                }
            }
            for (tokens, sums) in tokens.clone().zip(&sums) {
                self.write_sums(simd, first_row, tokens, sums);
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

/// A block of columns of a tile of weight rows. Sums are in registers 0 to 3, weights in 4, activations in 6 and 7.
struct Block<'a, T, E> {
    tiles: &'a mut T,
    input: &'a PackedInput,
    first_slice: usize,
    weights: Operand<'a>,
    element: PhantomData<E>,
}

// SAFETY of every block below: all registers are configured as large as they can be, or for a single token with one column, which its
// activations have; weights are there for all slices of the block, see `Operand`, and so are activations, see
// `PackedInput::slices`; sums lie in arrays of a whole register's size.
impl<T: Tiles, E: TileElement> Block<'_, T, E> {
    fn slices(&self) -> Range<usize> {
        self.first_slice..self.first_slice + self.weights.slices()
    }

    /// The block's first slice of a tile of tokens, which is followed by the others.
    #[inline(always)]
    fn activations(&self, tokens: usize) -> *const u8 {
        self.input.slices(tokens, self.slices())
    }

    #[inline(always)]
    fn set_to_zero(&mut self) {
        self.tiles.zero::<0>();
        self.tiles.zero::<1>();
        self.tiles.zero::<2>();
        self.tiles.zero::<3>();
    }

    /// Adds the products with some tiles of tokens. Sums stay in registers up to the last column.
    #[inline(always)]
    fn add<const TOKENS: usize>(&mut self, tokens: usize, is_last: bool, sums: &mut [Sums; MOST_TILES]) {
        if self.first_slice == 0 {
            self.set_to_zero();
        }
        self.add_products::<TOKENS>(tokens);
        if !is_last {
            return;
        }
        // SAFETY: see above.
        unsafe {
            self.tiles.store::<0>(sums[0].as_mut_ptr().cast(), TILE_ROW_BYTES);
            if TOKENS > 1 {
                self.tiles.store::<1>(sums[1].as_mut_ptr().cast(), TILE_ROW_BYTES);
            }
            if TOKENS > 2 {
                self.tiles.store::<2>(sums[2].as_mut_ptr().cast(), TILE_ROW_BYTES);
            }
            if TOKENS > 3 {
                self.tiles.store::<3>(sums[3].as_mut_ptr().cast(), TILE_ROW_BYTES);
            }
        }
    }

    #[inline(always)]
    fn add_products<const TOKENS: usize>(&mut self, tokens: usize) {
        const { assert!(1 <= TOKENS && TOKENS <= MOST_TILES) };
        let (stride, x_stride, [x_apart, _]) = (self.weights.stride(), self.input.row_bytes(), self.input.apart());
        let x: [_; TOKENS] = std::array::from_fn(|i| self.activations(tokens + i));
        for slice in 0..self.weights.slices() {
            for part in 0..E::PARTS {
                // Two tiles of activations keep their registers for the second part.
                let load = part == 0 || TOKENS > 2;
                // SAFETY: see above.
                unsafe {
                    self.tiles.load::<4>(self.weights.tile(slice, part), stride);
                    if load {
                        self.tiles.load::<6>(x[0].wrapping_add(slice * x_apart), x_stride);
                    }
                    self.tiles.add_bf16::<0, 4, 6>();
                    if TOKENS > 1 {
                        if load {
                            self.tiles.load::<7>(x[1].wrapping_add(slice * x_apart), x_stride);
                        }
                        self.tiles.add_bf16::<1, 4, 7>();
                    }
                    if TOKENS > 2 {
                        self.tiles.load::<6>(x[2].wrapping_add(slice * x_apart), x_stride);
                        self.tiles.add_bf16::<2, 4, 6>();
                    }
                    if TOKENS > 3 {
                        self.tiles.load::<7>(x[3].wrapping_add(slice * x_apart), x_stride);
                        self.tiles.add_bf16::<3, 4, 7>();
                    }
                }
            }
        }
    }

    /// The same with one or two tiles of split activations, whose sums are added up after every 1024 columns.
    #[inline(always)]
    fn add_split<const TOKENS: usize>(&mut self, tokens: usize, is_last: bool, sums: &mut [Sums; MOST_TILES]) {
        if self.first_slice.is_multiple_of(BLOCK_SLICES) {
            self.set_to_zero();
        }
        self.add_split_products::<0, 1>(tokens);
        if TOKENS == 2 {
            self.add_split_products::<2, 3>(tokens + 1);
        }
        if !(is_last || self.slices().end.is_multiple_of(BLOCK_SLICES)) {
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

    /// The products with the first parts of the activations to register `FIRST`, those with the other parts to `OTHERS`.
    #[inline(always)]
    fn add_split_products<const FIRST: usize, const OTHERS: usize>(&mut self, tokens: usize) {
        let (stride, x_stride) = (self.weights.stride(), self.input.row_bytes());
        let (first_x, [x_apart, x_part_apart]) = (self.activations(tokens), self.input.apart());
        for slice in 0..self.weights.slices() {
            let x = first_x.wrapping_add(slice * x_apart);
            for part in 0..E::PARTS {
                // SAFETY: see above; the parts of a slice lie one after the other.
                unsafe {
                    self.tiles.load::<4>(self.weights.tile(slice, part), stride);
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

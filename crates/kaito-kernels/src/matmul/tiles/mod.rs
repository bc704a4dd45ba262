//! Products of weights in bf16 or f16 by tile registers.
//!
//! Rows of weights are the operand `A`, most often where they lie; activations are packed as `B` once. What is summed up is
//!
//! - rounded activations: over slices of 32 columns in order, `y = y + (even + odd)`, where `even` sums up the products of the slice's even
//!   columns, `odd` those of its odd columns, as [`Tiles::add_bf16`] defines it;
//! - exact activations, which are sums of three bf16: for each block of 1024 columns such a sum of the products with the first
//!   parts, and another one of those with the second and third parts; these two are added, and then the blocks' sums in order. So few
//!   terms are added to each sum that the error is not above that of sums by vectors.
//!
//! A weight in f16 is the sum of two bf16, which are multiplied one after the other; of exact activations, the first part alone is with
//! the first parts. Denormal numbers, of operands and of sums, are zeros. Infinities and what is not a number come out as they do
//! elsewhere, but for rounded activations that are infinite: with weights in f16, some of whose parts are zero, they may give what is not a number.

mod few;
pub(super) mod pack;
mod strip;

use std::{marker::PhantomData, mem::MaybeUninit, ops::Range};

use self::{
    pack::PackedInput,
    strip::{Operands, STRIP_TILES, Strip, TileElement, copied},
};
use super::{
    Write,
    element::{Bf16, F16},
};
#[cfg(test)]
use crate::amx::Emulated;
#[cfg(test)]
use crate::simd::dispatch_portable;
use crate::{
    DType, MatrixRef,
    amx::{TILE_BYTES, TILE_ROW_BYTES, TILE_ROWS, TileShapes, TileUnit, Tiles},
    partition::{Part, PartMut, PartSizes},
    simd::{CACHE_LINE, Kernel, Simd, TileRow},
};
#[cfg(target_arch = "x86_64")]
use crate::{amx::Hardware, simd::dispatch_avx512};

/// Tokens of a tile at most: columns of the operand `B`.
pub(super) const TILE_TOKENS: usize = TILE_ROW_BYTES / size_of::<u32>();
/// Columns of a slice: bf16 of a row of `A`.
const SLICE_COLUMNS: usize = TILE_ROW_BYTES / size_of::<u16>();

/// Up to so many tiles of tokens, memory bandwidth binds: weights are read from end to end.
const FEW_TILES: usize = 2;
/// Slices of a block of columns: its activations, 1 MiB of 256 tokens, stay in the second level cache while rows pass.
const BLOCK_SLICES: usize = 64;
/// The same where activations are exact, which are summed up block by block, and where a weight is the sum of two bf16.
const SHORT_BLOCK_SLICES: usize = 32;

/// Tiles of a row of tiles that are copied at a time at most.
const MOST_COPIED: usize = if 2 * SHORT_BLOCK_SLICES > BLOCK_SLICES { 2 * SHORT_BLOCK_SLICES } else { BLOCK_SLICES };

const MOST_TOKEN_TILES: usize = 16;
/// Sums of a part that wait for the next block of columns, in tiles.
const MOST_SUMS: usize = 128;

/// Parts whose sums and weights stay in the second level cache beside the activations.
const PART_SIZES: PartSizes = PartSizes {
    tile_tokens: TILE_TOKENS,
    most_tiles: MOST_TOKEN_TILES,
    block_rows: TILE_ROWS,
    least_blocks: STRIP_TILES,
    most_blocks: MOST_SUMS / MOST_TOKEN_TILES,
    least_products: 64 * 1024,
};

/// Parts whose weights are long stretches of memory.
const FEW_PART_SIZES: PartSizes = PartSizes { most_blocks: 4 * STRIP_TILES, ..PART_SIZES };

/// How large the parts of a product of so many tokens are.
pub(super) fn part_sizes(tokens: usize) -> &'static PartSizes {
    if tokens <= FEW_TILES * TILE_TOKENS { &FEW_PART_SIZES } else { &PART_SIZES }
}

/// Sums as a register has them: a row for each weight row, a column for each token.
type Sums = [TileRow; TILE_ROWS];
const _: () = assert!(size_of::<Sums>() == TILE_BYTES);

/// The sums of a part, `[tile of rows][tile of tokens]`, and after them those of the tiles that a strip lacks.
type AllSums = [MaybeUninit<Sums>; MOST_SUMS + MOST_TOKEN_TILES];

/// Where the sums of the `i`th tile of a strip and of `count` tiles of tokens begin.
#[inline(always)]
fn first_place(strip: &Strip, i: usize, count: usize) -> usize {
    match strip.tile(i) {
        Some(tile) => tile * count,
        None => MOST_SUMS,
    }
}

/// Which registers a product takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Unit {
    #[cfg(target_arch = "x86_64")]
    Hardware(Hardware),
    #[cfg(test)]
    Emulated,
}

impl Unit {
    /// Runs a kernel with the vectors that are used beside the registers: a processor that has these has AVX-512.
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Hardware(_) => dispatch_avx512(kernel),
            #[cfg(test)]
            Self::Emulated => dispatch_portable(kernel),
        }
    }

    /// Computes a part of a product.
    pub fn compute(self, input: &PackedInput, weight: MatrixRef, output: PartMut, mode: Write, part: Part) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Hardware(unit) => {
                let part = TilePart { unit, input, weight, output, mode, part };
                if part.has_few_tokens() {
                    dispatch_avx512(OfTokens::<_, true>(part))
                } else {
                    dispatch_avx512(OfTokens::<_, false>(part))
                }
            }
            #[cfg(test)]
            Self::Emulated => {
                let part = TilePart { unit: Emulated, input, weight, output, mode, part };
                if part.has_few_tokens() {
                    dispatch_portable(OfTokens::<_, true>(part))
                } else {
                    dispatch_portable(OfTokens::<_, false>(part))
                }
            }
        }
    }
}

/// The product of some tokens with some weight rows, which are `part`'s columns of the output.
struct TilePart<'a, U> {
    unit: U,
    input: &'a PackedInput,
    weight: MatrixRef<'a>,
    output: PartMut<'a>,
    mode: Write,
    part: Part,
}

/// A part of few tokens or of many: each is a function of its own, and that for few needs next to no stack.
struct OfTokens<'a, U, const FEW: bool>(TilePart<'a, U>);

impl<U: TileUnit, const FEW: bool> Kernel for OfTokens<'_, U, FEW> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match (self.0.weight.dtype(), self.0.input.is_split()) {
            (DType::Bf16, false) => self.compute::<S, Bf16, false>(simd),
            (DType::Bf16, true) => self.compute::<S, Bf16, true>(simd),
            (DType::F16, false) => self.compute::<S, F16, false>(simd),
            (DType::F16, true) => self.compute::<S, F16, true>(simd),
            (DType::F32, _) => unreachable!("no form of tiles fits f32"),
        }
    }
}

impl<U: TileUnit, const FEW: bool> OfTokens<'_, U, FEW> {
    #[inline(always)]
    fn compute<S: Simd, E: TileElement, const SPLIT: bool>(self, simd: S) {
        if FEW { self.0.few_tokens::<S, E, SPLIT>(simd) } else { self.0.many_tokens::<S, E, SPLIT>(simd) }
    }
}

impl<U: TileUnit> TilePart<'_, U> {
    /// Whether memory bandwidth binds, so that [`Self::few_tokens`] computes it.
    fn has_few_tokens(&self) -> bool {
        self.input.token_tiles() <= FEW_TILES
    }

    #[inline(always)]
    fn many_tokens<S: Simd, E: TileElement, const SPLIT: bool>(mut self, simd: S) {
        let mut tiles = self.unit.configure(&TileShapes::full());
        let (rows, cols) = (self.part.columns.clone(), self.weight.cols());
        let row_tiles = rows.len().div_ceil(TILE_ROWS);
        assert!(row_tiles * self.part.tiles.len() <= MOST_SUMS);
        // Many tokens load each weight many times: each time twice as long, where a tile's rows lie across cache lines.
        let aligned = self.weight.data().as_ptr().addr().is_multiple_of(CACHE_LINE);
        let whole = cols.is_multiple_of(SLICE_COLUMNS) && rows.len().is_multiple_of(TILE_ROWS);
        let in_place = E::PARTS == 1 && whole && aligned;
        let all_slices = cols.div_ceil(SLICE_COLUMNS);
        let block = if !SPLIT && E::PARTS == 1 { BLOCK_SLICES } else { SHORT_BLOCK_SLICES };
        let mut sums: AllSums = [const { MaybeUninit::uninit() }; _];
        let mut copied = copied::<{ MOST_COPIED * STRIP_TILES }>();
        for first_slice in (0..all_slices).step_by(block) {
            let slices = block.min(all_slices - first_slice);
            for first in (0..row_tiles).step_by(STRIP_TILES) {
                let strip = Strip::new(rows.clone(), first, STRIP_TILES);
                let weights = if in_place {
                    strip.in_place(&self.weight, first_slice, slices)
                } else {
                    let sources = strip.sources::<E>(&self.weight);
                    strip.copy::<S, E>(simd, &sources, first_slice, slices, &mut copied)
                };
                let mut block = Block::<_, E, SPLIT> {
                    tiles: &mut tiles,
                    input: self.input,
                    first_slice,
                    strip: &strip,
                    weights,
                    element: PhantomData,
                };
                self.add_block(&mut block, &mut sums);
                if first_slice + slices == all_slices {
                    self.write_strip(simd, &strip, &sums);
                }
            }
        }
    }

    /// Adds the products of a block of columns to the sums of a strip and all tokens of the part, or sets them.
    #[inline(always)]
    fn add_block<E: TileElement, const SPLIT: bool>(&self, block: &mut Block<U::Tiles, E, SPLIT>, sums: &mut AllSums) {
        let (first, count) = (self.part.tiles.start, self.part.tiles.len());
        for half in [0, 2] {
            let (a, b) = (half, half + 1);
            if block.strip.tile(a).is_none() && block.strip.tile(b).is_none() {
                continue;
            }
            let (a_place, b_place) = (first_place(block.strip, a, count), first_place(block.strip, b, count));
            if SPLIT {
                for i in 0..count {
                    let places = [a_place + i, b_place + i];
                    block.two_rows_split([a, b], first + i, sums, places);
                }
                continue;
            }
            for i in (0..count - count % 2).step_by(2) {
                let places = [a_place + i, a_place + i + 1, b_place + i, b_place + i + 1];
                block.two_rows_two_tokens([a, b], [first + i, first + i + 1], sums, places);
            }
        }
        if !SPLIT && count % 2 == 1 {
            let i = count - 1;
            let mut places = [i; STRIP_TILES];
            for (tile, place) in places.iter_mut().enumerate() {
                *place += first_place(block.strip, tile, count);
            }
            block.four_rows(first + i, sums, places);
        }
    }

    /// Writes the sums of a strip, or adds them, to the output.
    #[inline(always)]
    fn write_strip<S: Simd>(&mut self, simd: S, strip: &Strip, sums: &AllSums) {
        let count = self.part.tiles.len();
        for i in 0..STRIP_TILES {
            let Some(tile) = strip.tile(i) else { continue };
            for t in 0..count {
                // SAFETY: `add_block` has written the sums of each tile of the strip and of tokens.
                let sums = unsafe { sums[tile * count + t].assume_init_ref() };
                self.write_sums(simd, strip.rows(tile), self.part.tiles.start + t, sums);
            }
        }
    }

    /// Writes the sums of up to 16 rows and a tile of tokens, or adds them, to the output.
    #[inline(always)]
    fn write_sums<S: Simd>(&mut self, simd: S, rows: Range<usize>, tokens: usize, sums: &Sums) {
        let mut turned = [TileRow([0; TILE_TOKENS]); TILE_ROWS];
        simd.transpose(sums, &mut turned);
        for (token, values) in self.input.tokens_of(tokens).zip(&turned) {
            let target = self.output.slice(token, rows.clone());
            if let Some(target) = target.as_chunks_mut::<TILE_ROWS>().0.first_mut() {
                write(target, values, self.mode);
            } else {
                let mut padded = [0.0; TILE_ROWS];
                padded[..target.len()].copy_from_slice(target);
                write(&mut padded, values, self.mode);
                target.copy_from_slice(&padded[..target.len()]);
            }
        }
    }
}

/// Sixteen outputs of a token. Their number is known when this is compiled, so that it becomes vector instructions.
#[inline(always)]
fn write(target: &mut [f32; TILE_ROWS], sums: &TileRow, mode: Write) {
    for (y, bits) in target.iter_mut().zip(&sums.0) {
        let sum = f32::from_bits(*bits);
        *y = if mode == Write::Add { *y + sum } else { sum };
    }
}

/// A block of columns of a strip of weight rows, and the registers to multiply it.
struct Block<'a, T, E, const SPLIT: bool> {
    tiles: &'a mut T,
    input: &'a PackedInput,
    first_slice: usize,
    strip: &'a Strip,
    weights: Operands<'a>,
    element: PhantomData<E>,
}

// SAFETY of every block below: all registers are configured as large as they can be; weights are there for all slices of the block, see
// `Operands`, and so are activations, see `PackedInput::slices`; sums lie in arrays of a register's size, and those that are loaded were
// stored for the block before.
impl<T: Tiles, E: TileElement, const SPLIT: bool> Block<'_, T, E, SPLIT> {
    /// Loads sums into register `C`, or zeros for the first block.
    #[inline(always)]
    fn begin<const C: usize>(&mut self, sums: &AllSums, place: usize) {
        if self.first_slice == 0 {
            self.tiles.zero::<C>();
        } else {
            // SAFETY: see above.
            unsafe { self.tiles.load::<C>(sums[place].as_ptr().cast(), TILE_ROW_BYTES) };
        }
    }

    /// The block's first slice of a tile of tokens, which is followed by the others.
    #[inline(always)]
    fn activations(&self, tokens: usize) -> *const u8 {
        self.input.slices(tokens, self.first_slice..self.first_slice + self.weights.slices())
    }

    #[inline(always)]
    fn end<const C: usize>(&mut self, sums: &mut AllSums, place: usize) {
        // SAFETY: see above.
        unsafe { self.tiles.store::<C>(sums[place].as_mut_ptr().cast(), TILE_ROW_BYTES) };
    }

    /// Two tiles of rows times two tiles of tokens: sums of the first rows with both tokens, then of the second rows.
    #[inline(always)]
    fn two_rows_two_tokens(&mut self, rows: [usize; 2], tokens: [usize; 2], sums: &mut AllSums, places: [usize; 4]) {
        self.begin::<0>(sums, places[0]);
        self.begin::<1>(sums, places[1]);
        self.begin::<2>(sums, places[2]);
        self.begin::<3>(sums, places[3]);
        let (stride, [slice_apart, part_apart]) = (self.weights.stride(), self.weights.apart());
        let (first_x, first_y) = (self.activations(tokens[0]), self.activations(tokens[1]));
        let (first_v, first_w) = (self.weights.tile(rows[0]), self.weights.tile(rows[1]));
        for slice in 0..self.weights.slices() {
            let x = first_x.wrapping_add(slice * TILE_BYTES);
            let y = first_y.wrapping_add(slice * TILE_BYTES);
            for part in 0..E::PARTS {
                let v = first_v.wrapping_add(slice * slice_apart + part * part_apart);
                let w = first_w.wrapping_add(slice * slice_apart + part * part_apart);
                // SAFETY: see above.
                unsafe {
                    if part == 0 {
                        self.tiles.load::<6>(x, TILE_ROW_BYTES);
                    }
                    self.tiles.load::<4>(v, stride);
                    self.tiles.add_bf16::<0, 4, 6>();
                    self.tiles.load::<5>(w, stride);
                    self.tiles.add_bf16::<2, 5, 6>();
                    if part == 0 {
                        self.tiles.load::<7>(y, TILE_ROW_BYTES);
                    }
                    self.tiles.add_bf16::<1, 4, 7>();
                    self.tiles.add_bf16::<3, 5, 7>();
                }
            }
        }
        self.end::<0>(sums, places[0]);
        self.end::<1>(sums, places[1]);
        self.end::<2>(sums, places[2]);
        self.end::<3>(sums, places[3]);
    }

    /// All four tiles of rows times a tile of tokens.
    #[inline(always)]
    fn four_rows(&mut self, tokens: usize, sums: &mut AllSums, places: [usize; 4]) {
        self.begin::<0>(sums, places[0]);
        self.begin::<1>(sums, places[1]);
        self.begin::<2>(sums, places[2]);
        self.begin::<3>(sums, places[3]);
        let (stride, [slice_apart, part_apart]) = (self.weights.stride(), self.weights.apart());
        let first_x = self.activations(tokens);
        let first_w = [self.weights.tile(0), self.weights.tile(1), self.weights.tile(2), self.weights.tile(3)];
        for slice in 0..self.weights.slices() {
            let x = first_x.wrapping_add(slice * TILE_BYTES);
            for part in 0..E::PARTS {
                let at = slice * slice_apart + part * part_apart;
                // SAFETY: see above.
                unsafe {
                    if part == 0 {
                        self.tiles.load::<6>(x, TILE_ROW_BYTES);
                    }
                    self.tiles.load::<4>(first_w[0].wrapping_add(at), stride);
                    self.tiles.add_bf16::<0, 4, 6>();
                    self.tiles.load::<5>(first_w[1].wrapping_add(at), stride);
                    self.tiles.add_bf16::<1, 5, 6>();
                    self.tiles.load::<4>(first_w[2].wrapping_add(at), stride);
                    self.tiles.add_bf16::<2, 4, 6>();
                    self.tiles.load::<5>(first_w[3].wrapping_add(at), stride);
                    self.tiles.add_bf16::<3, 5, 6>();
                }
            }
        }
        self.end::<0>(sums, places[0]);
        self.end::<1>(sums, places[1]);
        self.end::<2>(sums, places[2]);
        self.end::<3>(sums, places[3]);
    }

    /// Two tiles of rows times a tile of tokens, whose activations are split.
    #[inline(always)]
    fn two_rows_split(&mut self, rows: [usize; 2], tokens: usize, sums: &mut AllSums, places: [usize; 2]) {
        self.tiles.zero::<0>();
        self.tiles.zero::<1>();
        self.tiles.zero::<2>();
        self.tiles.zero::<3>();
        let (stride, [slice_apart, part_apart]) = (self.weights.stride(), self.weights.apart());
        let (first_x, [bytes, _]) = (self.activations(tokens), self.input.apart());
        let (first_v, first_w) = (self.weights.tile(rows[0]), self.weights.tile(rows[1]));
        for slice in 0..self.weights.slices() {
            let x = first_x.wrapping_add(slice * bytes);
            for part in 0..E::PARTS {
                let v = first_v.wrapping_add(slice * slice_apart + part * part_apart);
                let w = first_w.wrapping_add(slice * slice_apart + part * part_apart);
                // SAFETY: see above; the parts of a slice lie one after the other.
                unsafe {
                    self.tiles.load::<4>(v, stride);
                    self.tiles.load::<5>(w, stride);
                    self.tiles.load::<6>(x, TILE_ROW_BYTES);
                    self.tiles.load::<7>(x.add(TILE_BYTES), TILE_ROW_BYTES);
                    if part == 0 {
                        self.tiles.add_bf16::<0, 4, 6>();
                        self.tiles.add_bf16::<1, 5, 6>();
                    } else {
                        self.tiles.add_bf16::<2, 4, 6>();
                        self.tiles.add_bf16::<3, 5, 6>();
                    }
                    self.tiles.load::<6>(x.add(2 * TILE_BYTES), TILE_ROW_BYTES);
                    self.tiles.add_bf16::<2, 4, 7>();
                    self.tiles.add_bf16::<3, 5, 7>();
                    self.tiles.add_bf16::<2, 4, 6>();
                    self.tiles.add_bf16::<3, 5, 6>();
                }
            }
        }
        let mut results = [ZEROS; 4];
        // SAFETY: see above.
        unsafe {
            self.tiles.store::<0>(results[0].as_mut_ptr().cast(), TILE_ROW_BYTES);
            self.tiles.store::<1>(results[1].as_mut_ptr().cast(), TILE_ROW_BYTES);
            self.tiles.store::<2>(results[2].as_mut_ptr().cast(), TILE_ROW_BYTES);
            self.tiles.store::<3>(results[3].as_mut_ptr().cast(), TILE_ROW_BYTES);
        }
        for i in 0..2 {
            let sums = &mut sums[places[i]];
            if self.first_slice == 0 {
                sums.write(ZEROS);
            }
            // SAFETY: just written, or for the block before.
            add_split_sums(unsafe { sums.assume_init_mut() }, &results[i], &results[i + 2]);
        }
    }
}

const ZEROS: Sums = [TileRow([0f32.to_bits(); TILE_TOKENS]); TILE_ROWS];

/// Adds the sums of a block of columns to those of the blocks before: of the products with the first parts of activations, and of the
/// others.
#[inline(always)]
fn add_split_sums(sums: &mut Sums, first: &Sums, others: &Sums) {
    for ((sums, first), others) in sums.iter_mut().zip(first).zip(others) {
        for ((sum, first), others) in sums.0.iter_mut().zip(&first.0).zip(&others.0) {
            let (first, others) = (f32::from_bits(*first), f32::from_bits(*others));
            // A part that is zero has no product with an infinite weight, and the first parts say all then.
            let others = if others.is_nan() { 0.0 } else { others };
            *sum = (f32::from_bits(*sum) + (first + others)).to_bits();
        }
    }
}

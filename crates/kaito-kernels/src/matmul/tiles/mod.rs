//! Products of weights in bf16 or f16 by tile registers.
//!
//! Rows of weights are the operand `A`, where they lie or copied; activations are packed as `B` once. What is summed up is
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
mod many;
pub(super) mod pack;
mod weights;

use self::{pack::PackedInput, weights::TileElement};
use super::{
    Write,
    element::{Bf16, F16},
};
#[cfg(test)]
use crate::amx::Emulated;
#[cfg(target_arch = "x86_64")]
use crate::simd::dispatch_avx512;
#[cfg(test)]
use crate::simd::dispatch_portable;
use crate::{
    DType, MatrixRef,
    amx::{TILE_BYTES, TILE_ROW_BYTES, TILE_ROWS, TileUnit, Unit},
    partition::{Part, PartMut, PartSizes},
    simd::{Kernel, Simd, TileRow},
};

/// Tokens of a tile at most: columns of the operand `B`.
pub(super) const TILE_TOKENS: usize = TILE_ROW_BYTES / size_of::<u32>();
/// Columns of a slice: bf16 of a row of `A`.
const SLICE_COLUMNS: usize = TILE_ROW_BYTES / size_of::<u16>();

/// Slices of a block of columns. Where activations are exact, each has sums of its own.
const BLOCK_SLICES: usize = 32;

/// Parts of products of many tokens. The activations of a panel, and the sums, stay in the second level cache.
const MANY_PART_SIZES: PartSizes = PartSizes {
    tile_tokens: TILE_TOKENS,
    most_tiles: 16,
    block_rows: TILE_ROWS,
    least_blocks: 4,
    most_blocks: many::MOST_SUMS / 16,
    least_products: 64 * 1024,
};
/// The same for split activations, which are three times as large.
const MANY_SPLIT_PART_SIZES: PartSizes = PartSizes { most_tiles: 8, ..MANY_PART_SIZES };
/// Parts of products of few tokens. Threads with different tokens read the same weights, which memory is asked for once.
const FEW_PART_SIZES: PartSizes = PartSizes { most_tiles: few::MOST_TILES, ..MANY_PART_SIZES };
/// The same for split activations.
const FEW_SPLIT_PART_SIZES: PartSizes = PartSizes { most_tiles: few::MOST_TILES / 2, ..FEW_PART_SIZES };

/// Whether a product is computed as one of few tokens, by measurement. With rounded activations and weights in bf16, several sets of four tiles
/// of tokens are still faster than a copy of the weights; weights that are the sum of two bf16 would be copied for each set.
fn has_few_tokens(tokens: usize, dtype: DType, split: bool) -> bool {
    let most_tiles = match (dtype, split) {
        (DType::Bf16, false) => 16,
        (_, false) => few::MOST_TILES,
        (_, true) => few::MOST_TILES / 2,
    };
    tokens <= most_tiles * TILE_TOKENS
}

/// How large the parts of a product of so many tokens are.
pub(super) fn part_sizes(tokens: usize, dtype: DType, split: bool) -> &'static PartSizes {
    match (has_few_tokens(tokens, dtype, split), split) {
        (true, false) => &FEW_PART_SIZES,
        (true, true) => &FEW_SPLIT_PART_SIZES,
        (false, false) => &MANY_PART_SIZES,
        (false, true) => &MANY_SPLIT_PART_SIZES,
    }
}

/// Sums as a register has them: a row for each weight row, a column for each token.
type Sums = [TileRow; TILE_ROWS];
const _: () = assert!(size_of::<Sums>() == TILE_BYTES);

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
    pub(in crate::matmul) fn compute(
        self,
        input: &PackedInput,
        weight: MatrixRef,
        output: PartMut,
        mode: Write,
        part: Part,
    ) {
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
    /// Whether [`Self::few_tokens`] computes it.
    fn has_few_tokens(&self) -> bool {
        has_few_tokens(self.input.tokens(), self.weight.dtype(), self.input.is_split())
    }

    /// Writes the sums of a tile of rows, from `first_row` of the part on as far as it has them, and of a tile of tokens, or adds them, to the output.
    #[inline(always)]
    fn write_sums<S: Simd>(&mut self, simd: S, first_row: usize, tokens: usize, sums: &Sums) {
        let start = self.part.columns.start + first_row;
        let rows = start..self.part.columns.end.min(start + TILE_ROWS);
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

//! Matrices in the block formats of GGUF, repacked once into the order of quantised weights, so that they are multiplied as integers.
//!
//! Weights keep their values: a weight is `scale * integer`, or `scale * integer + minimum`, where the integer, and what scale and
//! minimum are computed from, are those of the file. 4 bits and fewer become nibbles, 5 bits become 6, and 6 and 8 stay. Of 6 bits four
//! quads share three times 64 bytes: the first three in their lower bits, two bits of the fourth in the upper ones of each, the lowest
//! first. Behind them lie the sides of each group of 128 columns and block of rows, each row by row:
//!
//! ```text
//! halves:  [subgroup of 32] f16 scale, then [subgroup] f16 minimum
//! factors: f16 scale, f16 scale of minima; [part] a signed byte that the scale is multiplied by, then [pair of parts] two for the minimum
//! ```
//!
//! Products with `halves` take activations of which 32 share a scale, products with `factors` those of which a group does: the sums of
//! parts, times their factors, are added as integers before any scale is used.

use super::{
    BLOCK_ROWS, GROUP, QUAD, QuantizedFormat,
    input::{SUBGROUP, SUBGROUPS},
};
use crate::{
    BlockFormat, ThreadPool,
    blocks::{BlockSides, BlocksRef, MOST_FACTORS},
};

/// How a block format is repacked.
#[derive(Clone, Copy)]
pub(super) struct Repacking {
    sides: SideLayout,
    /// Bits of a weight.
    bits: usize,
}

/// What belongs to the weights of a group.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum SideLayout {
    /// A scale in f16 for each 32 columns, and a minimum likewise.
    Halves { minima: bool },
    /// A scale in f16 of which each part of so many columns has a factor of 8 bits, and minima likewise.
    Factors { columns: usize, minima: bool },
}

/// Bytes of a number of f16 for each row.
pub(super) const HALVES: usize = 2 * BLOCK_ROWS;

impl SideLayout {
    #[inline(always)]
    pub(super) const fn has_minima(self) -> bool {
        match self {
            Self::Halves { minima } | Self::Factors { minima, .. } => minima,
        }
    }

    /// Columns that share a scale.
    pub(super) fn columns(self) -> usize {
        match self {
            Self::Halves { .. } => SUBGROUP,
            Self::Factors { columns, .. } => columns,
        }
    }

    /// Where the factors of a group begin.
    #[inline(always)]
    pub(super) const fn first_factor(self) -> usize {
        if self.has_minima() { 2 * HALVES } else { HALVES }
    }

    /// Bytes of a group in a block of rows.
    fn bytes(self) -> usize {
        let of_scales = match self {
            Self::Halves { .. } => SUBGROUPS * HALVES,
            Self::Factors { columns, .. } => HALVES + GROUP / columns * BLOCK_ROWS,
        };
        if self.has_minima() { 2 * of_scales } else { of_scales }
    }
}

impl Repacking {
    /// That of a format.
    pub(super) fn of(format: BlockFormat) -> Self {
        let halves = |minima| SideLayout::Halves { minima };
        let factors = |columns, minima| SideLayout::Factors { columns, minima };
        let (sides, bits) = match format {
            BlockFormat::Q8_0 => (halves(false), 8),
            BlockFormat::Q5_0 => (halves(false), 6),
            BlockFormat::Q5_1 => (halves(true), 6),
            BlockFormat::Q4_0 => (halves(false), 4),
            BlockFormat::Q4_1 => (halves(true), 4),
            BlockFormat::Q5_K => (factors(32, true), 6),
            BlockFormat::Q4_K => (factors(32, true), 4),
            BlockFormat::Q6_K => (factors(16, false), 6),
            BlockFormat::Q3_K => (factors(16, false), 4),
            BlockFormat::Q2_K => (factors(16, true), 4),
        };
        Self { sides, bits }
    }

    pub(super) fn sides(self) -> SideLayout {
        self.sides
    }

    pub(super) fn side_bytes(self) -> usize {
        self.sides.bytes()
    }

    /// Bits of a weight.
    pub(super) fn bits(self) -> usize {
        self.bits
    }

    /// What is added to an integer to make the stored number of it.
    pub(super) fn zero_point(self) -> u8 {
        zero_point(self.bits, self.sides.has_minima())
    }

    /// What is added to a stored number to make a signed byte of it.
    pub(super) fn signed_offset(self) -> u8 {
        self.zero_point().wrapping_neg()
    }

    /// What is added to a stored number to make a byte of it whose zero point is 128.
    pub(super) fn byte_offset(self) -> u8 {
        128 - self.zero_point()
    }
}

/// The stored number that stands for the integer zero: with minima integers have no sign, unless they are bytes.
#[inline(always)]
pub(super) const fn zero_point(bits: usize, minima: bool) -> u8 {
    if minima && bits < 8 { 0 } else { 1 << (bits - 1) }
}

/// Repacks `source` into `target`, which has as many bytes as [`QuantizedFormat::bytes`] says.
///
/// # Panics
/// If it has not.
pub fn repack(pool: &ThreadPool, source: BlocksRef, target: &mut [u8]) {
    let (rows, cols) = (source.rows(), source.cols());
    let format = QuantizedFormat::from(source.format());
    assert_eq!(Some(target.len()), format.bytes(rows, cols), "bytes of a matrix of {rows} x {cols} in {format}");
    let (blocks, groups) = (rows.div_ceil(BLOCK_ROWS), cols.div_ceil(GROUP));
    if blocks == 0 || groups == 0 {
        return;
    }
    let (quants, sides) = target.split_at_mut(blocks * groups * format.group_bytes());
    let quants = quants.chunks_exact_mut(groups * format.group_bytes());
    let targets = quants.zip(sides.chunks_exact_mut(groups * format.side_bytes())).enumerate();
    pool.for_each_item(blocks, targets, |(block, (quants, sides))| {
        repack_rows(source, block * BLOCK_ROWS, quants, sides);
    });
}

/// Repacks a block of rows. Rows and columns that the matrix lacks become zeros.
fn repack_rows(source: BlocksRef, first_row: usize, quants: &mut [u8], sides: &mut [u8]) {
    let (format, repacking) = (QuantizedFormat::from(source.format()), Repacking::of(source.format()));
    let block_weights = source.format().block_weights();
    // Groups that have a block together.
    let step = block_weights.max(GROUP);
    let mut integers = vec![0i8; step];
    sides.fill(0);
    let quants = quants.chunks_mut(step / GROUP * format.group_bytes());
    let targets = quants.zip(sides.chunks_mut(step / GROUP * format.side_bytes()));
    for (i, (quants, sides)) in targets.enumerate() {
        let count = step.min(source.cols() - i * step);
        for row in 0..BLOCK_ROWS {
            integers.fill(0);
            if first_row + row < source.rows() {
                let blocks = source.blocks(first_row + row, i * step, count);
                source.format().integers(blocks, &mut integers[..count], |block, block_sides| {
                    place_sides(repacking.sides, &block_sides, row, block * block_weights, block_weights, sides);
                });
            }
            let groups = integers.as_chunks::<GROUP>().0.iter().zip(quants.chunks_exact_mut(format.group_bytes()));
            for (integers, quants) in groups {
                place_row(repacking, integers, row, quants);
            }
        }
    }
}

/// Writes the integers of a row's group to their places in the layout.
fn place_row(repacking: Repacking, integers: &[i8; GROUP], row: usize, quants: &mut [u8]) {
    let stored = |integer: i8| (integer as u8).wrapping_add(repacking.zero_point());
    let quads = integers.as_chunks::<QUAD>().0;
    let targets = quants.as_chunks_mut::<{ BLOCK_ROWS * QUAD }>().0.iter_mut();
    let mut places = targets.filter_map(|target| target.as_chunks_mut::<QUAD>().0.get_mut(row));
    match repacking.bits {
        4 => {
            for ([low, high], place) in quads.as_chunks().0.iter().zip(places) {
                *place = std::array::from_fn(|i| stored(low[i]) | stored(high[i]) << 4);
            }
        }
        6 => {
            for [first, second, third, fourth] in quads.as_chunks().0 {
                for (i, (quad, place)) in [first, second, third].into_iter().zip(&mut places).enumerate() {
                    *place = std::array::from_fn(|c| stored(quad[c]) | (stored(fourth[c]) >> (2 * i)) << 6);
                }
            }
        }
        _ => {
            for (quad, place) in quads.iter().zip(places) {
                *place = quad.map(stored);
            }
        }
    }
}

/// Writes what belongs to a row's block of `count` weights from column `first` of `sides` on.
fn place_sides(layout: SideLayout, block: &BlockSides, row: usize, first: usize, count: usize, sides: &mut [u8]) {
    let put_half = |sides: &mut [u8], place: usize, half: [u8; 2]| {
        sides[place * HALVES + 2 * row..][..2].copy_from_slice(&half);
    };
    let groups = sides.chunks_exact_mut(layout.bytes()).enumerate();
    let columns = layout.columns();
    for (group, sides) in groups {
        // The block's columns in this group.
        let begin = first.max(group * GROUP);
        let end = (first + count).min((group + 1) * GROUP);
        if begin >= end {
            continue;
        }
        let parts = (begin - group * GROUP) / columns..(end - group * GROUP) / columns;
        match layout {
            SideLayout::Halves { minima } => {
                for part in parts {
                    put_half(sides, part, block.scale);
                    if minima {
                        put_half(sides, SUBGROUPS + part, block.minimum);
                    }
                }
            }
            SideLayout::Factors { minima, .. } => {
                put_half(sides, 0, block.scale);
                if minima {
                    put_half(sides, 1, block.minimum);
                }
                let factors = &mut sides[layout.first_factor()..];
                for part in parts {
                    let of_block = (group * GROUP + part * columns - first) / columns;
                    debug_assert!(of_block < MOST_FACTORS);
                    factors[part * BLOCK_ROWS + row] = block.factors[of_block] as u8;
                    if minima {
                        let pair = GROUP / columns * BLOCK_ROWS + part / 2 * 2 * BLOCK_ROWS;
                        factors[pair + 2 * row + part % 2] = block.minimum_factors[of_block] as u8;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;

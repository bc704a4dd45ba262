//! Matrices in the block formats of GGUF, repacked once into the order of quantised weights, so that they are multiplied as integers.
//!
//! Weights keep their values: a weight is `scale * integer`, or `scale * integer + minimum`, where the integer, and what scale and
//! minimum are computed from, are those of the file. 4 bits and fewer become nibbles, more become bytes. Behind them lie the sides of each
//! group of 128 columns and block of rows, each row by row:
//!
//! ```text
//! halves:  [subgroup of 32] f16 scale, then [subgroup] f16 minimum
//! factors: f16 scale, f16 scale of minima; [part] a signed byte that the scale is multiplied by, then [part] one for the minimum
//! ```

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
    /// Whether integers have at most 4 bits.
    has_nibbles: bool,
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

/// The nibble of the weight zero, where there are no minima.
pub(super) const NIBBLE_ZERO_POINT: u8 = 8;

impl SideLayout {
    #[inline(always)]
    pub(super) fn has_minima(self) -> bool {
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
        let (sides, has_nibbles) = match format {
            BlockFormat::Q8_0 | BlockFormat::Q5_0 => (halves(false), false),
            BlockFormat::Q5_1 => (halves(true), false),
            BlockFormat::Q4_0 => (halves(false), true),
            BlockFormat::Q4_1 => (halves(true), true),
            BlockFormat::Q5_K => (factors(32, true), false),
            BlockFormat::Q4_K => (factors(32, true), true),
            BlockFormat::Q6_K => (factors(16, false), false),
            BlockFormat::Q3_K => (factors(16, false), true),
            BlockFormat::Q2_K => (factors(16, true), true),
        };
        Self { sides, has_nibbles }
    }

    pub(super) fn sides(self) -> SideLayout {
        self.sides
    }

    pub(super) fn side_bytes(self) -> usize {
        self.sides.bytes()
    }

    pub(super) fn has_nibbles(self) -> bool {
        self.has_nibbles
    }

    /// What is added to an integer to make a nibble of it, or a byte.
    fn zero_point(self) -> u8 {
        match (self.has_nibbles, self.sides.has_minima()) {
            (false, _) => 128,
            (true, false) => NIBBLE_ZERO_POINT,
            (true, true) => 0,
        }
    }

    /// What is added to a nibble to make a byte of it whose zero point is 128.
    pub(super) fn nibble_offset(self) -> u8 {
        128 - self.zero_point()
    }
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
    let byte = |integer: i8| (integer as u8).wrapping_add(repacking.zero_point());
    let quads = integers.as_chunks::<QUAD>().0;
    let targets = quants.as_chunks_mut::<{ BLOCK_ROWS * QUAD }>().0.iter_mut();
    let places = targets.filter_map(|target| target.as_chunks_mut::<QUAD>().0.get_mut(row));
    if repacking.has_nibbles {
        for ([low, high], place) in quads.as_chunks().0.iter().zip(places) {
            *place = std::array::from_fn(|i| byte(low[i]) | byte(high[i]) << 4);
        }
    } else {
        for (quad, place) in quads.iter().zip(places) {
            *place = quad.map(byte);
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
                let factors = &mut sides[if minima { 2 * HALVES } else { HALVES }..];
                for part in parts {
                    let of_block = (group * GROUP + part * columns - first) / columns;
                    debug_assert!(of_block < MOST_FACTORS);
                    factors[part * BLOCK_ROWS + row] = block.factors[of_block] as u8;
                    if minima {
                        factors[(GROUP / columns + part) * BLOCK_ROWS + row] = block.minimum_factors[of_block] as u8;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;

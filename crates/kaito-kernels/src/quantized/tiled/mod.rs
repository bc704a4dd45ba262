//! The product by tile registers: weights are `B` as they lie, tokens are `A`.
//!
//! A register holds half of a group of a block of rows, so that two products of registers are the integer sums of one group, for up to
//! 16 tokens and 16 rows. They are stored, and scaled and added in vectors of `f32`, in the order and with the rounding of the
//! definition.

mod few;
mod many;

use std::{mem::MaybeUninit, ops::Range};

use super::{
    BLOCK_ROWS, GROUP,
    dot::{Dot, DotKernel, GROUP_BYTES},
    input::InputGroups,
    product::{PartProduct, load_outputs, store_outputs},
};
use crate::{
    Write,
    amx::{TILE_BYTES, TILE_ROW_BYTES, TILE_ROWS, TileUnit},
};

const _: () = assert!(BLOCK_ROWS == TILE_ROWS && GROUP == 2 * TILE_ROW_BYTES && GROUP_BYTES == 2 * TILE_BYTES);

/// Outputs of a token for a block of rows.
type Outputs = [f32; BLOCK_ROWS];

/// The integer sums of a group, of tokens and a block of rows.
type Sums = [[i32; BLOCK_ROWS]; TILE_ROWS];

/// The product of a part, by the registers of `unit`.
pub(super) struct TiledProduct<'a, U> {
    pub unit: U,
    pub product: PartProduct<'a>,
}

impl<U: TileUnit> DotKernel for TiledProduct<'_, U> {
    type Output = ();

    #[inline(always)]
    fn run<D: Dot>(self, dot: D) {
        match self.product.input.width() {
            8 => dot.call(WithWidth::<U, 8>(self)),
            16 => dot.call(WithWidth::<U, 16>(self)),
            width => unreachable!("tiles of {width} tokens"),
        }
    }
}

/// Tiles of `W` tokens.
struct WithWidth<'a, U, const W: usize>(TiledProduct<'a, U>);

impl<U: TileUnit, const W: usize> DotKernel for WithWidth<'_, U, W> {
    type Output = ();

    #[inline(always)]
    fn run<D: Dot>(self, dot: D) {
        let TiledProduct { unit, product } = self.0;
        if product.part.tiles.len() == 1 {
            few::run::<D, U, W>(dot, unit, product);
        } else {
            many::run::<D, U, W>(dot, unit, product);
        }
    }
}

impl PartProduct<'_> {
    /// What the outputs of a block of rows begin with.
    #[inline(always)]
    fn load<D: Dot, const W: usize>(&mut self, dot: D, block: usize, outputs: &mut [MaybeUninit<Outputs>]) {
        let columns = self.block_columns(block);
        for (i, tile) in self.part.tiles.clone().enumerate() {
            let tokens = self.input.tiles().range(tile);
            for lane in 0..W {
                let target = outputs[i * W + lane].write([0.0; BLOCK_ROWS]);
                if self.mode == Write::Add && lane < tokens.len() {
                    let source = self.output.slice(tokens.start + lane, columns.clone());
                    dot.store(target, load_outputs(dot, source));
                }
            }
        }
    }

    /// Writes the outputs of some blocks of rows.
    ///
    /// # Safety
    /// They have been written by `load`.
    #[inline(always)]
    unsafe fn store<D: Dot, const W: usize>(
        &mut self,
        dot: D,
        blocks: impl Iterator<Item = usize> + Clone,
        outputs: &[MaybeUninit<Outputs>],
    ) {
        let tokens = self.part.tiles.len() * W;
        for (tile, input_tile) in self.part.tiles.clone().enumerate() {
            for (lane, token) in self.input.tiles().range(input_tile).enumerate() {
                for (i, block) in blocks.clone().enumerate() {
                    let columns = self.block_columns(block);
                    // SAFETY: by contract.
                    let outputs = unsafe { outputs[i * tokens + tile * W + lane].assume_init_ref() };
                    store_outputs(dot, self.output.slice(token, columns), dot.load(outputs));
                }
            }
        }
    }

    /// The columns of the output that a block of rows has; the last one may not have all.
    #[inline(always)]
    fn block_columns(&self, block: usize) -> Range<usize> {
        let first = block * BLOCK_ROWS;
        first..self.part.columns.end.min(first + BLOCK_ROWS)
    }
}

/// Adds to the outputs `y` of `W` tokens the sums of a group, times both scales.
///
/// # Safety
/// The sums and `input` are those of `W` tokens.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // Iterators take closures.
unsafe fn scale<D: Dot, const W: usize>(
    dot: D,
    sums: *const Sums,
    input: InputGroups,
    scales: D::Floats,
    y: &mut [D::Floats; W],
) {
    // SAFETY: by contract.
    unsafe {
        for token in 0..W {
            let ints = dot.corrected(&(*sums)[token], *input.corrections.add(token));
            let both = dot.mul(scales, dot.splat(*input.scales.add(token)));
            y[token] = dot.add_scaled(ints, both, y[token]);
        }
    }
}

/// # Safety
/// There are `W` outputs.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // Iterators take closures.
unsafe fn load_sums<D: Dot, const W: usize>(dot: D, outputs: *const Outputs) -> [D::Floats; W] {
    let mut y = [dot.splat(0.0); W];
    for token in 0..W {
        // SAFETY: by contract.
        y[token] = unsafe { dot.load(&*outputs.add(token)) };
    }
    y
}

/// # Safety
/// There are `W` outputs.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // Iterators take closures.
unsafe fn store_sums<D: Dot, const W: usize>(dot: D, outputs: *mut Outputs, y: [D::Floats; W]) {
    for token in 0..W {
        // SAFETY: by contract.
        unsafe { dot.store(&mut *outputs.add(token), y[token]) };
    }
}

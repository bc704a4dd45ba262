//! The product by tile registers: weights are `B`, tokens are `A`.
//!
//! Quantised weights are used as they lie. A register holds half of a group of a block of rows, so that two products of registers are
//! the integer sums of one group, for up to 16 tokens and 16 rows. They are stored, and scaled and added in vectors of `f32`, in the
//! order and with the rounding of the definition. Groups of repacked blocks have parts with scales of their own, whose sums are stored apart: see [`parts`].

mod few;
mod many;
mod parts;
mod products;

use std::{iter::StepBy, mem::MaybeUninit, ops::Range};

use self::{
    parts::Products,
    products::{Folded, InParts},
};

use super::{
    BLOCK_ROWS, GROUP, QuantizedFormat,
    dot::{Dot, DotKernel, GROUP_BYTES},
    group::{HALF, Scaled, WHOLE},
    input::{InputGroups, SUBGROUP},
    product::{PartProduct, load_outputs, store_outputs},
    repacked::{Repacking, SideLayout},
};
use crate::{
    Write,
    amx::{TILE_BYTES, TILE_ROW_BYTES, TILE_ROWS, TileUnit},
    simd::STREAMS,
};

const _: () = assert!(BLOCK_ROWS == TILE_ROWS && GROUP == 2 * TILE_ROW_BYTES && GROUP_BYTES == 2 * TILE_BYTES);

/// Outputs that are computed at a time, in blocks of rows of a token: they stay in the caches.
const MOST_OUTPUTS: usize = 1024;

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
        let format = match self.product.weight.format {
            QuantizedFormat::Quantized(_) => return self.of_widths(dot, Groups),
            QuantizedFormat::Repacked(format) => format,
        };
        let repacking = Repacking::of(format);
        match repacking.sides() {
            SideLayout::Halves { minima } => self.of_widths(dot, Parts(InParts(Scaled { minima }))),
            SideLayout::Factors { columns: SUBGROUP, .. } => {
                self.of_widths(dot, Parts(Folded::<WHOLE>::new(repacking)));
            }
            SideLayout::Factors { .. } => self.of_widths(dot, Parts(Folded::<HALF>::new(repacking))),
        }
    }
}

impl<U: TileUnit> TiledProduct<'_, U> {
    #[inline(always)]
    fn of_widths<D: Dot, P: TiledGroups>(self, dot: D, groups: P) {
        match self.product.input.width() {
            8 => dot.call(WithWidth::<U, P, 8> { product: self, groups }),
            16 => dot.call(WithWidth::<U, P, 16> { product: self, groups }),
            width => unreachable!("tiles of {width} tokens"),
        }
    }
}

/// What becomes of the sums of a group's products.
trait TiledGroups: Copy {
    /// The product of a part whose tiles have `W` tokens.
    fn run<D: Dot, U: TileUnit, const W: usize>(self, dot: D, unit: U, product: PartProduct);
}

/// They have one scale.
#[derive(Clone, Copy)]
struct Groups;

impl TiledGroups for Groups {
    #[inline(always)]
    fn run<D: Dot, U: TileUnit, const W: usize>(self, dot: D, unit: U, product: PartProduct) {
        if product.part.tiles.len() == 1 {
            few::run::<D, U, W>(dot, unit, product);
        } else {
            many::run::<D, U, W>(dot, unit, product);
        }
    }
}

/// They have several parts with scales of their own.
#[derive(Clone, Copy)]
struct Parts<P>(P);

impl<P: Products> TiledGroups for Parts<P> {
    #[inline(always)]
    fn run<D: Dot, U: TileUnit, const W: usize>(self, dot: D, unit: U, product: PartProduct) {
        if product.part.tiles.len() == 1 {
            parts::few::<D, U, P, W>(dot, unit, self.0, product);
        } else {
            parts::many::<D, U, P, W>(dot, unit, self.0, product);
        }
    }
}

/// Tiles of `W` tokens.
struct WithWidth<'a, U, P, const W: usize> {
    product: TiledProduct<'a, U>,
    groups: P,
}

impl<U: TileUnit, P: TiledGroups, const W: usize> DotKernel for WithWidth<'_, U, P, W> {
    type Output = ();

    #[inline(always)]
    fn run<D: Dot>(self, dot: D) {
        let TiledProduct { unit, product } = self.product;
        self.groups.run::<D, U, W>(dot, unit, product);
    }
}

/// Blocks of rows that one tile of tokens reads at the same time, see [`STREAMS`]: all of their groups.
struct Places<'a> {
    blocks: StepBy<Range<usize>>,
    quants: [&'a [u8]; STREAMS],
    sides: [&'a [u8]; STREAMS],
}

impl<'a> PartProduct<'a> {
    /// Its blocks of rows.
    #[inline(always)]
    fn blocks(&self) -> Range<usize> {
        let first = self.part.columns.start / BLOCK_ROWS;
        first..first + self.part.columns.len().div_ceil(BLOCK_ROWS)
    }

    /// From a place to the next one: the first of that many blocks each have places of their own.
    #[inline(always)]
    fn places_apart(&self) -> usize {
        self.blocks().len().div_ceil(STREAMS)
    }

    /// The places of which `first` is the first one.
    #[inline(always)]
    fn places(&self, first: usize) -> Places<'a> {
        let (weight, groups) = (self.weight, self.weight.groups());
        let blocks = (first..self.blocks().end).step_by(self.places_apart());
        let mut places = Places { blocks: blocks.clone(), quants: [&[]; STREAMS], sides: [&[]; STREAMS] };
        for (i, block) in blocks.enumerate() {
            (places.quants[i], places.sides[i]) = (weight.quants(block, 0, groups), weight.sides(block, 0, groups));
        }
        places
    }
}

/// Where the outputs of a part's tokens for a block of rows are to be written.
#[derive(Clone, Copy)]
struct PlaceOfOutputs {
    first: *const f32,
    /// From one token to the next one.
    stride: usize,
}

impl PlaceOfOutputs {
    /// Prefetches those of a tile of `W` tokens, where the last tile may lack some.
    #[inline(always)]
    fn prefetch<D: Dot, const W: usize>(self, dot: D, tile: usize) {
        for token in tile * W..(tile + 1) * W {
            dot.prefetch(self.first.wrapping_add(token * self.stride).cast());
        }
    }
}

impl PartProduct<'_> {
    #[inline(always)]
    fn place_of_outputs(&self, block: usize) -> PlaceOfOutputs {
        let first = self.output.address(self.part.tokens.start, block * BLOCK_ROWS);
        PlaceOfOutputs { first, stride: self.output.stride() }
    }

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

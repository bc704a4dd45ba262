//! Many tokens: some groups of weights stay in registers while all tokens pass.
//!
//! Storing sums waits for the products, so it lags one group behind, and scaling two.

use std::mem::MaybeUninit;

use super::{MOST_OUTPUTS, Outputs, PlaceOfOutputs, Sums, load_sums, scale, store_sums};
use crate::{
    amx::{TILE_BYTES, TILE_ROW_BYTES, TILE_ROWS, TILES, TileShapes, TileUnit, Tiles},
    quantized::{
        BLOCK_ROWS, GROUP, Grouping,
        dot::{Dot, UnpackedGroup},
        input::InputGroups,
        product::PartProduct,
        strip::{UNPACKED_GROUPS, unpack},
    },
    simd::{CACHE_LINE, STREAMS},
};

/// Groups of a block of rows that stay in registers while all tokens of a part pass.
const STRIP_GROUPS: usize = 2;
const _: () = assert!(STRIP_GROUPS <= UNPACKED_GROUPS);

/// Registers: two for the integer sums of groups in turn, one for tokens, two for each group of the strip.
const INPUT: usize = 2;
const WEIGHTS: usize = 3;
const _: () = assert!(WEIGHTS + 2 * STRIP_GROUPS <= TILES);

#[inline(always)]
pub(super) fn run<D: Dot, U: TileUnit, const W: usize>(dot: D, unit: U, mut product: PartProduct) {
    let (few, all) = ((W, TILE_ROW_BYTES), (TILE_ROWS, TILE_ROW_BYTES));
    let mut tiles = unit.configure(&TileShapes::new([few, few, few, all, all, all, all, all]));
    let mut room = Room::new();
    let (weight, groups) = (product.weight, product.weight.groups());
    let blocks = product.blocks();
    let input_tiles = product.part.tiles.len();
    let tokens = input_tiles * W;
    let most = (MOST_OUTPUTS / tokens).clamp(1, STREAMS);
    // Some blocks of rows at a time, which lie together: the outputs of a token do then, too, and writing them takes longer than reading
    // weights.
    for first in blocks.clone().step_by(most) {
        let end = blocks.end.min(first + most);
        for (i, block) in (first..end).enumerate() {
            product.load::<D, W>(dot, block, &mut room.outputs[i * tokens..][..tokens]);
        }
        for group in (0..groups).step_by(STRIP_GROUPS) {
            let count = STRIP_GROUPS.min(groups - group);
            for (i, block) in (first..end).enumerate() {
                let quants = weight.quants(block, group, count);
                let next = quants.as_ptr().wrapping_add(quants.len());
                let lines = quants.len() / CACHE_LINE;
                let sides = weight.sides(block, group, count);
                let quants = if weight.format.is_packed() {
                    unpack(dot, quants, sides, &mut room.weights, false)
                } else {
                    quants
                };
                let outputs = &mut room.outputs[i * tokens..][..tokens];
                let pass = Pass {
                    quants: quants.as_ptr(),
                    sides: sides.as_ptr(),
                    side_bytes: weight.format.side_bytes(),
                    input: product.input.at_tiles(product.part.tiles.clone(), group, count),
                    input_tile: product.input.groups() * W,
                    input_tiles,
                    outputs: outputs.as_mut_ptr().cast(),
                    sums: room.sums.as_mut_ptr(),
                    next,
                    lines,
                    finished: (group + count == groups).then(|| product.place_of_outputs(block)),
                };
                // SAFETY: the registers have the shapes that it needs. There are `count` groups of weights, their scales, and the groups
                // of all tokens of the part, as `at_tiles` has checked. `outputs` are as many, which `load` has written.
                unsafe {
                    if count == STRIP_GROUPS {
                        pass.run::<D, _, W>(dot, &mut tiles);
                    } else {
                        pass.run_one::<D, _, W>(dot, &mut tiles);
                    }
                }
            }
        }
        // SAFETY: `load` has written them.
        unsafe { product.store::<D, W>(dot, first..end, &room.outputs) };
    }
}

/// Memory of a part.
#[repr(align(64))]
struct Room {
    outputs: [MaybeUninit<Outputs>; MOST_OUTPUTS],
    /// The integer sums of the last products.
    sums: [Sums; STRIP_GROUPS],
    weights: [UnpackedGroup; UNPACKED_GROUPS],
}

impl Room {
    fn new() -> Self {
        Self {
            outputs: [const { MaybeUninit::uninit() }; MOST_OUTPUTS],
            sums: [[[0; BLOCK_ROWS]; TILE_ROWS]; STRIP_GROUPS],
            weights: [const { MaybeUninit::uninit() }; UNPACKED_GROUPS],
        }
    }
}

/// A strip of a block of rows times all tokens of a part.
struct Pass {
    quants: *const u8,
    /// Their scales, and from those of a group to those of the next.
    sides: *const u8,
    side_bytes: usize,
    /// Of the first tile of tokens.
    input: InputGroups,
    /// From a tile of tokens to the next one.
    input_tile: usize,
    input_tiles: usize,
    /// `[tile][token of the tile]`
    outputs: *mut Outputs,
    sums: *mut Sums,
    /// Where the strip begins that is prefetched meanwhile, and its cache lines.
    next: *const u8,
    lines: usize,
    /// Where the outputs of the block of rows are to be written, if this is its last strip.
    finished: Option<PlaceOfOutputs>,
}

/// The safety contract of its methods: the registers have the shapes `[W, W, W, 16, 16, 16, 16, 16]` of rows of 64 bytes; the pointers
/// are those of as many groups, tiles of `W` tokens, outputs and [`STRIP_GROUPS`] groups of sums as are used.
impl Pass {
    /// A strip of [`STRIP_GROUPS`] groups.
    #[inline(always)]
    unsafe fn run<D: Dot, T: Tiles, const W: usize>(self, dot: D, tiles: &mut T) {
        // SAFETY: by contract.
        unsafe {
            tiles.load::<3>(self.quants, TILE_ROW_BYTES);
            tiles.load::<4>(self.quants.add(TILE_BYTES), TILE_ROW_BYTES);
            tiles.load::<5>(self.quants.add(2 * TILE_BYTES), TILE_ROW_BYTES);
            tiles.load::<6>(self.quants.add(3 * TILE_BYTES), TILE_ROW_BYTES);
            let scales = [dot.scales(&*self.sides.cast()), dot.scales(&*self.sides.add(self.side_bytes).cast())];
            let mut input = self.input;
            let mut outputs = self.outputs;
            self.prefetch::<D, W>(dot, 0);
            self.multiply::<T, 0, 3, 4, W>(tiles, input, 0);
            self.multiply::<T, 1, 5, 6, W>(tiles, input, 1);
            self.keep::<T, 0>(tiles, 0);
            for tile in 1..self.input_tiles {
                let before = input;
                input = input.skip(Grouping::Rotated, self.input_tile);
                self.prefetch::<D, W>(dot, tile);
                self.multiply::<T, 0, 3, 4, W>(tiles, input, 0);
                self.keep::<T, 1>(tiles, 1);
                let mut y = load_sums::<D, W>(dot, outputs);
                scale(dot, self.sums, before, scales[0], &mut y);
                self.multiply::<T, 1, 5, 6, W>(tiles, input, 1);
                self.keep::<T, 0>(tiles, 0);
                scale(dot, self.sums.add(1), before.skip(Grouping::Rotated, W), scales[1], &mut y);
                store_sums(dot, outputs, y);
                outputs = outputs.add(W);
            }
            self.keep::<T, 1>(tiles, 1);
            let mut y = load_sums::<D, W>(dot, outputs);
            scale(dot, self.sums, input, scales[0], &mut y);
            scale(dot, self.sums.add(1), input.skip(Grouping::Rotated, W), scales[1], &mut y);
            store_sums(dot, outputs, y);
        }
    }

    /// A strip of one group.
    #[inline(always)]
    unsafe fn run_one<D: Dot, T: Tiles, const W: usize>(self, dot: D, tiles: &mut T) {
        // SAFETY: by contract.
        unsafe {
            tiles.load::<3>(self.quants, TILE_ROW_BYTES);
            tiles.load::<4>(self.quants.add(TILE_BYTES), TILE_ROW_BYTES);
            let scales = dot.scales(&*self.sides.cast());
            for tile in 0..self.input_tiles {
                let input = self.input.skip(Grouping::Rotated, tile * self.input_tile);
                self.multiply::<T, 0, 3, 4, W>(tiles, input, 0);
                self.keep::<T, 0>(tiles, 0);
                let mut y = load_sums::<D, W>(dot, self.outputs.add(tile * W));
                scale(dot, self.sums, input, scales, &mut y);
                store_sums(dot, self.outputs.add(tile * W), y);
            }
        }
    }

    /// Prefetches this tile's share of the next strip, and where outputs are to be written soon.
    #[inline(always)]
    fn prefetch<D: Dot, const W: usize>(&self, dot: D, tile: usize) {
        for line in tile * self.lines / self.input_tiles..(tile + 1) * self.lines / self.input_tiles {
            dot.prefetch(self.next.wrapping_add(line * CACHE_LINE));
        }
        if let Some(outputs) = self.finished {
            outputs.prefetch::<D, W>(dot, tile);
        }
    }

    /// Register `C`: the integer products of a group of a tile of tokens with the weights in registers `B0` and `B1`.
    #[inline(always)]
    unsafe fn multiply<T: Tiles, const C: usize, const B0: usize, const B1: usize, const W: usize>(
        &self,
        tiles: &mut T,
        input: InputGroups,
        group: usize,
    ) {
        // SAFETY: by contract.
        unsafe {
            let numbers = input.numbers.add(group * W).cast::<u8>();
            tiles.load::<INPUT>(numbers, GROUP);
            tiles.zero::<C>();
            tiles.add_i8_u8::<C, INPUT, B0>();
            tiles.load::<INPUT>(numbers.add(TILE_ROW_BYTES), GROUP);
            tiles.add_i8_u8::<C, INPUT, B1>();
        }
    }

    /// Stores register `C` as the sums of a group.
    #[inline(always)]
    unsafe fn keep<T: Tiles, const C: usize>(&self, tiles: &mut T, group: usize) {
        // SAFETY: by contract.
        unsafe { tiles.store::<C>(self.sums.add(group).cast(), TILE_ROW_BYTES) };
    }
}

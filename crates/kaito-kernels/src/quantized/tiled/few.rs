//! One tile of tokens: bound by reading weights, which come from several places at once, see [`STREAMS`].
//!
//! Sums are read back only when they have reached the first level cache, so that scaling lags one group behind the products.

use std::mem::MaybeUninit;

use super::{Outputs, Places, Sums, load_sums, scale, store_sums};
use crate::{
    amx::{TILE_BYTES, TILE_ROW_BYTES, TILE_ROWS, TileShapes, TileUnit, Tiles},
    quantized::{
        BLOCK_ROWS, GROUP,
        dot::{Dot, GROUP_BYTES, UnpackedGroup},
        product::PartProduct,
    },
    simd::{CACHE_LINE, STREAMS},
};

/// How far ahead of its products each place is prefetched.
const DISTANCE: usize = 1024;

/// Registers: the integer sums of each place's group, the two halves of a group of tokens, and those of a group of weights.
const TOKENS: usize = STREAMS;
const WEIGHTS: usize = STREAMS + 2;
const _: () = assert!(STREAMS == 4);

/// Memory of a part.
#[repr(align(64))]
struct Room {
    outputs: [MaybeUninit<Outputs>; STREAMS * TILE_ROWS],
    /// Of this group and of the one before.
    sums: [[Sums; STREAMS]; 2],
    /// Of this group and of the next one.
    weights: [[UnpackedGroup; STREAMS]; 2],
}

#[inline(always)]
pub(super) fn run<D: Dot, U: TileUnit, const W: usize>(dot: D, unit: U, mut product: PartProduct) {
    let (few, all) = ((W, TILE_ROW_BYTES), (TILE_ROWS, TILE_ROW_BYTES));
    let mut tiles = unit.configure(&TileShapes::new([few, few, few, few, few, few, all, all]));
    let mut room = Room {
        outputs: [const { MaybeUninit::uninit() }; STREAMS * TILE_ROWS],
        sums: [[[[0; BLOCK_ROWS]; TILE_ROWS]; STREAMS]; 2],
        weights: [const { [const { MaybeUninit::uninit() }; STREAMS] }; 2],
    };
    let (weight, groups) = (product.weight, product.weight.groups());
    let group_bytes = weight.format.group_bytes();
    let first_block = product.blocks().start;
    for first in first_block..first_block + product.places_apart() {
        let Places { blocks, quants, sides } = product.places(first);
        let count = blocks.len();
        for (i, block) in blocks.clone().enumerate() {
            product.load::<D, W>(dot, block, &mut room.outputs[i * W..][..W]);
            if weight.format.is_packed() {
                unpack(dot, quants[i], sides[i], 0, &mut room.weights[0][i]);
            }
        }
        for group in 0..groups {
            let input = product.input.at_tiles(product.part.tiles.clone(), group, 1);
            let mut weights = [std::ptr::null(); STREAMS];
            for i in 0..count {
                for line in 0..group_bytes / CACHE_LINE {
                    let ahead = group * group_bytes + DISTANCE + line * CACHE_LINE;
                    dot.prefetch(quants[i].as_ptr().wrapping_add(ahead));
                }
                weights[i] = if weight.format.is_packed() {
                    room.weights[group % 2][i].as_ptr().cast()
                } else {
                    quants[i][group * GROUP_BYTES..][..GROUP_BYTES].as_ptr()
                };
            }
            // SAFETY: the registers have the shapes that these products need. The input has a group of `W` tokens, and each of `count`
            // places a group of weights: of 8 bits, or unpacked.
            unsafe {
                tiles.load::<TOKENS>(input.numbers.cast(), GROUP);
                tiles.load::<{ TOKENS + 1 }>(input.numbers.cast::<u8>().add(TILE_ROW_BYTES), GROUP);
                multiply::<_, 0>(&mut tiles, weights[0]);
                if count > 1 {
                    multiply::<_, 1>(&mut tiles, weights[1]);
                }
                if count > 2 {
                    multiply::<_, 2>(&mut tiles, weights[2]);
                }
                if count > 3 {
                    multiply::<_, 3>(&mut tiles, weights[3]);
                }
            }
            // While the products are computed.
            if weight.format.is_packed() && group + 1 < groups {
                for i in 0..count {
                    unpack(dot, quants[i], sides[i], group + 1, &mut room.weights[(group + 1) % 2][i]);
                }
            }
            if group > 0 {
                // SAFETY: as below.
                unsafe { scale_places::<D, W>(dot, &product, &mut room, &sides[..count], group - 1) };
            }
            let sums = room.sums[group % 2].as_mut_ptr();
            // SAFETY: there are as many sums as places.
            unsafe {
                tiles.store::<0>(sums.cast(), TILE_ROW_BYTES);
                if count > 1 {
                    tiles.store::<1>(sums.add(1).cast(), TILE_ROW_BYTES);
                }
                if count > 2 {
                    tiles.store::<2>(sums.add(2).cast(), TILE_ROW_BYTES);
                }
                if count > 3 {
                    tiles.store::<3>(sums.add(3).cast(), TILE_ROW_BYTES);
                }
            }
        }
        // SAFETY: the outputs of all places have been written by `load`.
        unsafe { scale_places::<D, W>(dot, &product, &mut room, &sides[..count], groups - 1) };
        // SAFETY: `load` has written them.
        unsafe { product.store::<D, W>(dot, blocks, &room.outputs) };
    }
}

/// Adds the scaled sums of a group to the outputs of each place.
///
/// # Safety
/// `W` outputs of each place have been written, and a tile of the input has as many tokens.
#[inline(always)]
unsafe fn scale_places<D: Dot, const W: usize>(
    dot: D,
    product: &PartProduct,
    room: &mut Room,
    sides: &[&[u8]],
    group: usize,
) {
    let side_bytes = product.weight.format.side_bytes();
    let input = product.input.at_tiles(product.part.tiles.clone(), group, 1);
    for (i, side) in sides.iter().enumerate() {
        let side = &side[group * side_bytes..][..side_bytes];
        let outputs = room.outputs[i * W..][..W].as_mut_ptr().cast();
        // SAFETY: by contract; a side begins with the scales.
        unsafe {
            let scales = dot.scales(&*side.as_ptr().cast());
            let mut y = load_sums::<D, W>(dot, outputs);
            scale(dot, &room.sums[group % 2][i], input, scales, &mut y);
            store_sums(dot, outputs, y);
        }
    }
}

/// Register `C`: the integer sums of a group of the tokens and of the weights at `weights`.
///
/// # Safety
/// The registers have the shapes that products of `C`, the tokens and the weights need, and a group can be read.
#[inline(always)]
unsafe fn multiply<T: Tiles, const C: usize>(tiles: &mut T, weights: *const u8) {
    // SAFETY: by contract.
    unsafe {
        tiles.zero::<C>();
        tiles.load::<WEIGHTS>(weights, TILE_ROW_BYTES);
        tiles.add_i8_u8::<C, TOKENS, WEIGHTS>();
        tiles.load::<{ WEIGHTS + 1 }>(weights.add(TILE_BYTES), TILE_ROW_BYTES);
        tiles.add_i8_u8::<C, { TOKENS + 1 }, { WEIGHTS + 1 }>();
    }
}

/// Unpacks 4-bit weights of one group of a block.
#[inline(always)]
fn unpack<D: Dot>(dot: D, nibbles: &[u8], sides: &[u8], group: usize, target: &mut UnpackedGroup) {
    dot.unpack(&nibbles.as_chunks().0[group], &sides.as_chunks().0[group], target);
}

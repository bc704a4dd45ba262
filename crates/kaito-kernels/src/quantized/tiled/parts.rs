//! Groups whose parts have scales of their own: repacked blocks.
//!
//! Weights are unpacked to signed bytes, so that sums need no corrections: with one tile of tokens while the group before is
//! multiplied, with more of them once for all. Either each part has sums of its own ([`InParts`]), or weights are multiplied by the factors of
//! their parts first ([`Folded`]). The sums of a unit are scaled while the products of the next one are computed.

use std::mem::MaybeUninit;

#[cfg(doc)]
use super::products::{Folded, InParts};
use super::{MOST_OUTPUTS, Outputs, Places, Sums};
use crate::{
    amx::{TILE_ROW_BYTES, TILE_ROWS, TileShapes, TileUnit, Tiles},
    quantized::{
        BLOCK_ROWS, Grouping, QUAD, QuantizedRef,
        dot::{Dot, GROUP_BYTES, QUADS, UnpackedGroup},
        group::{PartSums, WHOLE},
        input::InputGroups,
        product::PartProduct,
        strip::UNPACKED_GROUPS,
    },
    simd::{CACHE_LINE, STREAMS},
};

/// How far ahead of its products each of the places is prefetched that one tile of tokens reads weights from.
const DISTANCE: usize = 1024;
/// The same for what belongs to them, in groups.
const SIDES_AHEAD: usize = 4;

/// Registers: four for sums, then two for tokens and two for weights.
pub(super) const TOKENS: usize = 4;
pub(super) const WEIGHTS: usize = 6;

/// Sums of a unit at most, one for each part.
const MOST_SUMS: usize = QUADS / WHOLE;

/// Tokens whose sums are scaled at a time: they stay in vector registers.
pub(super) const SCALED: usize = 8;

/// Room for the weights of a group: once, or twice with factors in two parts.
pub(super) type UnpackedWeights = [UnpackedGroup; 2];
const WEIGHTS_BYTES: usize = 2 * GROUP_BYTES;

/// Memory of a part.
#[repr(align(64))]
struct Room {
    outputs: [MaybeUninit<Outputs>; MOST_OUTPUTS],
    /// Of this unit and of the one before.
    sums: [[Sums; MOST_SUMS]; 2],
    /// Of these units and of the next ones.
    weights: [[UnpackedWeights; UNPACKED_GROUPS]; 2],
}

impl Room {
    fn new() -> Self {
        Self {
            outputs: [const { MaybeUninit::uninit() }; MOST_OUTPUTS],
            sums: [[[[0; BLOCK_ROWS]; TILE_ROWS]; MOST_SUMS]; 2],
            weights: [const { [const { [const { MaybeUninit::uninit() }; 2] }; UNPACKED_GROUPS] }; 2],
        }
    }
}

/// One tile of tokens: bound by reading weights, which come from several places at once, see [`STREAMS`].
#[inline(always)]
pub(super) fn few<D: Dot, U: TileUnit, P: Products, const W: usize>(
    dot: D,
    unit: U,
    products: P,
    mut product: PartProduct,
) {
    let mut room = Room::new();
    let mut pipeline = Pipeline::<_, _, W>::new(unit, products, &mut room.sums);
    let (outputs, room) = (&mut room.outputs, &mut room.weights);
    let (weight, groups) = (product.weight, product.weight.groups());
    let (group_bytes, side_bytes) = (weight.format.group_bytes(), weight.format.side_bytes());
    let first_block = product.blocks().start;
    for first in first_block..first_block + product.places_apart() {
        let Places { blocks, quants, sides } = product.places(first);
        let count = blocks.len();
        for (i, block) in blocks.clone().enumerate() {
            product.load::<D, W>(dot, block, &mut outputs[i * W..][..W]);
        }
        // Units keep addresses of outputs until their sums are scaled: no reference may be taken meanwhile.
        let all_outputs = outputs.as_mut_ptr().cast::<Outputs>();
        // In turn a group of each place.
        products.unpack(dot, weight, &quants[0][..group_bytes], &sides[0][..side_bytes], &mut room[0][0]);
        let mut input = product.input.at_tiles(product.part.tiles.clone(), 0, groups);
        let mut turn = 0;
        for group in 0..groups {
            for place in 0..count {
                for line in 0..group_bytes / CACHE_LINE {
                    let ahead = group * group_bytes + DISTANCE + line * CACHE_LINE;
                    dot.prefetch(quants[place].as_ptr().wrapping_add(ahead));
                }
                for line in 0..side_bytes.div_ceil(CACHE_LINE) {
                    let ahead = (group + SIDES_AHEAD) * side_bytes + line * CACHE_LINE;
                    dot.prefetch(sides[place].as_ptr().wrapping_add(ahead));
                }
                let (next, group_of_next) = if place + 1 < count { (place + 1, group) } else { (0, group + 1) };
                if group_of_next < groups {
                    let quants = &quants[next][group_of_next * group_bytes..][..group_bytes];
                    let sides = &sides[next][group_of_next * side_bytes..][..side_bytes];
                    products.unpack(dot, weight, quants, sides, &mut room[1 - turn][0]);
                }
                let unit = Unit {
                    weights: room[turn].as_ptr().cast(),
                    sides: sides[place][group * side_bytes..][..side_bytes].as_ptr(),
                    input,
                    outputs: all_outputs.wrapping_add(place * W),
                };
                // SAFETY: these are a group of weights, unpacked, their sides, that group of `W` tokens, which `at_tiles` has checked, and
                // as many outputs, which `load` has written.
                unsafe { pipeline.push(dot, unit) };
                turn = 1 - turn;
            }
            input = input.next(P::GROUPING);
        }
        // SAFETY: the last unit's memory is all there.
        unsafe { pipeline.finish(dot) };
        // SAFETY: `load` has written them.
        unsafe { product.store::<D, W>(dot, blocks, outputs) };
    }
}

/// Many tokens: all of them pass some groups of weights.
#[inline(always)]
pub(super) fn many<D: Dot, U: TileUnit, P: Products, const W: usize>(
    dot: D,
    unit: U,
    products: P,
    mut product: PartProduct,
) {
    let mut room = Room::new();
    let mut pipeline = Pipeline::<_, _, W>::new(unit, products, &mut room.sums);
    let (outputs, room) = (&mut room.outputs, &mut room.weights);
    let (weight, groups) = (product.weight, product.weight.groups());
    let (group_bytes, side_bytes) = (weight.format.group_bytes(), weight.format.side_bytes());
    let blocks = product.blocks();
    let input_tiles = product.part.tiles.len();
    let (input_tile, tokens) = (product.input.groups() * W, input_tiles * W);
    // Blocks of rows that lie together: the outputs of a token do then, too.
    let most = (MOST_OUTPUTS / tokens).clamp(1, STREAMS);
    for first in blocks.clone().step_by(most) {
        let end = blocks.end.min(first + most);
        for (i, block) in (first..end).enumerate() {
            product.load::<D, W>(dot, block, &mut outputs[i * tokens..][..tokens]);
        }
        // Units keep addresses of outputs until their sums are scaled: no reference may be taken meanwhile.
        let all_outputs = outputs.as_mut_ptr().cast::<Outputs>();
        for group in (0..groups).step_by(UNPACKED_GROUPS) {
            let count = UNPACKED_GROUPS.min(groups - group);
            for (i, block) in (first..end).enumerate() {
                let (quants, sides) = (weight.quants(block, group, count), weight.sides(block, group, count));
                let next = quants.as_ptr().wrapping_add(quants.len());
                let lines = quants.len() / CACHE_LINE;
                let weights = &mut room[i % 2];
                for (i, weights) in weights.iter_mut().take(count).enumerate() {
                    let quants = &quants[i * group_bytes..][..group_bytes];
                    products.unpack(dot, weight, quants, &sides[i * side_bytes..][..side_bytes], weights);
                }
                let mut of_tile = Unit {
                    weights: weights.as_ptr().cast(),
                    sides: sides.as_ptr(),
                    input: product.input.at_tiles(product.part.tiles.clone(), group, count),
                    outputs: all_outputs.wrapping_add(i * tokens),
                };
                let finished = (group + count == groups).then(|| product.place_of_outputs(block));
                for tile in 0..input_tiles {
                    if let Some(outputs) = finished {
                        outputs.prefetch::<D, W>(dot, tile);
                    }
                    for line in tile * lines / input_tiles..(tile + 1) * lines / input_tiles {
                        dot.prefetch(next.wrapping_add(line * CACHE_LINE));
                    }
                    let mut unit = of_tile;
                    for _ in 0..count {
                        // SAFETY: these are a group of weights, unpacked, their sides, that group of a tile of the input, as `at_tiles` has
                        // checked, and the outputs of the tile, which `load` has written.
                        unsafe { pipeline.push(dot, unit) };
                        unit.weights = unit.weights.wrapping_add(WEIGHTS_BYTES);
                        unit.sides = unit.sides.wrapping_add(side_bytes);
                        unit.input = unit.input.next(P::GROUPING);
                    }
                    of_tile.input = of_tile.input.skip(P::GROUPING, input_tile);
                    of_tile.outputs = of_tile.outputs.wrapping_add(W);
                }
            }
        }
        // SAFETY: the last unit's memory is all there.
        unsafe { pipeline.finish(dot) };
        // SAFETY: `load` has written them.
        unsafe { product.store::<D, W>(dot, first..end, outputs) };
    }
}

/// A group of a block of rows times a tile of tokens.
#[derive(Clone, Copy)]
pub(super) struct Unit {
    /// As [`Products::unpack`] writes them.
    pub weights: *const u8,
    pub sides: *const u8,
    pub input: InputGroups,
    pub outputs: *mut Outputs,
}

/// The products of a unit, and what becomes of them.
pub(super) trait Products: Copy {
    /// How the activations are quantised.
    const GROUPING: Grouping;
    /// Columns of the registers of tokens, and rows times 4 of those of weights.
    const COLUMNS: usize;

    /// Unpacks a group of a block of rows.
    fn unpack<D: Dot>(self, dot: D, weight: QuantizedRef, quants: &[u8], sides: &[u8], target: &mut UnpackedWeights);

    /// Half of the products of a unit: the first one, then the second one.
    ///
    /// # Safety
    /// The registers have the shapes of [`Pipeline::new`]. The weights and the tokens of the unit are there.
    unsafe fn multiply<T: Tiles, const HALF: usize>(self, tiles: &mut T, unit: Unit);

    /// Stores the integer sums of the unit that are complete after this half of its products, before the next half begins.
    ///
    /// # Safety
    /// The products of this half are done, and there is room for [`MOST_SUMS`] sums.
    unsafe fn store<T: Tiles, const HALF: usize>(self, tiles: &mut T, sums: *mut Sums);

    /// Adds to the outputs of [`SCALED`] tokens of a unit, from `first` on, what their sums come to.
    ///
    /// # Safety
    /// All of the unit is there but for its weights, and `sums` are those that [`Products::multiply`] has stored.
    unsafe fn scale<D: Dot>(self, dot: D, unit: Unit, sums: Stored, first: usize);
}

/// The sums of a unit, from one of its tokens on.
#[derive(Clone, Copy)]
pub(super) struct Stored(*const [i32; BLOCK_ROWS]);

impl Stored {
    /// Those of a part and a token.
    ///
    /// # Safety
    /// They are there.
    #[inline(always)]
    pub(super) unsafe fn at<'a>(self, part: usize, token: usize) -> &'a [i32; BLOCK_ROWS] {
        // SAFETY: by contract.
        unsafe { &*self.0.add(part * TILE_ROWS + token) }
    }

    #[inline(always)]
    pub(super) fn beginning_at(self, token: usize) -> Self {
        Self(self.0.wrapping_add(token))
    }
}

impl<D: Dot, const TOKENS: usize> PartSums<D, 1, TOKENS> for Stored {
    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // Iterators take closures.
    unsafe fn of_part(self, dot: D, part: usize) -> [[D::Ints; TOKENS]; 1] {
        let mut sums = [dot.ints(&[0; BLOCK_ROWS]); TOKENS];
        for token in 0..TOKENS {
            // SAFETY: by contract.
            sums[token] = dot.ints(unsafe { self.at(part, token) });
        }
        [sums]
    }
}

/// Units one after the other, in tiles of `W` tokens.
struct Pipeline<'r, T, P, const W: usize> {
    tiles: T,
    products: P,
    sums: &'r mut [[Sums; MOST_SUMS]; 2],
    /// Which of these are the last unit's.
    turn: usize,
    before: Option<Unit>,
}

impl<'r, T: Tiles, P: Products, const W: usize> Pipeline<'r, T, P, W> {
    #[inline(always)]
    fn new<U: TileUnit<Tiles = T>>(unit: U, products: P, sums: &'r mut [[Sums; MOST_SUMS]; 2]) -> Self {
        let (of_sums, tokens, weights) = ((W, TILE_ROW_BYTES), (W, P::COLUMNS), (P::COLUMNS / QUAD, TILE_ROW_BYTES));
        let shapes = [of_sums, of_sums, of_sums, of_sums, tokens, tokens, weights, weights];
        Self { tiles: unit.configure(&TileShapes::new(shapes)), products, sums, turn: 0, before: None }
    }

    /// Multiplies a unit, and scales the sums of the one before: a half of these after each half of the products, so that both are
    /// computed at the same time. In a program of its own that takes seven eighths of the time of one after the other.
    ///
    /// # Safety
    /// All memory of the unit is there, with `W` tokens and outputs, and that of the unit before still is, but for its weights.
    #[inline(always)]
    unsafe fn push<D: Dot>(&mut self, dot: D, unit: Unit) {
        let [first, second] = &mut *self.sums;
        let (now, before) = if self.turn == 0 { (second, first) } else { (first, second) };
        // SAFETY: by contract.
        unsafe {
            let (now, before) = (now.as_mut_ptr(), Stored(before.as_ptr().cast()));
            let (tiles, products) = (&mut self.tiles, self.products);
            products.multiply::<T, 0>(tiles, unit);
            if let Some(unit) = self.before {
                products.scale(dot, unit, before, 0);
            }
            products.store::<T, 0>(tiles, now);
            products.multiply::<T, 1>(tiles, unit);
            if let Some(unit) = self.before
                && W > SCALED
            {
                products.scale(dot, unit, before, SCALED);
            }
            products.store::<T, 1>(tiles, now);
        }
        (self.before, self.turn) = (Some(unit), 1 - self.turn);
    }

    /// Scales the sums of the last unit.
    ///
    /// # Safety
    /// Its memory is still there, but for its weights.
    #[inline(always)]
    unsafe fn finish<D: Dot>(&mut self, dot: D) {
        if let Some(unit) = self.before.take() {
            let sums = Stored(self.sums[self.turn].as_ptr().cast());
            for first in (0..W).step_by(SCALED) {
                // SAFETY: by contract.
                unsafe { self.products.scale(dot, unit, sums, first) };
            }
        }
    }
}

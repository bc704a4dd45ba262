//! The products of a group whose parts have scales of their own, and what becomes of their sums.

use super::{
    Sums, load_sums,
    parts::{Products, SCALED, Stored, TOKENS, Unit, UnpackedWeights, WEIGHTS},
    store_sums,
};
use crate::{
    amx::{TILE_BYTES, TILE_ROW_BYTES, Tiles},
    quantized::{
        BLOCK_ROWS, GROUP, Grouping, QUAD, QuantizedFormat, QuantizedRef,
        dot::{Dot, GROUP_BYTES, QUADS},
        group::{Factored, PartedProduct},
        repacked::Repacking,
    },
};

/// Each part has sums of its own: registers have an eighth or a quarter of a group's columns.
#[derive(Clone, Copy)]
pub(super) struct InParts<G, const Q: usize>(pub G);

impl<G: PartedProduct<Q>, const Q: usize> Products for InParts<G, Q> {
    const GROUPING: Grouping = G::GROUPING;
    const COLUMNS: usize = Q * QUAD;

    #[inline(always)]
    fn unpack<D: Dot>(self, dot: D, weight: QuantizedRef, quants: &[u8], _: &[u8], target: &mut UnpackedWeights) {
        if let QuantizedFormat::Repacked(format) = weight.format {
            let repacking = Repacking::of(format);
            dot.unpack_repacked(repacking.bits(), quants, repacking.signed_offset(), &mut target[0]);
        }
    }

    #[inline(always)]
    unsafe fn multiply<T: Tiles>(self, tiles: &mut T, unit: Unit, sums: *mut Sums) {
        // Four at a time have registers for their sums.
        for part in (0..const { QUADS / Q }).step_by(4) {
            // SAFETY: by contract; there are four parts or eight.
            unsafe {
                self.multiply_part::<T, 0, TOKENS, WEIGHTS>(tiles, unit, part);
                self.multiply_part::<T, 1, { TOKENS + 1 }, { WEIGHTS + 1 }>(tiles, unit, part + 1);
                tiles.store::<0>(sums.add(part).cast(), TILE_ROW_BYTES);
                self.multiply_part::<T, 2, TOKENS, WEIGHTS>(tiles, unit, part + 2);
                tiles.store::<1>(sums.add(part + 1).cast(), TILE_ROW_BYTES);
                self.multiply_part::<T, 3, { TOKENS + 1 }, { WEIGHTS + 1 }>(tiles, unit, part + 3);
                tiles.store::<2>(sums.add(part + 2).cast(), TILE_ROW_BYTES);
                tiles.store::<3>(sums.add(part + 3).cast(), TILE_ROW_BYTES);
            }
        }
    }

    #[inline(always)]
    unsafe fn scale<D: Dot>(self, dot: D, unit: Unit, sums: Stored, first: usize) {
        // SAFETY: by contract.
        unsafe {
            let outputs = unit.outputs.add(first);
            let (y, input) = (load_sums::<D, SCALED>(dot, outputs), unit.input.beginning_at(first));
            let [y] = self.0.add_parts(dot, sums.beginning_at(first), [unit.sides], input, [y]);
            store_sums(dot, outputs, y);
        }
    }
}

impl<G: PartedProduct<Q>, const Q: usize> InParts<G, Q> {
    /// Register `C`: the sums of a part.
    ///
    /// # Safety
    /// As [`Products::multiply`].
    #[inline(always)]
    unsafe fn multiply_part<T: Tiles, const C: usize, const A: usize, const B: usize>(
        self,
        tiles: &mut T,
        unit: Unit,
        part: usize,
    ) {
        let columns = Self::COLUMNS;
        // SAFETY: by contract.
        unsafe {
            tiles.load::<B>(unit.weights.add(part * columns * BLOCK_ROWS), TILE_ROW_BYTES);
            tiles.load::<A>(unit.input.numbers.cast::<u8>().add(part * columns), GROUP);
            tiles.zero::<C>();
            tiles.add_i8_i8::<C, A, B>();
        }
    }
}

/// Weights are multiplied by the factors of their parts, in two parts of three bits each: two sums for a group.
///
/// The sum of a group is an integer below 2^24, so that the sums of its parts, times their factors, can be added in any order.
#[derive(Clone, Copy)]
pub(super) struct Folded<const Q: usize>(pub Factored<Q>);

/// Weights below 16, activations of 7 bits and factors below 64.
const _: () = assert!(GROUP * 15 * 127 * 63 < 1 << 24);

impl<const Q: usize> Products for Folded<Q> {
    const GROUPING: Grouping = <Factored<Q> as PartedProduct<Q>>::GROUPING;
    const COLUMNS: usize = TILE_ROW_BYTES;

    #[inline(always)]
    fn unpack<D: Dot>(self, dot: D, _: QuantizedRef, quants: &[u8], sides: &[u8], target: &mut UnpackedWeights) {
        let parts = QUADS / Q;
        dot.unpack_factored(quants, &sides[self.0.first_factor()..][..parts * BLOCK_ROWS], parts, target);
    }

    #[inline(always)]
    unsafe fn multiply<T: Tiles>(self, tiles: &mut T, unit: Unit, sums: *mut Sums) {
        let (high, low) = (unit.weights, unit.weights.wrapping_add(GROUP_BYTES));
        let numbers = unit.input.numbers.cast::<u8>();
        // SAFETY: by contract; registers have half of a group.
        unsafe {
            tiles.load::<TOKENS>(numbers, GROUP);
            tiles.load::<WEIGHTS>(high, TILE_ROW_BYTES);
            tiles.zero::<0>();
            tiles.add_i8_i8::<0, TOKENS, WEIGHTS>();
            tiles.load::<{ WEIGHTS + 1 }>(low, TILE_ROW_BYTES);
            tiles.zero::<1>();
            tiles.add_i8_i8::<1, TOKENS, { WEIGHTS + 1 }>();
            tiles.load::<{ TOKENS + 1 }>(numbers.add(TILE_ROW_BYTES), GROUP);
            tiles.load::<WEIGHTS>(high.add(TILE_BYTES), TILE_ROW_BYTES);
            tiles.add_i8_i8::<0, { TOKENS + 1 }, WEIGHTS>();
            tiles.load::<{ WEIGHTS + 1 }>(low.add(TILE_BYTES), TILE_ROW_BYTES);
            tiles.add_i8_i8::<1, { TOKENS + 1 }, { WEIGHTS + 1 }>();
            tiles.store::<0>(sums.cast(), TILE_ROW_BYTES);
            tiles.store::<1>(sums.add(1).cast(), TILE_ROW_BYTES);
        }
    }

    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // Iterators take closures.
    unsafe fn scale<D: Dot>(self, dot: D, unit: Unit, sums: Stored, first: usize) {
        let mut of_group = [dot.splat(0.0); SCALED];
        // SAFETY: by contract.
        unsafe {
            for token in 0..SCALED {
                of_group[token] = dot.joined(sums.at(0, first + token), sums.at(1, first + token));
            }
            let outputs = unit.outputs.add(first);
            let (y, input) = (load_sums::<D, SCALED>(dot, outputs), unit.input.beginning_at(first));
            let [y] = self.0.add_group(dot, [of_group], [unit.sides], input, [y]);
            store_sums(dot, outputs, y);
        }
    }
}

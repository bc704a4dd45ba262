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
        dot::{Dot, FactoredGroup, GROUP_BYTES, QUADS, Split},
        group::{Factored, PartedProduct, Scaled, WHOLE},
        repacked::Repacking,
    },
};

/// Each part has sums of its own: registers have a quarter of a group's columns.
#[derive(Clone, Copy)]
pub(super) struct InParts(pub Scaled<WHOLE>);

/// Each has a register for its sums.
const _: () = assert!(QUADS / WHOLE == TOKENS);

impl Products for InParts {
    const GROUPING: Grouping = <Scaled<WHOLE> as PartedProduct<WHOLE>>::GROUPING;
    const COLUMNS: usize = WHOLE * QUAD;

    #[inline(always)]
    fn unpack<D: Dot>(self, dot: D, weight: QuantizedRef, quants: &[u8], _: &[u8], target: &mut UnpackedWeights) {
        // Asked for anew: kept beside the minima, it made prompts in Q8_0 and Q4_0 a twentieth slower.
        if let QuantizedFormat::Repacked(format) = weight.format {
            let repacking = Repacking::of(format);
            dot.unpack_repacked(repacking.bits(), quants, repacking.signed_offset(), &mut target[0]);
        }
    }

    #[inline(always)]
    unsafe fn multiply<T: Tiles, const HALF: usize>(self, tiles: &mut T, unit: Unit) {
        // SAFETY: by contract.
        unsafe {
            if HALF == 0 {
                multiply_part::<T, 0, TOKENS, WEIGHTS>(tiles, unit, 0);
                multiply_part::<T, 1, { TOKENS + 1 }, { WEIGHTS + 1 }>(tiles, unit, 1);
            } else {
                multiply_part::<T, 2, TOKENS, WEIGHTS>(tiles, unit, 2);
                multiply_part::<T, 3, { TOKENS + 1 }, { WEIGHTS + 1 }>(tiles, unit, 3);
            }
        }
    }

    #[inline(always)]
    unsafe fn store<T: Tiles, const HALF: usize>(self, tiles: &mut T, sums: *mut Sums) {
        // SAFETY: by contract.
        unsafe {
            if HALF == 0 {
                tiles.store::<0>(sums.cast(), TILE_ROW_BYTES);
                tiles.store::<1>(sums.add(1).cast(), TILE_ROW_BYTES);
            } else {
                tiles.store::<2>(sums.add(2).cast(), TILE_ROW_BYTES);
                tiles.store::<3>(sums.add(3).cast(), TILE_ROW_BYTES);
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

/// Register `C`: the sums of a part.
///
/// # Safety
/// As [`Products::multiply`].
#[inline(always)]
unsafe fn multiply_part<T: Tiles, const C: usize, const A: usize, const B: usize>(
    tiles: &mut T,
    unit: Unit,
    part: usize,
) {
    let columns = InParts::COLUMNS;
    // SAFETY: by contract.
    unsafe {
        tiles.load::<B>(unit.weights.add(part * columns * BLOCK_ROWS), TILE_ROW_BYTES);
        tiles.load::<A>(unit.input.numbers.cast::<u8>().add(part * columns), GROUP);
        tiles.zero::<C>();
        tiles.add_i8_i8::<C, A, B>();
    }
}

/// Weights are multiplied by the factors of their parts, as two signed bytes: two sums for a group.
///
/// The sum of a group is an integer, so that the products of its weights can be added in any order.
#[derive(Clone, Copy)]
pub(super) struct Folded<const Q: usize> {
    group: Factored<Q>,
    repacking: Repacking,
    split: Split,
}

impl<const Q: usize> Folded<Q> {
    /// The weights of `repacking`, whose parts have `Q` quads.
    pub(super) fn new(repacking: Repacking) -> Self {
        let group = Factored { minima: repacking.sides().has_minima() };
        // With minima neither weights nor factors have a sign, and factors have 6 bits.
        let split = if repacking.bits() == 4 && group.minima { Split::OfFactors } else { Split::OfProducts };
        Self { group, repacking, split }
    }
}

impl<const Q: usize> Products for Folded<Q> {
    const GROUPING: Grouping = <Factored<Q> as PartedProduct<Q>>::GROUPING;
    const COLUMNS: usize = TILE_ROW_BYTES;

    #[inline(always)]
    fn unpack<D: Dot>(self, dot: D, _: QuantizedRef, quants: &[u8], sides: &[u8], target: &mut UnpackedWeights) {
        let parts = QUADS / Q;
        let factors = &sides[self.group.first_factor()..][..parts * BLOCK_ROWS];
        dot.unpack_factored(FactoredGroup::new(self.repacking, quants, factors, parts, self.split), target);
    }

    #[inline(always)]
    unsafe fn multiply<T: Tiles, const HALF: usize>(self, tiles: &mut T, unit: Unit) {
        let high = unit.weights.wrapping_add(HALF * TILE_BYTES);
        let numbers = unit.input.numbers.cast::<u8>().wrapping_add(HALF * TILE_ROW_BYTES);
        // SAFETY: by contract; registers have half of a group.
        unsafe {
            tiles.load::<TOKENS>(numbers, GROUP);
            tiles.load::<WEIGHTS>(high, TILE_ROW_BYTES);
            tiles.load::<{ WEIGHTS + 1 }>(high.add(GROUP_BYTES), TILE_ROW_BYTES);
            if HALF == 0 {
                tiles.zero::<0>();
                tiles.zero::<1>();
            }
            tiles.add_i8_i8::<0, TOKENS, WEIGHTS>();
            tiles.add_i8_i8::<1, TOKENS, { WEIGHTS + 1 }>();
        }
    }

    #[inline(always)]
    unsafe fn store<T: Tiles, const HALF: usize>(self, tiles: &mut T, sums: *mut Sums) {
        if HALF == 1 {
            // SAFETY: by contract.
            unsafe {
                tiles.store::<0>(sums.cast(), TILE_ROW_BYTES);
                tiles.store::<1>(sums.add(1).cast(), TILE_ROW_BYTES);
            }
        }
    }

    #[inline(always)]
    unsafe fn scale<D: Dot>(self, dot: D, unit: Unit, sums: Stored, first: usize) {
        // SAFETY: by contract.
        unsafe {
            let of_group = match self.split {
                Split::OfFactors => joined::<D, { Split::OfFactors as u32 }>(dot, sums, first),
                Split::OfProducts => joined::<D, { Split::OfProducts as u32 }>(dot, sums, first),
            };
            let outputs = unit.outputs.add(first);
            let (y, input) = (load_sums::<D, SCALED>(dot, outputs), unit.input.beginning_at(first));
            let [y] = self.group.add_group(dot, [of_group], [unit.sides], input, [y]);
            store_sums(dot, outputs, y);
        }
    }
}

/// The sums of a group for [`SCALED`] tokens from `first` on.
///
/// # Safety
/// The upper and the lower ones are there.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // Iterators take closures.
unsafe fn joined<D: Dot, const SHIFT: u32>(dot: D, sums: Stored, first: usize) -> [D::Ints; SCALED] {
    let mut joined = [dot.ints(&[0; BLOCK_ROWS]); SCALED];
    for token in 0..SCALED {
        // SAFETY: by contract.
        joined[token] = unsafe { dot.joined::<SHIFT>(sums.at(0, first + token), sums.at(1, first + token)) };
    }
    joined
}

//! How a group of weights is multiplied by a group of activations, for each way in which they are held.

use super::{
    BLOCK_ROWS, GROUP, QUAD, SCALE_BYTES,
    dot::{Dot, QUADS},
    input::{InputGroups, SUBGROUP, SUBGROUPS},
    repacked::{HALVES, NIBBLE_ZERO_POINT, SideLayout},
};
use crate::simd::opaque;

/// The product of a group.
pub(super) trait GroupProduct: Copy {
    /// Whether weights of 4 bits are read as they lie in the matrix.
    const UNPACKS_IN_REGISTERS: bool = false;
    /// Tokens of a tile at most, if not as many as the instruction set has registers for.
    const MOST_TOKENS: usize = usize::MAX;

    /// What the groups of `T` tokens and of `R` blocks of rows add to `sums`.
    ///
    /// # Safety
    /// At `quants` and `sides` the weights of a group and what belongs to them can be read, at `input` groups of `T` tokens.
    unsafe fn add<D: Dot, const R: usize, const T: usize>(
        self,
        dot: D,
        quants: [*const u8; R],
        sides: [*const u8; R],
        input: InputGroups,
        sums: [[D::Floats; T]; R],
    ) -> [[D::Floats; T]; R];

    /// The next group of activations.
    #[inline(always)]
    fn next(input: InputGroups) -> InputGroups {
        input.skip(input.width)
    }
}

/// Tokens of a tile at most that unpacks weights of 4 bits by tables, in registers.
pub(super) const NIBBLES_TOKENS: usize = 2;

/// Weights as bytes, with one scale for a row's group.
#[derive(Clone, Copy)]
pub(super) struct Bytes;

/// 4-bit weights as they lie in the matrix, with one scale for a row's group.
#[derive(Clone, Copy)]
pub(super) struct Nibbles;

impl GroupProduct for Bytes {
    #[inline(always)]
    unsafe fn add<D: Dot, const R: usize, const T: usize>(
        self,
        dot: D,
        quants: [*const u8; R],
        sides: [*const u8; R],
        input: InputGroups,
        sums: [[D::Floats; T]; R],
    ) -> [[D::Floats; T]; R] {
        // SAFETY: by contract.
        unsafe { add_scaled(dot, dot.group::<R, T, QUADS>(quants, input), sides, input, sums) }
    }
}

impl GroupProduct for Nibbles {
    const UNPACKS_IN_REGISTERS: bool = true;
    const MOST_TOKENS: usize = NIBBLES_TOKENS;

    #[inline(always)]
    unsafe fn add<D: Dot, const R: usize, const T: usize>(
        self,
        dot: D,
        quants: [*const u8; R],
        sides: [*const u8; R],
        input: InputGroups,
        sums: [[D::Floats; T]; R],
    ) -> [[D::Floats; T]; R] {
        // SAFETY: by contract.
        unsafe { add_scaled(dot, dot.group_of_nibbles::<R, T>(quants, sides, input), sides, input, sums) }
    }
}

/// Adds the sums of a group, times both scales.
///
/// # Safety
/// As [`GroupProduct::add`].
#[inline(always)]
#[allow(clippy::needless_range_loop)] // Iterators take closures.
unsafe fn add_scaled<D: Dot, const R: usize, const T: usize>(
    dot: D,
    ints: [[D::Ints; T]; R],
    sides: [*const u8; R],
    input: InputGroups,
    mut sums: [[D::Floats; T]; R],
) -> [[D::Floats; T]; R] {
    for r in 0..R {
        // SAFETY: by contract; scales come first.
        let weight_scales = dot.scales(unsafe { &*sides[r].cast::<[u8; SCALE_BYTES]>() });
        for t in 0..T {
            // SAFETY: by contract.
            let both = dot.mul(weight_scales, dot.splat(unsafe { *input.scales.add(t) }));
            sums[r][t] = dot.add_scaled(ints[r][t], both, sums[r][t]);
        }
    }
    sums
}

/// Weights in parts of `Q` quads that share a scale: as bytes, or as nibbles as they lie in the matrix. See [`super::repacked`].
#[derive(Clone, Copy)]
pub(super) struct Parts<const Q: usize, const NIBBLES: bool>(pub SideLayout);

impl<const Q: usize, const NIBBLES: bool> GroupProduct for Parts<Q, NIBBLES> {
    const UNPACKS_IN_REGISTERS: bool = NIBBLES;

    #[inline(always)]
    unsafe fn add<D: Dot, const R: usize, const T: usize>(
        self,
        dot: D,
        quants: [*const u8; R],
        sides: [*const u8; R],
        input: InputGroups,
        sums: [[D::Floats; T]; R],
    ) -> [[D::Floats; T]; R] {
        // SAFETY: by contract.
        unsafe { add_parts::<D, NIBBLES, R, T, Q>(dot, self.0, quants, sides, input, sums) }
    }

    #[inline(always)]
    fn next(input: InputGroups) -> InputGroups {
        input.next_with_subgroups()
    }
}

/// Scales of a part of the group for a block of rows, and its minima where there are some. What the weights have of these is a value and not
/// a type: to branch costs little beside the products of a part, and all of this is compiled for many sizes of tiles.
///
/// # Safety
/// The sides of a group can be read there.
#[inline(always)]
unsafe fn sides_of_part<D: Dot, const Q: usize>(
    dot: D,
    layout: SideLayout,
    sides: *const u8,
    part: usize,
) -> (D::Floats, D::Floats) {
    let parts = QUADS / Q;
    // SAFETY: by contract.
    unsafe {
        let halves = |place: usize| dot.halves(&*sides.add(place * HALVES).cast());
        match layout {
            SideLayout::Halves { minima } => (halves(part), if minima { halves(parts + part) } else { dot.splat(0.0) }),
            SideLayout::Factors { minima, .. } => {
                let factors = sides.add(if minima { 2 * HALVES } else { HALVES });
                let factor = |place: usize| dot.signed_bytes(&*factors.add(place * BLOCK_ROWS).cast());
                let scales = dot.mul(halves(0), factor(part));
                (scales, if minima { dot.mul(halves(1), factor(parts + part)) } else { dot.splat(0.0) })
            }
        }
    }
}

/// Adds the parts of a group, `Q` quads each.
///
/// # Safety
/// As [`GroupProduct::add`].
#[inline(always)]
#[allow(clippy::needless_range_loop)] // Iterators take closures.
unsafe fn add_parts<D: Dot, const NIBBLES: bool, const R: usize, const T: usize, const Q: usize>(
    dot: D,
    layout: SideLayout,
    quants: [*const u8; R],
    sides: [*const u8; R],
    input: InputGroups,
    mut sums: [[D::Floats; T]; R],
) -> [[D::Floats; T]; R] {
    let (columns, minima) = (Q * QUAD, layout.has_minima());
    // The sums of halves of subgroups lie behind those of subgroups.
    let (parts, first_sum) = (GROUP / columns, if columns == SUBGROUP { 0 } else { SUBGROUPS });
    // SAFETY: by contract.
    unsafe {
        for part in opaque(0)..opaque(parts) {
            let scales = input.scales.add(part * columns / SUBGROUP * input.width);
            let input_sums = input.sums.add((first_sum + part) * input.width);
            let of_part = InputGroups {
                numbers: input.numbers.byte_add(part * columns),
                corrections: input.corrections.add((first_sum + part) * input.width),
                ..input
            };
            let mut weights = quants;
            let part_bytes = Q * BLOCK_ROWS * QUAD / if NIBBLES { 2 } else { 1 };
            for r in 0..R {
                weights[r] = weights[r].add(part * part_bytes);
            }
            let ints = if NIBBLES {
                dot.quads_of_nibbles::<R, T, Q>(weights, if minima { 0 } else { NIBBLE_ZERO_POINT }, of_part)
            } else {
                dot.group::<R, T, Q>(weights, of_part)
            };
            for r in 0..R {
                let (weight_scales, weight_minima) = sides_of_part::<D, Q>(dot, layout, sides[r], part);
                for t in 0..T {
                    let both = dot.mul(weight_scales, dot.splat(*scales.add(t)));
                    sums[r][t] = dot.add_scaled(ints[r][t], both, sums[r][t]);
                }
                if minima {
                    for t in 0..T {
                        sums[r][t] = dot.fma(weight_minima, dot.splat(*input_sums.add(t)), sums[r][t]);
                    }
                }
            }
        }
    }
    sums
}

//! How a group of weights is multiplied by a group of activations, for each way in which they are held.

use super::{
    BLOCK_ROWS, GROUP, QUAD, SCALE_BYTES,
    dot::{Dot, QUADS},
    input::{InputGroups, SUBGROUP, SUBGROUPS},
};

/// The product of a group.
pub(super) trait GroupProduct {
    /// Whether weights of 4 bits are read as they lie in the matrix, by one or two tokens.
    const UNPACKS_IN_REGISTERS: bool = false;

    /// What the groups of `T` tokens and of `R` blocks of rows add to `sums`.
    ///
    /// # Safety
    /// At `quants` and `sides` the weights of a group and what belongs to them can be read, at `input` groups of `T` tokens.
    unsafe fn add<D: Dot, const R: usize, const T: usize>(
        dot: D,
        quants: [*const u8; R],
        sides: [*const u8; R],
        input: InputGroups,
        sums: [[D::Floats; T]; R],
    ) -> [[D::Floats; T]; R];

    /// The next group of activations.
    fn next(input: InputGroups) -> InputGroups;
}

/// Weights as bytes, with one scale for a row's group.
pub(super) struct Bytes;

/// 4-bit weights as they lie in the matrix, with one scale for a row's group.
pub(super) struct Nibbles;

impl GroupProduct for Bytes {
    #[inline(always)]
    unsafe fn add<D: Dot, const R: usize, const T: usize>(
        dot: D,
        quants: [*const u8; R],
        sides: [*const u8; R],
        input: InputGroups,
        sums: [[D::Floats; T]; R],
    ) -> [[D::Floats; T]; R] {
        // SAFETY: by contract.
        unsafe { add_scaled(dot, dot.group::<R, T, QUADS>(quants, input), sides, input, sums) }
    }

    #[inline(always)]
    fn next(input: InputGroups) -> InputGroups {
        input.skip(input.width)
    }
}

impl GroupProduct for Nibbles {
    const UNPACKS_IN_REGISTERS: bool = true;

    #[inline(always)]
    unsafe fn add<D: Dot, const R: usize, const T: usize>(
        dot: D,
        quants: [*const u8; R],
        sides: [*const u8; R],
        input: InputGroups,
        sums: [[D::Floats; T]; R],
    ) -> [[D::Floats; T]; R] {
        // SAFETY: by contract.
        unsafe { add_scaled(dot, dot.group_of_nibbles::<R, T>(quants, sides, input), sides, input, sums) }
    }

    #[inline(always)]
    fn next(input: InputGroups) -> InputGroups {
        input.skip(input.width)
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

/// What belongs to the weights of a group in a block of rows, in a repacked block format: scales, and minima where there are some. See
/// [`super::repacked`].
pub(super) trait Sides {
    /// Columns that share a scale.
    const COLUMNS: usize;
    const HAS_MINIMA: bool;

    /// Scales of a part of the group, and its minima: zeros where there are none.
    ///
    /// # Safety
    /// The sides of a group can be read there.
    unsafe fn of_part<D: Dot>(dot: D, sides: *const u8, part: usize) -> (D::Floats, D::Floats);
}

/// Bytes of a number of f16 for each row.
pub(super) const HALVES: usize = 2 * BLOCK_ROWS;

/// A scale in f16 for each part, and then a minimum.
pub(super) struct HalfSides<const HAS_MINIMA: bool>;

impl<const HAS_MINIMA: bool> Sides for HalfSides<HAS_MINIMA> {
    const COLUMNS: usize = SUBGROUP;
    const HAS_MINIMA: bool = HAS_MINIMA;

    #[inline(always)]
    unsafe fn of_part<D: Dot>(dot: D, sides: *const u8, part: usize) -> (D::Floats, D::Floats) {
        // SAFETY: by contract.
        unsafe {
            let scales = dot.halves(&*sides.add(part * HALVES).cast());
            let minima = match HAS_MINIMA {
                true => dot.halves(&*sides.add((SUBGROUPS + part) * HALVES).cast()),
                false => dot.splat(0.0),
            };
            (scales, minima)
        }
    }
}

/// A scale in f16 for the whole group, and then for its minima; a factor of 8 bits for each part, and then for its minimum.
pub(super) struct FactorSides<const COLUMNS: usize, const HAS_MINIMA: bool>;

impl<const COLUMNS: usize, const HAS_MINIMA: bool> Sides for FactorSides<COLUMNS, HAS_MINIMA> {
    const COLUMNS: usize = COLUMNS;
    const HAS_MINIMA: bool = HAS_MINIMA;

    #[inline(always)]
    unsafe fn of_part<D: Dot>(dot: D, sides: *const u8, part: usize) -> (D::Floats, D::Floats) {
        let parts = GROUP / COLUMNS;
        // SAFETY: by contract.
        unsafe {
            let factors = sides.add(if HAS_MINIMA { 2 * HALVES } else { HALVES });
            let factor = |part: usize| dot.signed_bytes(&*factors.add(part * BLOCK_ROWS).cast());
            let scales = dot.mul(dot.halves(&*sides.cast()), factor(part));
            let minima = match HAS_MINIMA {
                true => dot.mul(dot.halves(&*sides.add(HALVES).cast()), factor(parts + part)),
                false => dot.splat(0.0),
            };
            (scales, minima)
        }
    }
}

/// Weights as bytes, in subgroups of [`SUBGROUP`] columns with the scales `S`.
pub(super) struct Subgroups<S>(S);

impl<S: Sides> GroupProduct for Subgroups<S> {
    #[inline(always)]
    unsafe fn add<D: Dot, const R: usize, const T: usize>(
        dot: D,
        quants: [*const u8; R],
        sides: [*const u8; R],
        input: InputGroups,
        sums: [[D::Floats; T]; R],
    ) -> [[D::Floats; T]; R] {
        // SAFETY: by contract.
        unsafe {
            match S::COLUMNS {
                SUBGROUP => add_parts::<D, S, R, T, { SUBGROUP / QUAD }>(dot, quants, sides, input, sums),
                _ => add_parts::<D, S, R, T, { SUBGROUP / QUAD / 2 }>(dot, quants, sides, input, sums),
            }
        }
    }

    #[inline(always)]
    fn next(input: InputGroups) -> InputGroups {
        input.next_with_subgroups()
    }
}

/// Adds the parts of a group, `Q` quads each.
///
/// # Safety
/// As [`GroupProduct::add`].
#[inline(always)]
#[allow(clippy::needless_range_loop)] // Iterators take closures.
unsafe fn add_parts<D: Dot, S: Sides, const R: usize, const T: usize, const Q: usize>(
    dot: D,
    quants: [*const u8; R],
    sides: [*const u8; R],
    input: InputGroups,
    mut sums: [[D::Floats; T]; R],
) -> [[D::Floats; T]; R] {
    let columns = Q * QUAD;
    // The sums of halves of subgroups lie behind those of subgroups.
    let (parts, first_sum) = (GROUP / columns, if columns == SUBGROUP { 0 } else { SUBGROUPS });
    // SAFETY: by contract.
    unsafe {
        for part in 0..parts {
            let scales = input.scales.add(part * columns / SUBGROUP * input.width);
            let input_sums = input.sums.add((first_sum + part) * input.width);
            let of_part = InputGroups {
                numbers: input.numbers.byte_add(part * columns),
                corrections: input.corrections.add((first_sum + part) * input.width),
                ..input
            };
            let mut weights = quants;
            for r in 0..R {
                weights[r] = weights[r].add(part * Q * BLOCK_ROWS * QUAD);
            }
            let ints = dot.group::<R, T, Q>(weights, of_part);
            for r in 0..R {
                let (weight_scales, minima) = S::of_part(dot, sides[r], part);
                for t in 0..T {
                    let both = dot.mul(weight_scales, dot.splat(*scales.add(t)));
                    sums[r][t] = dot.add_scaled(ints[r][t], both, sums[r][t]);
                    if S::HAS_MINIMA {
                        sums[r][t] = dot.fma(minima, dot.splat(*input_sums.add(t)), sums[r][t]);
                    }
                }
            }
        }
    }
    sums
}

//! How a group of weights is multiplied by a group of activations, for each way in which they are held.

use super::{
    BLOCK_ROWS, QUAD, SCALE_BYTES,
    dot::{Dot, QUADS},
    input::{Grouping, InputGroups, SUBGROUP, SUBGROUPS},
    repacked::{HALVES, SideLayout},
};
#[cfg(doc)]
use crate::simd::STREAMS;
use crate::simd::opaque;

/// The product of a group.
pub(super) trait GroupProduct: Copy {
    /// Whether weights that share bytes are read as they lie in the matrix.
    const UNPACKS_IN_REGISTERS: bool = false;
    /// From how many tokens on a single tile that unpacks its weights prefetches them.
    const PREFETCH_FROM: usize = 1;
    /// Blocks of rows of a tile at most, if not as many as the instruction set has registers for; one or two tokens take [`STREAMS`] all the same.
    const MOST_BLOCKS: usize = usize::MAX;

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

    /// How the activations are quantised.
    const GROUPING: Grouping = Grouping::Rotated;
}

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
    const PREFETCH_FROM: usize = 2;
    // Tables and multipliers take the registers of a second block's sums.
    const MOST_BLOCKS: usize = 1;

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

/// Weights of `BITS` bits as they lie in the matrix, in parts of `Q` quads that have a scale of their own. See [`super::repacked`].
#[derive(Clone, Copy)]
pub(super) struct Scaled<const Q: usize, const BITS: usize> {
    /// Whether they have minima. This is a value and not a type: to branch costs little beside the products of a part, and all of this is
    /// compiled for many sizes of tiles.
    pub minima: bool,
}

/// The same, in parts whose scale is a factor times that of the group.
#[derive(Clone, Copy)]
pub(super) struct Factored<const Q: usize, const BITS: usize> {
    pub minima: bool,
}

/// What is read for a part of a group.
#[inline(always)]
fn part<const Q: usize, const BITS: usize, const R: usize>(
    part: usize,
    mut quants: [*const u8; R],
    input: InputGroups,
) -> ([*const u8; R], InputGroups) {
    for quants in &mut quants {
        *quants = quants.wrapping_add(part * (Q * QUAD * BLOCK_ROWS * BITS / 8));
    }
    let of_part = InputGroups {
        numbers: input.numbers.wrapping_byte_add(part * Q * QUAD),
        corrections: input.corrections.wrapping_add((first_sum::<Q>() + part) * input.width),
        ..input
    };
    (quants, of_part)
}

/// The sum of the first part. The sums of halves of subgroups lie behind those of subgroups.
#[inline(always)]
const fn first_sum<const Q: usize>() -> usize {
    if Q * QUAD == SUBGROUP { 0 } else { SUBGROUPS }
}

/// The sums of the products of a part.
///
/// # Safety
/// `Q` quads can be read at each of `quants`, and of `T` tokens at `input`.
#[inline(always)]
unsafe fn products<D: Dot, const R: usize, const T: usize, const Q: usize, const BITS: usize>(
    dot: D,
    quants: [*const u8; R],
    minima: bool,
    input: InputGroups,
) -> [[D::Ints; T]; R] {
    // SAFETY: by contract.
    unsafe {
        if BITS < 8 {
            dot.packed_quads::<R, T, Q, BITS>(quants, minima, input)
        } else {
            dot.group::<R, T, Q>(quants, input)
        }
    }
}

impl<const Q: usize, const BITS: usize> GroupProduct for Scaled<Q, BITS> {
    const UNPACKS_IN_REGISTERS: bool = BITS < 8;
    // With two blocks the scales of a part would displace sums from registers.
    const MOST_BLOCKS: usize = 1;
    const GROUPING: Grouping = Grouping::Subgroups;

    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // Iterators take closures.
    unsafe fn add<D: Dot, const R: usize, const T: usize>(
        self,
        dot: D,
        quants: [*const u8; R],
        sides: [*const u8; R],
        input: InputGroups,
        mut sums: [[D::Floats; T]; R],
    ) -> [[D::Floats; T]; R] {
        let parts = QUADS / Q;
        for i in opaque(0)..opaque(parts) {
            let (quants, of_part) = part::<Q, BITS, R>(i, quants, input);
            // SAFETY: by contract.
            unsafe {
                let scales = input.scales.add(i * Q * QUAD / SUBGROUP * input.width);
                let input_sums = input.sums.add((first_sum::<Q>() + i) * input.width);
                let ints = products::<D, R, T, Q, BITS>(dot, quants, self.minima, of_part);
                for r in 0..R {
                    let halves = |place: usize| dot.halves(&*sides[r].add(place * HALVES).cast());
                    let weight_scales = halves(i);
                    for t in 0..T {
                        let both = dot.mul(weight_scales, dot.splat(*scales.add(t)));
                        sums[r][t] = dot.add_scaled(ints[r][t], both, sums[r][t]);
                    }
                    if self.minima {
                        let weight_minima = halves(parts + i);
                        for t in 0..T {
                            sums[r][t] = dot.fma(weight_minima, dot.splat(*input_sums.add(t)), sums[r][t]);
                        }
                    }
                }
            }
        }
        sums
    }
}

impl<const Q: usize, const BITS: usize> GroupProduct for Factored<Q, BITS> {
    const UNPACKS_IN_REGISTERS: bool = BITS < 8;
    // A part, a group and an output have a sum each in registers.
    const MOST_BLOCKS: usize = 1;
    const GROUPING: Grouping = Grouping::Unrotated;

    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // Iterators take closures.
    unsafe fn add<D: Dot, const R: usize, const T: usize>(
        self,
        dot: D,
        quants: [*const u8; R],
        sides: [*const u8; R],
        input: InputGroups,
        mut sums: [[D::Floats; T]; R],
    ) -> [[D::Floats; T]; R] {
        let parts = QUADS / Q;
        // The sums of parts, times their factors.
        let mut of_group = [[dot.splat(0.0); T]; R];
        let factors = SideLayout::Factors { columns: Q * QUAD, minima: self.minima }.first_factor();
        for i in opaque(0)..opaque(parts) {
            let (quants, of_part) = part::<Q, BITS, R>(i, quants, input);
            // SAFETY: by contract.
            unsafe {
                let ints = products::<D, R, T, Q, BITS>(dot, quants, self.minima, of_part);
                for r in 0..R {
                    let factor = dot.signed_bytes(&*sides[r].add(factors + i * BLOCK_ROWS).cast());
                    for t in 0..T {
                        of_group[r][t] = dot.add_scaled(ints[r][t], factor, of_group[r][t]);
                    }
                }
            }
        }
        // SAFETY: by contract.
        unsafe {
            for r in 0..R {
                let halves = |place: usize| dot.halves(&*sides[r].add(place * HALVES).cast());
                let scales = halves(0);
                for t in 0..T {
                    of_group[r][t] = dot.mul(of_group[r][t], scales);
                }
                if self.minima {
                    let minima = halves(1);
                    let minimum_factors = sides[r].add(factors + parts * BLOCK_ROWS);
                    let pairs = input.pairs.add(first_sum::<Q>() / 2 * input.width);
                    for t in 0..T {
                        let ints = dot.pair_products(parts / 2, minimum_factors, pairs.add(t), input.width);
                        of_group[r][t] = dot.add_scaled(ints, minima, of_group[r][t]);
                    }
                }
                for t in 0..T {
                    sums[r][t] = dot.fma(of_group[r][t], dot.splat(*input.scales.add(t)), sums[r][t]);
                }
            }
        }
        sums
    }
}

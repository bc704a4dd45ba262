//! How a group of weights is multiplied by a group of activations, for each way in which they are held.

use super::{
    BLOCK_ROWS, GROUP, QUAD, SCALE_BYTES,
    dot::{Dot, QUADS},
    input::{Grouping, InputGroups, SUBGROUP, SUBGROUPS},
    repacked::{HALVES, SideLayout},
};
#[cfg(doc)]
use crate::simd::STREAMS;
use crate::simd::opaque;

/// Quads of a part that is a subgroup, and of one that is half of it.
pub(super) const WHOLE: usize = SUBGROUP / QUAD;
pub(super) const HALF: usize = WHOLE / 2;

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

/// Weights in parts of `Q` quads that have a scale of their own. See [`super::repacked`].
#[derive(Clone, Copy)]
pub(super) struct Scaled<const Q: usize> {
    /// Whether they have minima. This is a value and not a type: to branch costs little beside the products of a part, and all of this is
    /// compiled for many sizes of tiles.
    pub minima: bool,
}

/// The same, in parts whose scale is a factor times that of the group.
#[derive(Clone, Copy)]
pub(super) struct Factored<const Q: usize> {
    pub minima: bool,
}

/// Such weights, of `BITS` bits, as they lie in the matrix.
#[derive(Clone, Copy)]
pub(super) struct InBits<G, const Q: usize, const BITS: usize>(pub G);

impl<G: PartedProduct<Q>, const Q: usize, const BITS: usize> GroupProduct for InBits<G, Q, BITS> {
    const UNPACKS_IN_REGISTERS: bool = BITS < 8;
    // With two blocks the scales of a part, or its sums beside those of the group, would displace sums from registers.
    const MOST_BLOCKS: usize = 1;
    const GROUPING: Grouping = G::GROUPING;

    #[inline(always)]
    unsafe fn add<D: Dot, const R: usize, const T: usize>(
        self,
        dot: D,
        quants: [*const u8; R],
        sides: [*const u8; R],
        input: InputGroups,
        sums: [[D::Floats; T]; R],
    ) -> [[D::Floats; T]; R] {
        let parts = Multiplied::<R, Q, BITS> { quants, minima: self.0.has_minima(), input };
        // SAFETY: by contract.
        unsafe { self.0.add_parts(dot, parts, sides, input, sums) }
    }
}

/// The sums of the products of the parts of a group, for `R` blocks of rows and `T` tokens.
pub(super) trait PartSums<D: Dot, const R: usize, const T: usize>: Copy {
    /// Those of part number `part`, exactly.
    ///
    /// # Safety
    /// What they are made of can be read.
    unsafe fn of_part(self, dot: D, part: usize) -> [[D::Ints; T]; R];
}

/// A product whose group has parts of `Q` quads with scales of their own.
pub(super) trait PartedProduct<const Q: usize>: Copy {
    /// How the activations are quantised.
    const GROUPING: Grouping;

    fn has_minima(self) -> bool;

    /// What the group adds to `sums`, where its parts have the sums `parts`.
    ///
    /// # Safety
    /// Those can be read, at `sides` what belongs to the weights of the group, at `input` what belongs to groups of `T` tokens.
    unsafe fn add_parts<D: Dot, P: PartSums<D, R, T>, const R: usize, const T: usize>(
        self,
        dot: D,
        parts: P,
        sides: [*const u8; R],
        input: InputGroups,
        sums: [[D::Floats; T]; R],
    ) -> [[D::Floats; T]; R];
}

/// Sums that are computed when they are asked for, of parts of `Q` quads of `BITS` bits.
#[derive(Clone, Copy)]
struct Multiplied<const R: usize, const Q: usize, const BITS: usize> {
    quants: [*const u8; R],
    minima: bool,
    input: InputGroups,
}

impl<D: Dot, const R: usize, const T: usize, const Q: usize, const BITS: usize> PartSums<D, R, T>
    for Multiplied<R, Q, BITS>
{
    #[inline(always)]
    unsafe fn of_part(self, dot: D, part: usize) -> [[D::Ints; T]; R] {
        let Self { mut quants, minima, input } = self;
        for quants in &mut quants {
            *quants = quants.wrapping_add(part * (Q * QUAD * BLOCK_ROWS * BITS / 8));
        }
        let input = InputGroups {
            numbers: input.numbers.wrapping_byte_add(part * Q * QUAD),
            corrections: input.corrections.wrapping_add((first_sum::<Q>() + part) * input.width),
            ..input
        };
        // SAFETY: by contract.
        unsafe {
            if BITS < 8 {
                dot.packed_quads::<R, T, Q, BITS>(quants, minima, input)
            } else {
                dot.group::<R, T, Q>(quants, input)
            }
        }
    }
}

/// The sum of the first part. The sums of halves of subgroups lie behind those of subgroups.
#[inline(always)]
const fn first_sum<const Q: usize>() -> usize {
    if Q * QUAD == SUBGROUP { 0 } else { SUBGROUPS }
}

impl<const Q: usize> PartedProduct<Q> for Scaled<Q> {
    const GROUPING: Grouping = Grouping::Subgroups;

    #[inline(always)]
    fn has_minima(self) -> bool {
        self.minima
    }

    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // Iterators take closures.
    unsafe fn add_parts<D: Dot, P: PartSums<D, R, T>, const R: usize, const T: usize>(
        self,
        dot: D,
        part_sums: P,
        sides: [*const u8; R],
        input: InputGroups,
        mut sums: [[D::Floats; T]; R],
    ) -> [[D::Floats; T]; R] {
        let parts = QUADS / Q;
        for i in opaque(0)..opaque(parts) {
            // SAFETY: by contract.
            unsafe {
                let scales = input.scales.add(i * Q * QUAD / SUBGROUP * input.width);
                let input_sums = input.sums.add((first_sum::<Q>() + i) * input.width);
                let ints = part_sums.of_part(dot, i);
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

/// The greatest sum of a group: activations up to 127, weights up to 32 and factors up to 128.
const _: () = assert!((GROUP * 127 * 32 * 128) < 1 << 27);

impl<const Q: usize> PartedProduct<Q> for Factored<Q> {
    const GROUPING: Grouping = Grouping::Unrotated;

    #[inline(always)]
    fn has_minima(self) -> bool {
        self.minima
    }

    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // Iterators take closures.
    unsafe fn add_parts<D: Dot, P: PartSums<D, R, T>, const R: usize, const T: usize>(
        self,
        dot: D,
        part_sums: P,
        sides: [*const u8; R],
        input: InputGroups,
        sums: [[D::Floats; T]; R],
    ) -> [[D::Floats; T]; R] {
        let parts = QUADS / Q;
        // The sums of parts, times their factors: 32 bits hold them, as is asserted above.
        let mut of_group = [[dot.ints(&[0; BLOCK_ROWS]); T]; R];
        let factors = self.first_factor();
        for i in opaque(0)..opaque(parts) {
            // SAFETY: by contract.
            unsafe {
                let ints = part_sums.of_part(dot, i);
                for r in 0..R {
                    let factor = dot.signed_bytes(&*sides[r].add(factors + i * BLOCK_ROWS).cast());
                    for t in 0..T {
                        of_group[r][t] = dot.add_product(ints[r][t], factor, of_group[r][t]);
                    }
                }
            }
        }
        // SAFETY: by contract.
        unsafe { self.add_group(dot, of_group, sides, input, sums) }
    }
}

impl<const Q: usize> Factored<Q> {
    /// Where the factors of a group begin, in its sides.
    #[inline(always)]
    pub(super) const fn first_factor(self) -> usize {
        SideLayout::Factors { columns: Q * QUAD, minima: self.minima }.first_factor()
    }

    /// What a group adds to `sums`, where `of_group` are the sums of its parts, times their factors, added.
    ///
    /// # Safety
    /// As [`PartedProduct::add_parts`].
    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // Iterators take closures.
    pub(super) unsafe fn add_group<D: Dot, const R: usize, const T: usize>(
        self,
        dot: D,
        integers: [[D::Ints; T]; R],
        sides: [*const u8; R],
        input: InputGroups,
        mut sums: [[D::Floats; T]; R],
    ) -> [[D::Floats; T]; R] {
        let parts = QUADS / Q;
        // SAFETY: by contract.
        unsafe {
            for r in 0..R {
                let halves = |place: usize| dot.halves(&*sides[r].add(place * HALVES).cast());
                let scales = halves(0);
                let mut of_group = [scales; T];
                for t in 0..T {
                    of_group[t] = dot.mul(dot.floats(integers[r][t]), scales);
                }
                if self.minima {
                    let minima = halves(1);
                    let minimum_factors = sides[r].add(self.first_factor() + parts * BLOCK_ROWS);
                    let pairs = input.pairs.add(first_sum::<Q>() / 2 * input.width);
                    let ints = dot.pair_products::<T>(parts / 2, minimum_factors, pairs, input.width);
                    for t in 0..T {
                        of_group[t] = dot.add_scaled(ints[t], minima, of_group[t]);
                    }
                }
                for t in 0..T {
                    sums[r][t] = dot.fma(of_group[t], dot.splat(*input.scales.add(t)), sums[r][t]);
                }
            }
        }
        sums
    }
}

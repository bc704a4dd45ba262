//! Sums of integer products, for each instruction set.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod neon;
mod portable;

use std::{mem::MaybeUninit, sync::OnceLock};

use half::f16;

use super::{
    BLOCK_ROWS, GROUP, QUAD, SCALE_BYTES,
    input::{InputGroups, SumPair},
    int4::{self, NIBBLE_BYTES, SIDE_BYTES},
    repacked::Repacking,
};
use crate::simd::{KernelLevel, prefetch};

/// Quads of a group.
pub(super) const QUADS: usize = GROUP / QUAD;
const _: () = assert!(GROUP.is_multiple_of(QUAD) && QUADS.is_multiple_of(2));

/// Bytes of the weights of a group in a block of rows: a byte each, with the zero point 128. 4-bit ones are unpacked to them.
pub(super) const GROUP_BYTES: usize = BLOCK_ROWS * GROUP;

/// Bytes of a quad of a block of rows, a byte for each weight.
const QUAD_BYTES: usize = BLOCK_ROWS * QUAD;

/// Room for a group that is unpacked.
pub(super) type UnpackedGroup = MaybeUninit<[u8; GROUP_BYTES]>;

/// How the product of a weight and its factor is two signed bytes, `high * 2^s + low`, where `s` is the number that stands here: these can
/// be multiplied by tile registers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Split {
    /// Of weights from 0 to 15 and factors from 0 to 63: the products with a factor's upper and its lower three bits.
    OfFactors = 3,
    /// Of weights from -32 to 31 and any factors: the products divided by 64 and rounded, and what is left.
    OfProducts = 6,
}

/// The greatest products of a weight and a factor.
const _: () = assert!(15 * 7 <= 127 && (32 * 128 + 32) >> Split::OfProducts as u32 <= 127);

/// Repacked weights of a group whose parts have factors.
#[derive(Clone, Copy)]
pub(super) struct FactoredGroup<'a> {
    /// Of a weight, 4 or 6.
    bits: usize,
    /// The stored number that stands for zero.
    zero_point: u8,
    quants: &'a [u8],
    /// `[part][row]`, with a sign.
    factors: &'a [u8],
    parts: usize,
    split: Split,
}

impl<'a> FactoredGroup<'a> {
    /// # Panics
    /// If there are not as many bytes and factors.
    #[inline(always)]
    pub(super) fn new(repacking: Repacking, quants: &'a [u8], factors: &'a [u8], parts: usize, split: Split) -> Self {
        let bits = repacking.bits();
        assert_eq!((quants.len(), factors.len()), (GROUP_BYTES * bits / 8, parts * BLOCK_ROWS));
        Self { bits, zero_point: repacking.zero_point(), quants, factors, parts, split }
    }
}

/// A value of this type proves that the processor has the instruction set. Vectors have a lane for each row of a block.
pub(super) trait Dot: Copy {
    type Ints: Copy;
    type Floats: Copy;
    /// Register blocking: the greatest tile whose sums of integers stay in registers, in blocks of rows (1 or 2) and tokens (up to 8).
    const TILE_BLOCKS: usize;
    const TILE_TOKENS: usize;
    /// From how many tokens on a single tile prefetches its weights, if it ever does: with fewer tokens there is so little to
    /// compute that the loads of weights themselves run far enough ahead.
    const PREFETCH_FROM: Option<usize> = None;
    /// Whether [`Dot::group_of_nibbles`] and [`Dot::packed_quads`] are there: products unpack weights that share bytes for themselves.
    const UNPACKS_IN_REGISTERS: bool = false;

    /// Runs a kernel as a function of its own, so that code with many callers is compiled once.
    fn call<K: DotKernel>(self, kernel: K) -> K::Output;

    /// For `R` blocks of rows and `T` tokens the sum of the products of `Q` quads, exactly: those of a group, or of a subgroup, whose numbers
    /// lie [`GROUP`] bytes apart all the same. `Q` is even.
    ///
    /// # Safety
    /// `Q` quads can be read at each of `weights`, and of `T` tokens at `input`.
    unsafe fn group<const R: usize, const T: usize, const Q: usize>(
        self,
        weights: [*const u8; R],
        input: InputGroups,
    ) -> [[Self::Ints; T]; R];

    /// The same for 4-bit weights as they lie in the matrix.
    ///
    /// # Safety
    /// The nibbles of a group can be read at each of `nibbles`, its side at each of `sides`, groups of `T` tokens at `input`.
    #[inline(always)]
    unsafe fn group_of_nibbles<const R: usize, const T: usize>(
        self,
        _nibbles: [*const u8; R],
        _sides: [*const u8; R],
        _input: InputGroups,
    ) -> [[Self::Ints; T]; R] {
        unreachable!("{}", Self::UNPACKS_IN_REGISTERS)
    }

    /// The same as [`Dot::group`], of quads of `BITS` bits as they lie in a repacked matrix, with or without minima.
    ///
    /// # Safety
    /// `Q` quads can be read at each of `quants`, and `Q` quads of `T` tokens at `input`.
    #[inline(always)]
    unsafe fn packed_quads<const R: usize, const T: usize, const Q: usize, const BITS: usize>(
        self,
        _quants: [*const u8; R],
        _minima: bool,
        _input: InputGroups,
    ) -> [[Self::Ints; T]; R] {
        unreachable!("{}", Self::UNPACKS_IN_REGISTERS)
    }

    /// For a block of rows and `T` tokens the sum of the products of some pairs of signed bytes, `[pair][row][2]`, and pairs of sums of a
    /// token, `width` apart, exactly.
    ///
    /// # Safety
    /// So many pairs can be read at `factors`, and of each of `T` tokens at `sums`.
    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // Iterators take closures.
    unsafe fn pair_products<const T: usize>(
        self,
        pairs: usize,
        factors: *const u8,
        sums: *const SumPair,
        width: usize,
    ) -> [Self::Ints; T] {
        let mut lanes = [[0i32; BLOCK_ROWS]; T];
        for pair in 0..pairs {
            // SAFETY: by contract.
            let factors = unsafe { &*factors.add(pair * 2 * BLOCK_ROWS).cast::<[[i8; 2]; BLOCK_ROWS]>() };
            for t in 0..T {
                // SAFETY: by contract.
                let [first, second] = unsafe { *sums.add(pair * width + t) };
                for row in 0..BLOCK_ROWS {
                    lanes[t][row] += i32::from(factors[row][0]) * i32::from(first);
                    lanes[t][row] += i32::from(factors[row][1]) * i32::from(second);
                }
            }
        }
        let mut products = [self.ints(&[0; BLOCK_ROWS]); T];
        for t in 0..T {
            products[t] = self.ints(&lanes[t]);
        }
        products
    }

    /// Writes 4-bit weights of a group as bytes: all of `target`. See [`int4::unpack`].
    #[inline(always)]
    fn unpack(self, nibbles: &[u8; NIBBLE_BYTES], side: &[u8; SIDE_BYTES], target: &mut UnpackedGroup) {
        int4::unpack(nibbles, side, target.write([0; GROUP_BYTES]));
    }

    /// Writes repacked weights of a group, of 4, 6 or 8 bits, as bytes, `offset` added to each: all of `target`.
    ///
    /// # Panics
    /// If they are not as many bytes.
    #[inline(always)]
    fn unpack_repacked(self, bits: usize, quants: &[u8], offset: u8, target: &mut UnpackedGroup) {
        // Loops over arrays, so that each becomes a few vector instructions.
        assert_eq!(quants.len(), GROUP_BYTES * bits / 8);
        let mut bytes = [[[0; QUAD_BYTES]; 4]; GROUP / QUAD / 4];
        if bits == 8 {
            for (quad, bytes) in quants.as_chunks::<QUAD_BYTES>().0.iter().zip(bytes.as_flattened_mut()) {
                for i in 0..QUAD_BYTES {
                    bytes[i] = quad[i].wrapping_add(offset);
                }
            }
        } else if bits == 4 {
            for ([first, second], bytes) in quants.as_chunks().0.as_chunks().0.iter().zip(&mut bytes) {
                let (first, second): (&[u8; QUAD_BYTES], &[u8; QUAD_BYTES]) = (first, second);
                for i in 0..QUAD_BYTES {
                    bytes[0][i] = (first[i] & 15).wrapping_add(offset);
                    bytes[1][i] = (first[i] >> 4).wrapping_add(offset);
                    bytes[2][i] = (second[i] & 15).wrapping_add(offset);
                    bytes[3][i] = (second[i] >> 4).wrapping_add(offset);
                }
            }
        } else {
            for ([first, second, third], bytes) in quants.as_chunks().0.as_chunks().0.iter().zip(&mut bytes) {
                let sextets: [&[u8; QUAD_BYTES]; 3] = [first, second, third];
                for i in 0..QUAD_BYTES {
                    bytes[0][i] = (sextets[0][i] & 63).wrapping_add(offset);
                    bytes[1][i] = (sextets[1][i] & 63).wrapping_add(offset);
                    bytes[2][i] = (sextets[2][i] & 63).wrapping_add(offset);
                    let last = sextets[0][i] >> 6 | sextets[1][i] >> 6 << 2 | sextets[2][i] >> 6 << 4;
                    bytes[3][i] = last.wrapping_add(offset);
                }
            }
        }
        if let Some(bytes) = bytes.as_flattened().as_flattened().first_chunk() {
            target.write(*bytes);
        }
    }

    /// Writes weights, multiplied by the factors of their parts, as two signed bytes each: all of the first `target` by the upper ones, all
    /// of the second by the lower ones. See [`Split`].
    #[inline(always)]
    fn unpack_factored(self, group: FactoredGroup, target: &mut [UnpackedGroup; 2]) {
        let mut weights = MaybeUninit::new([0; GROUP_BYTES]);
        self.unpack_repacked(group.bits, group.quants, group.zero_point.wrapping_neg(), &mut weights);
        // SAFETY: they have been written, twice.
        let weights = unsafe { weights.assume_init_ref() };
        let mut bytes = [[[0; QUAD_BYTES]; QUADS]; 2];
        for (quad, weights) in weights.as_chunks::<QUAD_BYTES>().0.iter().enumerate() {
            let factors = &group.factors[quad * group.parts / QUADS * BLOCK_ROWS..][..BLOCK_ROWS];
            for i in 0..QUAD_BYTES {
                let (weight, factor) = (i32::from(weights[i] as i8), i32::from(factors[i / QUAD] as i8));
                let [high, low] = match group.split {
                    Split::OfFactors => [weight * (factor >> 3), weight * (factor & 7)],
                    Split::OfProducts => [(weight * factor + 32) >> 6, ((weight * factor + 32) & 63) - 32],
                };
                (bytes[0][quad][i], bytes[1][quad][i]) = (high as u8, low as u8);
            }
        }
        for (bytes, target) in bytes.iter().zip(target) {
            if let Some(bytes) = bytes.as_flattened().first_chunk() {
                target.write(*bytes);
            }
        }
    }

    /// Asks for the memory at `p`, which may be any address, to be brought into the second level cache.
    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        prefetch(p);
    }

    fn splat(self, x: f32) -> Self::Floats;
    fn load(self, lanes: &[f32; BLOCK_ROWS]) -> Self::Floats;
    fn store(self, lanes: &mut [f32; BLOCK_ROWS], v: Self::Floats);
    /// Widens the scales of a group in a block of rows: a bf16 for each lane.
    fn scales(self, scales: &[u8; SCALE_BYTES]) -> Self::Floats;
    /// Widens a number of f16 for each lane.
    #[inline(always)]
    fn halves(self, halves: &[u8; 2 * BLOCK_ROWS]) -> Self::Floats {
        let mut widened = [0.0; BLOCK_ROWS];
        for (widened, half) in widened.iter_mut().zip(halves.as_chunks().0) {
            *widened = f16::from_le_bytes(*half).to_f32();
        }
        self.load(&widened)
    }
    /// Widens a signed byte for each lane.
    #[inline(always)]
    fn signed_bytes(self, bytes: &[u8; BLOCK_ROWS]) -> Self::Ints {
        let mut widened = [0; BLOCK_ROWS];
        for (widened, byte) in widened.iter_mut().zip(bytes) {
            *widened = i32::from(*byte as i8);
        }
        self.ints(&widened)
    }
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a * b + c`, rounded once on every instruction set.
    fn fma(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// The sums of the rows of a block.
    #[inline(always)]
    fn ints(self, ints: &[i32; BLOCK_ROWS]) -> Self::Ints {
        self.corrected(ints, 0)
    }
    /// `high * 2^SHIFT + low`.
    #[inline(always)]
    fn joined<const SHIFT: u32>(self, high: &[i32; BLOCK_ROWS], low: &[i32; BLOCK_ROWS]) -> Self::Ints {
        let mut joined = [0; BLOCK_ROWS];
        for row in 0..BLOCK_ROWS {
            joined[row] = (high[row] << SHIFT).wrapping_add(low[row]);
        }
        self.ints(&joined)
    }
    /// `a * b + c`, of numbers for which that fits in 32 bits.
    fn add_product(self, a: Self::Ints, b: Self::Ints, c: Self::Ints) -> Self::Ints;
    /// The nearest number of 24 bits, or the even one of two.
    fn floats(self, ints: Self::Ints) -> Self::Floats;
    /// `ints + correction`.
    fn corrected(self, ints: &[i32; BLOCK_ROWS], correction: i32) -> Self::Ints;
    /// `ints * scales + sums`, rounded as [`Dot::floats`] and [`Dot::fma`] are.
    #[inline(always)]
    fn add_scaled(self, ints: Self::Ints, scales: Self::Floats, sums: Self::Floats) -> Self::Floats {
        self.fma(self.floats(ints), scales, sums)
    }
}

/// A function and its arguments, generic over the instruction set.
pub(super) trait DotKernel {
    type Output;
    /// Implementations are `#[inline(always)]`.
    fn run<D: Dot>(self, dot: D) -> Self::Output;
}

/// An instruction set that products are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DotLevel {
    /// Tile registers for many tokens, and the vectors of `Avx512Vnni`.
    #[cfg(target_arch = "x86_64")]
    Amx,
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    NeonDot,
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    Neon,
    /// Emulated tile registers for many tokens, and portable vectors.
    #[cfg(test)]
    EmulatedTiles,
    Portable,
}

impl DotLevel {
    /// The levels that this processor has, best first.
    pub(super) fn available() -> &'static [DotLevel] {
        static AVAILABLE: OnceLock<Vec<DotLevel>> = OnceLock::new();
        AVAILABLE.get_or_init(|| {
            let mut levels = Vec::new();
            #[cfg(target_arch = "x86_64")]
            {
                if KernelLevel::available().contains(&KernelLevel::Amx) && has_byte_instructions() {
                    levels.push(DotLevel::Amx);
                }
                if KernelLevel::available().contains(&KernelLevel::Avx512) && has_byte_instructions() {
                    levels.push(DotLevel::Avx512Vnni);
                }
                if KernelLevel::available().contains(&KernelLevel::Avx2) {
                    levels.push(DotLevel::Avx2);
                }
            }
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            {
                if std::arch::is_aarch64_feature_detected!("dotprod") {
                    levels.push(DotLevel::NeonDot);
                }
                levels.push(DotLevel::Neon);
            }
            #[cfg(test)]
            levels.push(DotLevel::EmulatedTiles);
            levels.push(DotLevel::Portable);
            levels
        })
    }

    /// The level of this process: the best one that its [`KernelLevel`] includes.
    pub(super) fn chosen() -> DotLevel {
        static CHOSEN: OnceLock<DotLevel> = OnceLock::new();
        *CHOSEN.get_or_init(|| {
            let kernels = KernelLevel::available();
            // Levels are in order, best first.
            let from = kernels.iter().position(|&level| level == KernelLevel::chosen()).unwrap_or(0);
            let included = |dot: &&DotLevel| kernels[from..].contains(&dot.kernel_level());
            Self::available().iter().find(included).copied().unwrap_or(DotLevel::Portable)
        })
    }

    fn kernel_level(self) -> KernelLevel {
        match self {
            #[cfg(target_arch = "x86_64")]
            DotLevel::Amx => KernelLevel::Amx,
            #[cfg(target_arch = "x86_64")]
            DotLevel::Avx512Vnni => KernelLevel::Avx512,
            #[cfg(target_arch = "x86_64")]
            DotLevel::Avx2 => KernelLevel::Avx2,
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            DotLevel::NeonDot | DotLevel::Neon => KernelLevel::Neon,
            #[cfg(test)]
            DotLevel::EmulatedTiles => KernelLevel::Portable,
            DotLevel::Portable => KernelLevel::Portable,
        }
    }
}

/// Those of AVX-512 that products need beside F and VL. Processors that have VNNI and not VBMI, of two years, use AVX2.
#[cfg(target_arch = "x86_64")]
fn has_byte_instructions() -> bool {
    is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vnni")
        && is_x86_feature_detected!("avx512vbmi")
}

/// Runs `kernel` compiled for the vectors that a processor with tile registers has.
#[cfg(target_arch = "x86_64")]
pub(super) fn dispatch_amx<K: DotKernel>(kernel: K) -> K::Output {
    assert!(DotLevel::available().contains(&DotLevel::Amx));
    // SAFETY: the processor has what an available level needs.
    unsafe { avx512::run(kernel) }
}

/// Runs `kernel` compiled for portable vectors.
#[cfg(test)]
pub(super) fn dispatch_portable<K: DotKernel>(kernel: K) -> K::Output {
    portable::Portable.call(kernel)
}

/// Runs `kernel` compiled for `level`.
pub(super) fn dispatch<K: DotKernel>(level: DotLevel, kernel: K) -> K::Output {
    assert!(DotLevel::available().contains(&level));
    match level {
        // SAFETY: the processor has what an available level needs.
        #[cfg(target_arch = "x86_64")]
        DotLevel::Amx | DotLevel::Avx512Vnni => unsafe { avx512::run(kernel) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        DotLevel::Avx2 => unsafe { avx2::run(kernel) },
        // SAFETY: as above.
        #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
        DotLevel::NeonDot => unsafe { neon::run_with_dot(kernel) },
        // SAFETY: every 64-bit ARM processor has these instructions.
        #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
        DotLevel::Neon => unsafe { neon::run(kernel) },
        #[cfg(test)]
        DotLevel::EmulatedTiles => portable::Portable.call(kernel),
        DotLevel::Portable => portable::Portable.call(kernel),
    }
}

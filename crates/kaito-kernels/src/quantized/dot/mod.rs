//! Sums of integer products, for each instruction set.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod neon;
mod portable;

use std::{mem::MaybeUninit, sync::OnceLock};

use super::{BLOCK_ROWS, GROUP, QUAD, SCALE_BYTES, input::InputGroup};
#[cfg(target_arch = "x86_64")]
use crate::simd::Level;
use crate::simd::prefetch;

/// Quads of a group.
const QUADS: usize = GROUP / QUAD;
const _: () = assert!(GROUP.is_multiple_of(QUAD) && QUADS.is_multiple_of(2));

/// How the weights of a group lie in memory.
pub(super) trait Stored: Copy {
    const FORM: Form;
    /// Bytes of a group in a block of rows.
    const BYTES: usize;
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// A byte each, with the zero point 128.
    Bytes,
    /// Two in a byte, with the zero point 8.
    Nibbles,
    /// A byte each, with the zero point 8: nibbles, unpacked.
    UnpackedNibbles,
}

#[derive(Clone, Copy)]
pub(super) struct Bytes;
#[derive(Clone, Copy)]
pub(super) struct Nibbles;
#[derive(Clone, Copy)]
pub(super) struct UnpackedNibbles;

impl Stored for Bytes {
    const FORM: Form = Form::Bytes;
    const BYTES: usize = BLOCK_ROWS * GROUP;
}

impl Stored for Nibbles {
    const FORM: Form = Form::Nibbles;
    const BYTES: usize = BLOCK_ROWS * GROUP / 2;
}

impl Stored for UnpackedNibbles {
    const FORM: Form = Form::UnpackedNibbles;
    const BYTES: usize = BLOCK_ROWS * GROUP;
}

/// A group of nibbles in a block of rows.
pub(super) type PackedGroup = [u8; Nibbles::BYTES];

/// Room for such a group with a byte for each nibble.
pub(super) type UnpackedGroup = [MaybeUninit<u8>; UnpackedNibbles::BYTES];

/// A value of this type proves that the processor has the instruction set. Vectors have a lane for each row of a block.
pub(super) trait Dot: Copy {
    type Ints: Copy;
    type Floats: Copy;
    /// Register blocking: the greatest tile whose sums of integers stay in registers, in blocks of rows (1 or 2) and tokens (up to 8).
    const TILE_BLOCKS: usize;
    const TILE_TOKENS: usize;
    /// Whether unpacking nibbles costs so much that it is done once for several tiles.
    const UNPACK_ONCE: bool;
    /// From how many tokens on a single tile prefetches its weights, if it ever does: with fewer tokens there is so little to
    /// compute that the loads of weights themselves run far enough ahead.
    const PREFETCH_BYTES_FROM: Option<usize> = None;
    const PREFETCH_NIBBLES_FROM: Option<usize> = None;

    /// Runs a kernel as a function of its own, so that code with many callers is compiled once.
    fn call<K: DotKernel>(self, kernel: K) -> K::Output;

    /// For `R` blocks of rows and `T` tokens the sum of a group's products, exactly.
    ///
    /// # Safety
    /// `W::BYTES` bytes can be read at each of `weights`, a group at each of `input`.
    unsafe fn group<W: Stored, const R: usize, const T: usize>(
        self,
        weights: [*const u8; R],
        input: [*const InputGroup; T],
    ) -> [[Self::Ints; T]; R];

    /// Writes the nibbles of a group as bytes: all of `target`.
    fn unpack(self, source: &PackedGroup, target: &mut UnpackedGroup);

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
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `ints * scales + sums`, rounded once on every instruction set.
    fn add_scaled(self, ints: Self::Ints, scales: Self::Floats, sums: Self::Floats) -> Self::Floats;
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
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    NeonDot,
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    Neon,
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
                if Level::available().contains(&Level::Avx512) && is_x86_feature_detected!("avx512vnni") {
                    levels.push(DotLevel::Avx512Vnni);
                }
                if Level::available().contains(&Level::Avx2) {
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
            levels.push(DotLevel::Portable);
            levels
        })
    }

    pub(super) fn best() -> DotLevel {
        Self::available()[0]
    }
}

/// Runs `kernel` compiled for `level`.
pub(super) fn dispatch<K: DotKernel>(level: DotLevel, kernel: K) -> K::Output {
    assert!(DotLevel::available().contains(&level));
    match level {
        // SAFETY: the processor has what an available level needs.
        #[cfg(target_arch = "x86_64")]
        DotLevel::Avx512Vnni => unsafe { avx512::run(kernel) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        DotLevel::Avx2 => unsafe { avx2::run(kernel) },
        // SAFETY: as above.
        #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
        DotLevel::NeonDot => unsafe { neon::run_with_dot(kernel) },
        // SAFETY: every 64-bit ARM processor has these instructions.
        #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
        DotLevel::Neon => unsafe { neon::run(kernel) },
        DotLevel::Portable => portable::Portable.call(kernel),
    }
}

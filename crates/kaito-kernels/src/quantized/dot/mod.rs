//! Sums of integer products, for each instruction set.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod neon;
mod portable;

use std::sync::OnceLock;

use super::{BLOCK_ROWS, GROUP, Quantization, input::InputGroup};
#[cfg(target_arch = "x86_64")]
use crate::simd::Level;

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

/// A value of this type proves that the processor has the instruction set. Vectors have a lane for each row of a block.
pub(super) trait Dot: Copy {
    type Ints: Copy;
    type Floats: Copy;
    /// The greatest tile whose sums of integers stay in registers: blocks of rows (1 or 2) and tokens (up to 8).
    const TILE_BLOCKS: usize;
    const TILE_TOKENS: usize;
    /// Whether unpacking nibbles costs so much that it is done once for several tiles.
    const UNPACK_ONCE: bool;
    /// From how many tokens on a single tile asks for weights ahead of itself: fewer leave some processors so little to
    /// compute that they see far enough ahead.
    const PREFETCH_BYTES_FROM: usize;
    const PREFETCH_NIBBLES_FROM: usize;

    /// Runs a kernel as a function of its own.
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

    /// Writes the nibbles of a group as bytes.
    ///
    /// # Safety
    /// `Nibbles::BYTES` bytes can be read at `source`, `UnpackedNibbles::BYTES` written at `target`.
    unsafe fn unpack(self, source: *const u8, target: *mut u8);

    /// Asks for the memory at `p`, which may be any address, to be brought into the second level cache.
    fn prefetch(self, p: *const u8);

    fn splat(self, x: f32) -> Self::Floats;
    /// # Safety
    /// A lane's number for each of the lanes can be read at `p`.
    unsafe fn load(self, p: *const f32) -> Self::Floats;
    /// # Safety
    /// As many can be written.
    unsafe fn store(self, p: *mut f32, v: Self::Floats);
    /// # Safety
    /// A bf16 for each of the lanes can be read at `p`.
    unsafe fn scales(self, p: *const u8) -> Self::Floats;
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `ints * scales + sums`, rounded once on every instruction set.
    fn add_scaled(self, ints: Self::Ints, scales: Self::Floats, sums: Self::Floats) -> Self::Floats;
}

/// A piece of work, generic over the instruction set.
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

impl Quantization {
    pub(super) fn is_packed(self) -> bool {
        self == Quantization::Int4
    }
}

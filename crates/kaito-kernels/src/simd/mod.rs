//! Vectors of `f32`, one type per instruction set, and the choice among them at run time.
//!
//! A kernel is written once, generic over [`Simd`]. [`dispatch`] calls it inside a function that is compiled for the
//! instruction set, and everything that the kernel calls must be inlined into that function (`#[inline(always)]`) to be compiled
//! for it too. Closures are not: they are functions of their own.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_bf16;
mod level;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod neon;
mod portable;

use std::sync::OnceLock;

use half::bf16;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx512_bf16::{dispatch_bf16_pairs, has_bf16_pairs};
pub use level::{KernelLevel, LevelError, choose_level, instruction_set};

/// Bytes of a cache line.
pub(crate) const CACHE_LINE: usize = 64;

/// Streams, far from each other, that a thread reads memory from in turn: hardware prefetchers sustain more bandwidth over
/// several streams than over one, see `bench/NOTES.md`.
pub(crate) const STREAMS: usize = 4;

/// How many bytes ahead of its loads each stream is prefetched by software where little is computed: hardware prefetchers stop at
/// the end of a page of memory.
pub(crate) const PREFETCH_DISTANCE: usize = 512;

/// Adding it rounds to an integer, ties to even: the sum's last bit stands for 1.
const ROUNDING_SHIFT: f32 = 12_582_912.0;

/// No instruction set has more `f32` lanes.
pub(crate) const MAX_LANES: usize = 16;

/// A cache line of 16 sums, or of 16 pairs of bf16.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct TileRow(pub [u32; 16]);

/// A value of this type proves that the processor has the instruction set, which makes its methods safe to call.
pub(crate) trait Simd: Copy {
    /// `LANES` values of `f32`.
    type Vector: Copy;
    const LANES: usize;
    /// Whether there are 32 vector registers and not just 16.
    const MANY_REGISTERS: bool;
    /// Whether there is no faster set on this kind of processor: then little code counts for more than speed.
    const IS_FALLBACK: bool = false;

    /// Runs a kernel as a function of its own, so that code with many callers is compiled once.
    fn call<K: Kernel>(self, kernel: K) -> K::Output;

    fn splat(self, x: f32) -> Self::Vector;
    /// # Safety
    /// `LANES` elements can be read at `p`. They need not be aligned.
    unsafe fn load(self, p: *const f32) -> Self::Vector;
    /// # Safety
    /// `2 * LANES` bytes can be read at `p`.
    unsafe fn load_bf16(self, p: *const u8) -> Self::Vector;
    /// # Safety
    /// `2 * LANES` bytes can be read at `p`.
    unsafe fn load_f16(self, p: *const u8) -> Self::Vector;
    /// # Safety
    /// `LANES` bytes can be read at `p`.
    unsafe fn load_i8(self, p: *const i8) -> Self::Vector;
    /// Asks for the memory at `p`, which may be any address, to be brought into the second level cache.
    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        prefetch(p);
    }
    /// The same, into the first level cache.
    #[inline(always)]
    fn prefetch_first_level(self, p: *const u8) {
        prefetch_first_level(p);
    }
    /// # Safety
    /// `LANES` elements can be written at `p`.
    unsafe fn store(self, p: *mut f32, v: Self::Vector);
    fn add(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    fn sub(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    fn mul(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    fn div(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `a * b + c`, rounded once where the instruction set can.
    fn mul_add(self, a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    /// `a` where `a > b`, else `b`: NaN in `b` stays.
    fn max(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `a` where `a < b`, else `b`: NaN in `b` stays.
    fn min(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// The sum of the lanes, in one fixed order.
    fn sum(self, v: Self::Vector) -> f32;
    /// The sum of each of four vectors, each in the order of [`Simd::sum`].
    #[inline(always)]
    fn sum4(self, v: [Self::Vector; 4]) -> [f32; 4] {
        [self.sum(v[0]), self.sum(v[1]), self.sum(v[2]), self.sum(v[3])]
    }
    /// The greatest of the lanes, none of which is NaN.
    #[inline(always)]
    fn greatest(self, v: Self::Vector) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; MAX_LANES];
        self.store_slice(&mut lanes, v);
        for half in [8, 4, 2, 1] {
            for l in 0..half {
                lanes[l] = if lanes[l + half] > lanes[l] { lanes[l + half] } else { lanes[l] };
            }
        }
        lanes[0]
    }
    /// Each lane rounded to the nearest bf16, ties to even. NaN stays NaN.
    #[inline(always)]
    fn round_to_bf16(self, v: Self::Vector) -> Self::Vector {
        let mut lanes = [0.0; MAX_LANES];
        self.store_slice(&mut lanes, v);
        for lane in &mut lanes {
            *lane = bf16::from_f32(*lane).to_f32();
        }
        self.load_slice(&lanes)
    }
    /// Each lane with its first 8 significant bits: the bf16 next to it towards zero.
    #[cfg_attr(not(any(target_arch = "x86_64", test)), allow(dead_code))] // For tile registers.
    #[inline(always)]
    fn truncate_to_bf16(self, v: Self::Vector) -> Self::Vector {
        let mut lanes = [0.0; MAX_LANES];
        self.store_slice(&mut lanes, v);
        for lane in &mut lanes {
            *lane = f32::from_bits(lane.to_bits() & 0xffff_0000);
        }
        self.load_slice(&lanes)
    }
    /// `a - b`, or 0 where that is not a number.
    #[cfg_attr(not(any(target_arch = "x86_64", test)), allow(dead_code))] // For tile registers.
    #[inline(always)]
    fn difference_of_finite(self, a: Self::Vector, b: Self::Vector) -> Self::Vector {
        let (difference, zero) = (self.sub(a, b), self.splat(0.0));
        self.add(self.max(difference, zero), self.min(difference, zero))
    }
    /// 32 f16 as sums of two bf16: each one's first 8 significant bits, and the others. What is not finite has zero, or what is no
    /// number, as the second. They are written as such, two to an element, the first in its lower half.
    #[cfg_attr(not(any(target_arch = "x86_64", test)), allow(dead_code))] // For tile registers.
    #[inline(always)]
    fn split_f16(self, weights: &[u8; 64], high: &mut TileRow, low: &mut TileRow) {
        for at in (0..32).step_by(Self::LANES) {
            // SAFETY: a multiple of `LANES`, which divide 32, of the 32 elements.
            let w = unsafe { self.load_f16(weights.as_ptr().add(2 * at)) };
            let first = self.truncate_to_bf16(w);
            self.store_bf16(&mut high.0[at / 2..], first);
            self.store_bf16(&mut low.0[at / 2..], self.difference_of_finite(w, first));
        }
    }
    /// Writes lanes that are bf16 as such, two to an element, the first in its lower half.
    #[inline(always)]
    fn store_bf16(self, target: &mut [u32], v: Self::Vector) {
        let mut lanes = [0.0; MAX_LANES];
        self.store_slice(&mut lanes, v);
        for i in 0..Self::LANES / 2 {
            target[i] = lanes[2 * i].to_bits() >> 16 | (lanes[2 * i + 1].to_bits() & 0xffff_0000);
        }
    }
    /// Writes numbers as bf16, two to an element, rounded to nearest, ties away from zero. Whether NaN stays depends on its bits.
    #[cfg_attr(not(any(target_arch = "x86_64", test)), allow(dead_code))] // For tile registers.
    #[inline(always)]
    fn pack_bf16(self, numbers: &[f32; 32], target: &mut TileRow) {
        for (pair, numbers) in target.0.iter_mut().zip(numbers.as_chunks::<2>().0) {
            let [even, odd] = numbers.map(|x| x.to_bits().wrapping_add(0x8000));
            *pair = even >> 16 | (odd & 0xffff_0000);
        }
    }
    /// Writes the columns of `source` as rows of `target`.
    #[cfg_attr(not(any(target_arch = "x86_64", test)), allow(dead_code))] // For tile registers.
    #[inline(always)]
    fn transpose(self, source: &[TileRow; 16], target: &mut [TileRow; 16]) {
        for (i, row) in target.iter_mut().enumerate() {
            for (element, column) in row.0.iter_mut().zip(source) {
                *element = column.0[i];
            }
        }
    }
    /// `2^n` for integral `n` from -126 to 127.
    fn exp2_integral(self, n: Self::Vector) -> Self::Vector;
    /// `v * 2^n`, rounded once, for integral `n` from -151 to 128 and normal `v` between 1/2 and 2.
    #[inline(always)]
    fn scale_by_exp2(self, v: Self::Vector, n: Self::Vector) -> Self::Vector {
        // Of two factors none is beyond the range of `f32`, and the first product is exact.
        let half = self.mul_add(n, self.splat(0.5), self.splat(ROUNDING_SHIFT));
        let half = self.sub(half, self.splat(ROUNDING_SHIFT));
        let rest = self.sub(n, half);
        self.mul(self.mul(v, self.exp2_integral(half)), self.exp2_integral(rest))
    }

    #[inline(always)]
    fn load_slice(self, x: &[f32]) -> Self::Vector {
        assert!(x.len() >= Self::LANES);
        // SAFETY: just checked.
        unsafe { self.load(x.as_ptr()) }
    }

    #[inline(always)]
    fn store_slice(self, x: &mut [f32], v: Self::Vector) {
        assert!(x.len() >= Self::LANES);
        // SAFETY: just checked.
        unsafe { self.store(x.as_mut_ptr(), v) }
    }

    /// Fewer than `LANES` elements and zeros after them.
    #[inline(always)]
    fn load_partial(self, x: &[f32]) -> Self::Vector {
        let mut lanes = [0.0; MAX_LANES];
        lanes[..x.len()].copy_from_slice(x);
        self.load_slice(&lanes)
    }

    /// The first `x.len()` lanes.
    #[inline(always)]
    fn store_partial(self, x: &mut [f32], v: Self::Vector) {
        let mut lanes = [0.0; MAX_LANES];
        self.store_slice(&mut lanes, v);
        x.copy_from_slice(&lanes[..x.len()]);
    }

    /// e^x, within 2 units in the last place over the whole range. The power of two overflows and underflows as the result does.
    #[inline(always)]
    fn exp(self, x: Self::Vector) -> Self::Vector {
        // Beyond these the result is infinite or rounds to zero.
        let x = self.min(self.splat(89.0), self.max(self.splat(-105.0), x));
        let (n, r, q) = self.exp_parts(x);
        self.scale_by_exp2(self.mul_add(q, r, self.splat(1.0)), n)
    }

    /// `n`, `r` and `q` with `e^x = 2^n (1 + q r)`, for `x` whose exponential `f32` has.
    ///
    /// x = n ln 2 + r with |r| <= ln 2 / 2, then e^r by its Taylor polynomial of degree 7 (truncation error below
    /// 6e-9).
    #[inline(always)]
    fn exp_parts(self, x: Self::Vector) -> (Self::Vector, Self::Vector, Self::Vector) {
        // ln 2 in two parts; the first has so few bits that its product with n is exact.
        const LN2_HIGH: f32 = 355.0 / 512.0;
        const LN2_LOW: f32 = -2.121_944_4e-4;
        let n = self.mul_add(x, self.splat(std::f32::consts::LOG2_E), self.splat(ROUNDING_SHIFT));
        let n = self.sub(n, self.splat(ROUNDING_SHIFT));
        let r = self.mul_add(n, self.splat(-LN2_HIGH), x);
        let r = self.mul_add(n, self.splat(-LN2_LOW), r);
        let mut q = self.splat(1.0 / 5040.0);
        for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0] {
            q = self.mul_add(q, r, self.splat(coefficient));
        }
        (n, r, q)
    }

    /// `2^x` within a part of 2^-18, a 512th of what rounding to bf16 may change; for `x` below -150 it is 0.
    ///
    /// x = n + f with |f| <= 1/2, then the polynomial of degree 4 that is 1 for f = 0 and has the least relative error else.
    #[cfg_attr(not(any(target_arch = "x86_64", test)), allow(dead_code))] // For tile registers.
    #[inline(always)]
    fn exp2_roughly(self, x: Self::Vector) -> Self::Vector {
        let x = self.max(self.splat(-151.0), x);
        let n = self.sub(self.add(x, self.splat(ROUNDING_SHIFT)), self.splat(ROUNDING_SHIFT));
        let f = self.sub(x, n);
        let mut q = self.splat(9.582_853e-3);
        for coefficient in [5.590_642_6e-2, 0.240_240_99, 0.693_124_2, 1.0] {
            q = self.mul_add(q, f, self.splat(coefficient));
        }
        self.scale_by_exp2(q, n)
    }

    /// The hyperbolic tangent, within 4 units in the last place over the whole range.
    ///
    /// It is `m / (m + 2)` with `m = e^2x - 1`. Near zero, where `1 + m` would have lost most of `m`, `m` is `q r` itself.
    #[inline(always)]
    fn tanh(self, x: Self::Vector) -> Self::Vector {
        // Beyond these the result rounds to 1 and -1.
        let twice = self.min(self.splat(20.0), self.max(self.splat(-20.0), self.add(x, x)));
        let (n, r, q) = self.exp_parts(twice);
        let power = self.exp2_integral(n);
        let m = self.mul_add(self.mul(q, r), power, self.sub(power, self.splat(1.0)));
        self.div(m, self.add(m, self.splat(2.0)))
    }
}

/// Asks for the cache line at `p`, which may be any address, to be brought into the second level cache, on processors that have
/// an instruction for it.
#[inline(always)]
pub(crate) fn prefetch(p: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every 64-bit x86 processor has the instruction; a hint, which faults at no address.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(p.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a hint, which faults at no address.
    unsafe {
        std::arch::asm!("prfm pldl2keep, [{p}]", p = in(reg) p, options(readonly, nostack, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = p;
}

/// The same, into the first level cache.
#[inline(always)]
fn prefetch_first_level(p: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as above.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(p.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{p}]", p = in(reg) p, options(readonly, nostack, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = p;
}

/// Defines methods of two vectors that are one instruction each.
#[cfg(any(target_arch = "x86_64", all(target_arch = "aarch64", target_endian = "little")))]
macro_rules! one_instruction {
    ($($name:ident: $intrinsic:ident),+ $(,)?) => {$(
        #[inline(always)]
        fn $name(self, a: Self::Vector, b: Self::Vector) -> Self::Vector {
            // SAFETY: a value of this type exists only where the processor has its instructions.
            unsafe { $intrinsic(a, b) }
        }
    )+};
}

#[cfg(any(target_arch = "x86_64", all(target_arch = "aarch64", target_endian = "little")))]
use one_instruction;

/// A function and its arguments, generic over the instruction set.
pub(crate) trait Kernel {
    type Output;
    /// Implementations are `#[inline(always)]`.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// An instruction set that kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Level {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    Neon,
    Portable,
}

impl Level {
    /// The levels that this processor has, best first.
    pub(crate) fn available() -> &'static [Level] {
        static AVAILABLE: OnceLock<Vec<Level>> = OnceLock::new();
        AVAILABLE.get_or_init(|| {
            let mut levels: Vec<Level> = KernelLevel::available().iter().map(|level| level.vectors()).collect();
            levels.dedup();
            levels
        })
    }

    /// The level of this process.
    pub(crate) fn chosen() -> Level {
        KernelLevel::chosen().vectors()
    }
}

/// Runs `kernel` compiled for AVX-512 alone, which not every processor has.
///
/// # Panics
/// If the processor does not have it.
#[cfg(target_arch = "x86_64")]
pub(crate) fn dispatch_avx512<K: Kernel>(kernel: K) -> K::Output {
    assert!(Level::available().contains(&Level::Avx512));
    // SAFETY: just checked.
    unsafe { avx512::run(kernel) }
}

/// Runs `kernel` compiled for any processor.
#[cfg(test)]
pub(crate) fn dispatch_portable<K: Kernel>(kernel: K) -> K::Output {
    portable::Portable.call(kernel)
}

/// Runs `kernel` compiled for `level`.
pub(crate) fn dispatch<K: Kernel>(level: Level, kernel: K) -> K::Output {
    assert!(Level::available().contains(&level));
    match level {
        // SAFETY: the processor has what an available level needs.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { avx512::run(kernel) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { avx2::run(kernel) },
        #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
        Level::Neon => neon::Neon::new().call(kernel),
        Level::Portable => portable::Portable.call(kernel),
    }
}

/// The same number, of which the compiler knows nothing, so that a loop up to it is not unrolled. Unrolled, what such loops do would be
/// interleaved and need more registers than there are, and it would be a multiple of the code.
#[inline(always)]
pub(crate) fn opaque(number: usize) -> usize {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    {
        let mut number = number;
        // SAFETY: no instruction at all.
        unsafe {
            std::arch::asm!("/* {0} */", inout(reg) number, options(pure, nomem, nostack, preserves_flags));
        }
        number
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    number
}

#[cfg(test)]
mod tests;

use std::arch::x86_64::*;

use super::{Dot, DotKernel, Form, Stored};
use crate::quantized::{GROUP, QUAD, input::InputGroup};

/// AVX2 with FMA. A vector has eight rows: half a block.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

/// # Safety
/// The processor has the features named here.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn run<K: DotKernel>(kernel: K) -> K::Output {
    kernel.run(Avx2(()))
}

/// Quads of a group.
const QUADS: usize = GROUP / QUAD;

// SAFETY of every block below: a value of `Avx2` exists only inside `run`, whose caller made sure of the instructions;
// what pointers need is the methods' own contract.
impl Dot for Avx2 {
    type Ints = [__m256i; 2];
    type Floats = [__m256; 2];
    const TILE_BLOCKS: usize = 1;
    const TILE_TOKENS: usize = 2;
    const UNPACK_ONCE: bool = false;

    #[inline(always)]
    fn call<K: DotKernel>(self, kernel: K) -> K::Output {
        // SAFETY: see above.
        unsafe { run(kernel) }
    }

    #[inline(always)]
    unsafe fn group<W: Stored, const R: usize, const T: usize>(
        self,
        weights: [*const u8; R],
        input: [*const InputGroup; T],
    ) -> [[[__m256i; 2]; T]; R] {
        // SAFETY: see above.
        unsafe {
            match W::FORM {
                Form::Bytes => bytes(weights, input),
                Form::Nibbles | Form::UnpackedNibbles => nibbles::<W, R, T>(weights, input),
            }
        }
    }

    #[inline(always)]
    unsafe fn unpack(self, source: *const u8, target: *mut u8) {
        // SAFETY: see above. 64 bytes make 128.
        unsafe {
            let mask = _mm256_set1_epi8(15);
            for i in 0..QUADS {
                let packed = _mm256_loadu_si256(source.add(i * 32).cast());
                let high = _mm256_srli_epi16::<4>(packed);
                let target = target.add(i / 2 * 128 + i % 2 * 32);
                _mm256_storeu_si256(target.cast(), _mm256_and_si256(packed, mask));
                _mm256_storeu_si256(target.add(64).cast(), _mm256_and_si256(high, mask));
            }
        }
    }

    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        // SAFETY: see above; a hint, which faults at no address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> [__m256; 2] {
        // SAFETY: see above.
        unsafe { [_mm256_set1_ps(x); 2] }
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> [__m256; 2] {
        // SAFETY: see above.
        unsafe { [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))] }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: [__m256; 2]) {
        // SAFETY: see above.
        unsafe {
            _mm256_storeu_ps(p, v[0]);
            _mm256_storeu_ps(p.add(8), v[1]);
        }
    }

    #[inline(always)]
    unsafe fn scales(self, p: *const u8) -> [__m256; 2] {
        // SAFETY: see above.
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(16).cast()));
            let widen = (_mm256_slli_epi32::<16>(low), _mm256_slli_epi32::<16>(high));
            [_mm256_castsi256_ps(widen.0), _mm256_castsi256_ps(widen.1)]
        }
    }

    #[inline(always)]
    fn mul(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: see above.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn add_scaled(self, ints: [__m256i; 2], scales: [__m256; 2], sums: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: see above.
        unsafe {
            [
                _mm256_fmadd_ps(_mm256_cvtepi32_ps(ints[0]), scales[0], sums[0]),
                _mm256_fmadd_ps(_mm256_cvtepi32_ps(ints[1]), scales[1], sums[1]),
            ]
        }
    }
}

/// The instruction adds two products of an unsigned and a signed byte in 16 bits and saturates. Magnitudes of weights, up
/// to 127 (128 for the byte 0, which quantisation does not write), with their signs moved to the activations stay below
/// that: 2 * 128 * 127 < 2^15. So the sums are those of signed weights, which need no correction.
///
/// # Safety
/// As [`Dot::group`], and the processor has AVX2.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // Iterators take closures.
unsafe fn bytes<const R: usize, const T: usize>(
    weights: [*const u8; R],
    input: [*const InputGroup; T],
) -> [[[__m256i; 2]; T]; R] {
    // SAFETY: by contract.
    unsafe {
        let (ones, sign) = (_mm256_set1_epi16(1), _mm256_set1_epi8(-128));
        let mut sums = [[[_mm256_setzero_si256(); 2]; T]; R];
        for quad in 0..QUADS {
            for r in 0..R {
                for half in 0..2 {
                    let stored = _mm256_loadu_si256(weights[r].add(quad * 64 + half * 32).cast());
                    let weight = _mm256_xor_si256(stored, sign);
                    let magnitude = _mm256_abs_epi8(weight);
                    for t in 0..T {
                        let x = (&raw const (*input[t]).values).cast::<i32>().add(quad).read_unaligned();
                        let x = _mm256_sign_epi8(_mm256_set1_epi32(x), weight);
                        let products = _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, x), ones);
                        sums[r][t][half] = _mm256_add_epi32(sums[r][t][half], products);
                    }
                }
            }
        }
        sums
    }
}

/// Products of nibbles are so small that eight pairs of them stay within 16 bits: 8 * 2 * 15 * 127 < 2^15.
///
/// # Safety
/// As [`Dot::group`], and the processor has AVX2.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // Iterators take closures.
unsafe fn nibbles<W: Stored, const R: usize, const T: usize>(
    weights: [*const u8; R],
    input: [*const InputGroup; T],
) -> [[[__m256i; 2]; T]; R] {
    const RUN: usize = 8;
    // SAFETY: by contract.
    unsafe {
        let (ones, mask) = (_mm256_set1_epi16(1), _mm256_set1_epi8(15));
        let mut sums = [[[_mm256_setzero_si256(); 2]; T]; R];
        for t in 0..T {
            for r in 0..R {
                sums[r][t] = [_mm256_set1_epi32((*input[t]).correction); 2];
            }
        }
        for run in 0..QUADS / RUN {
            for r in 0..R {
                for half in 0..2 {
                    let mut shorts = [_mm256_setzero_si256(); T];
                    for pair in run * RUN / 2..(run + 1) * RUN / 2 {
                        let (low, high) = if W::FORM == Form::Nibbles {
                            let packed = _mm256_loadu_si256(weights[r].add(pair * 64 + half * 32).cast());
                            let high = _mm256_srli_epi16::<4>(packed);
                            (_mm256_and_si256(packed, mask), _mm256_and_si256(high, mask))
                        } else {
                            let at = weights[r].add(pair * 128 + half * 32);
                            (_mm256_loadu_si256(at.cast()), _mm256_loadu_si256(at.add(64).cast()))
                        };
                        for t in 0..T {
                            let x = (&raw const (*input[t]).values).cast::<i32>().add(2 * pair);
                            let first = _mm256_set1_epi32(x.read_unaligned());
                            let second = _mm256_set1_epi32(x.add(1).read_unaligned());
                            shorts[t] = _mm256_add_epi16(shorts[t], _mm256_maddubs_epi16(low, first));
                            shorts[t] = _mm256_add_epi16(shorts[t], _mm256_maddubs_epi16(high, second));
                        }
                    }
                    for t in 0..T {
                        let products = _mm256_madd_epi16(shorts[t], ones);
                        sums[r][t][half] = _mm256_add_epi32(sums[r][t][half], products);
                    }
                }
            }
        }
        sums
    }
}

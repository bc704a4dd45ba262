use std::arch::{asm, x86_64::*};

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
    const TILE_TOKENS: usize = 4;
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

/// Weights go as their upper and their lower four bits, which are multiplied as nibbles are: with whole bytes the sum of two
/// products would need more than 16 bits. That takes two products instead of one, but neither the signs of weights moved
/// to activations nor, each time, a step from 16 bits to 32; and those need the same two ports that products do.
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
        let mask = _mm256_set1_epi8(15);
        let mut sums = [[[_mm256_setzero_si256(); 2]; T]; R];
        for r in 0..R {
            // The sums of one half of the rows at a time stay in registers.
            for half in opaque(0)..opaque(2) {
                let mut lanes = corrections(input);
                for run in opaque(0)..opaque(QUADS / RUN) {
                    let mut low_shorts = [_mm256_setzero_si256(); T];
                    let mut high_shorts = [_mm256_setzero_si256(); T];
                    for quad in opaque(run * RUN)..opaque((run + 1) * RUN) {
                        let stored = _mm256_loadu_si256(weights[r].add(quad * 64 + half * 32).cast());
                        let low = _mm256_and_si256(stored, mask);
                        let high = _mm256_and_si256(_mm256_srli_epi16::<4>(stored), mask);
                        for t in 0..T {
                            let x = _mm256_set1_epi32(quad_of(input[t], quad));
                            low_shorts[t] = _mm256_add_epi16(low_shorts[t], _mm256_maddubs_epi16(low, x));
                            high_shorts[t] = _mm256_add_epi16(high_shorts[t], _mm256_maddubs_epi16(high, x));
                        }
                    }
                    for t in 0..T {
                        lanes[t] = add_shorts(lanes[t], low_shorts[t], 1);
                        lanes[t] = add_shorts(lanes[t], high_shorts[t], 16);
                    }
                }
                for t in 0..T {
                    sums[r][t][half & 1] = lanes[t];
                }
            }
        }
        sums
    }
}

/// The same number, of which the compiler knows nothing. A loop to it stays a loop: unrolled, all quads of a group would be
/// interleaved, with more weights and columns in work than there are registers.
#[inline(always)]
fn opaque(number: usize) -> usize {
    let mut number = number;
    // SAFETY: no instruction at all.
    unsafe { asm!("/* {0} */", inout(reg) number, options(pure, nomem, nostack, preserves_flags)) };
    number
}

/// Quads of nibbles whose products are added in 16 bits: 8 * 2 * 15 * 127 < 2^15.
const RUN: usize = 8;

/// # Safety
/// The group can be read and has such a quad.
#[inline(always)]
unsafe fn quad_of(group: *const InputGroup, quad: usize) -> i32 {
    // SAFETY: by contract.
    unsafe { (&raw const (*group).values).cast::<i32>().add(quad).read_unaligned() }
}

/// What the sums begin with.
///
/// # Safety
/// The groups can be read, and the processor has AVX2.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // Iterators take closures.
unsafe fn corrections<const T: usize>(input: [*const InputGroup; T]) -> [__m256i; T] {
    // SAFETY: by contract.
    unsafe {
        let mut lanes = [_mm256_setzero_si256(); T];
        for t in 0..T {
            lanes[t] = _mm256_set1_epi32((*input[t]).correction);
        }
        lanes
    }
}

/// Adds neighbours, `times` times, to the 32 bits that they cover.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn add_shorts(lanes: __m256i, shorts: __m256i, times: i16) -> __m256i {
    // SAFETY: by contract.
    unsafe { _mm256_add_epi32(lanes, _mm256_madd_epi16(shorts, _mm256_set1_epi16(times))) }
}

/// # Safety
/// As [`Dot::group`], and the processor has AVX2.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // Iterators take closures.
unsafe fn nibbles<W: Stored, const R: usize, const T: usize>(
    weights: [*const u8; R],
    input: [*const InputGroup; T],
) -> [[[__m256i; 2]; T]; R] {
    // SAFETY: by contract.
    unsafe {
        let mask = _mm256_set1_epi8(15);
        let mut sums = [[[_mm256_setzero_si256(); 2]; T]; R];
        for r in 0..R {
            for half in opaque(0)..opaque(2) {
                let mut lanes = corrections(input);
                for run in opaque(0)..opaque(QUADS / RUN) {
                    let mut shorts = [_mm256_setzero_si256(); T];
                    for pair in opaque(run * RUN / 2)..opaque((run + 1) * RUN / 2) {
                        let (low, high) = if W::FORM == Form::Nibbles {
                            let packed = _mm256_loadu_si256(weights[r].add(pair * 64 + half * 32).cast());
                            let high = _mm256_srli_epi16::<4>(packed);
                            (_mm256_and_si256(packed, mask), _mm256_and_si256(high, mask))
                        } else {
                            let at = weights[r].add(pair * 128 + half * 32);
                            (_mm256_loadu_si256(at.cast()), _mm256_loadu_si256(at.add(64).cast()))
                        };
                        for t in 0..T {
                            let first = _mm256_set1_epi32(quad_of(input[t], 2 * pair));
                            let second = _mm256_set1_epi32(quad_of(input[t], 2 * pair + 1));
                            shorts[t] = _mm256_add_epi16(shorts[t], _mm256_maddubs_epi16(low, first));
                            shorts[t] = _mm256_add_epi16(shorts[t], _mm256_maddubs_epi16(high, second));
                        }
                    }
                    for t in 0..T {
                        lanes[t] = add_shorts(lanes[t], shorts[t], 1);
                    }
                }
                for t in 0..T {
                    sums[r][t][half & 1] = lanes[t];
                }
            }
        }
        sums
    }
}

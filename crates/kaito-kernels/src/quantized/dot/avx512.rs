use std::arch::x86_64::*;

use super::{Dot, DotKernel, Form, PackedGroup, QUADS, Stored, UnpackedGroup};
use crate::quantized::{BLOCK_ROWS, SCALE_BYTES, input::InputGroup};

/// AVX-512 F, VL and VNNI.
#[derive(Clone, Copy)]
pub(super) struct Avx512Vnni(());

/// # Safety
/// The processor has the features named here.
#[target_feature(enable = "avx512f,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn run<K: DotKernel>(kernel: K) -> K::Output {
    kernel.run(Avx512Vnni(()))
}

// SAFETY of every block below: a value of `Avx512Vnni` exists only inside `run`, whose caller made sure of the
// instructions; what pointers need is the methods' own contract.
impl Dot for Avx512Vnni {
    type Ints = __m512i;
    type Floats = __m512;
    // 16 sums of integers, 4 vectors of weights, a mask and four columns of a token.
    const TILE_BLOCKS: usize = 2;
    const TILE_TOKENS: usize = 8;
    const UNPACK_ONCE: bool = false;
    const PREFETCH_BYTES_FROM: Option<usize> = Some(6);
    const PREFETCH_NIBBLES_FROM: Option<usize> = Some(2);

    #[inline(always)]
    fn call<K: DotKernel>(self, kernel: K) -> K::Output {
        // SAFETY: see above.
        unsafe { run(kernel) }
    }

    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // Iterators take closures.
    unsafe fn group<W: Stored, const R: usize, const T: usize>(
        self,
        weights: [*const u8; R],
        input: [*const InputGroup; T],
    ) -> [[__m512i; T]; R] {
        // SAFETY: see above. A group has `QUADS` quads of 4 bytes a token and of 64 (packed: 32) bytes a block of rows.
        unsafe {
            let mask = _mm512_set1_epi8(15);
            let mut sums = [[_mm512_setzero_si512(); T]; R];
            // Each addition waits some cycles for the one before it: where there are few sums, every other quad has its own.
            let mut odd = [[_mm512_setzero_si512(); T]; R];
            for t in 0..T {
                let correction = _mm512_set1_epi32((*input[t]).correction);
                for r in 0..R {
                    sums[r][t] = correction;
                }
            }
            for pair in 0..QUADS / 2 {
                let mut low = [_mm512_setzero_si512(); R];
                let mut high = [_mm512_setzero_si512(); R];
                for r in 0..R {
                    if W::FORM == Form::Nibbles {
                        let packed = _mm512_loadu_si512(weights[r].add(pair * 64).cast());
                        low[r] = _mm512_and_si512(packed, mask);
                        high[r] = _mm512_and_si512(_mm512_srli_epi32::<4>(packed), mask);
                    } else {
                        low[r] = _mm512_loadu_si512(weights[r].add(pair * 128).cast());
                        high[r] = _mm512_loadu_si512(weights[r].add(pair * 128 + 64).cast());
                    }
                }
                for t in 0..T {
                    let x = (&raw const (*input[t]).values).cast::<i32>().add(2 * pair);
                    let first = _mm512_set1_epi32(x.read_unaligned());
                    for r in 0..R {
                        sums[r][t] = _mm512_dpbusd_epi32(sums[r][t], low[r], first);
                    }
                    let second = _mm512_set1_epi32(x.add(1).read_unaligned());
                    for r in 0..R {
                        if R * T <= 4 {
                            odd[r][t] = _mm512_dpbusd_epi32(odd[r][t], high[r], second);
                        } else {
                            sums[r][t] = _mm512_dpbusd_epi32(sums[r][t], high[r], second);
                        }
                    }
                }
            }
            if R * T <= 4 {
                for t in 0..T {
                    for r in 0..R {
                        sums[r][t] = _mm512_add_epi32(sums[r][t], odd[r][t]);
                    }
                }
            }
            sums
        }
    }

    #[inline(always)]
    fn unpack(self, source: &PackedGroup, target: &mut UnpackedGroup) {
        // SAFETY: see above. Each 64 bytes make 128.
        unsafe {
            let mask = _mm512_set1_epi8(15);
            for pair in 0..QUADS / 2 {
                let packed = _mm512_loadu_si512(source.as_ptr().add(pair * 64).cast());
                let high = _mm512_srli_epi32::<4>(packed);
                let target = target.as_mut_ptr().add(pair * 128);
                _mm512_storeu_si512(target.cast(), _mm512_and_si512(packed, mask));
                _mm512_storeu_si512(target.add(64).cast(), _mm512_and_si512(high, mask));
            }
        }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    fn load(self, lanes: &[f32; BLOCK_ROWS]) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_loadu_ps(lanes.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, lanes: &mut [f32; BLOCK_ROWS], v: __m512) {
        // SAFETY: see above.
        unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), v) }
    }

    #[inline(always)]
    fn scales(self, scales: &[u8; SCALE_BYTES]) -> __m512 {
        // SAFETY: see above.
        unsafe {
            let halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(scales.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
        }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn add_scaled(self, ints: __m512i, scales: __m512, sums: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_fmadd_ps(_mm512_cvtepi32_ps(ints), scales, sums) }
    }
}

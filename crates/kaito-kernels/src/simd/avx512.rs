use std::arch::x86_64::*;

use super::{Kernel, Simd, TileRow, one_instruction};

/// AVX-512 F, BW and VL, with AVX2, FMA and F16C. VL lets halves of the upper 16 registers be used as they are; without it
/// the compiler keeps sums out of these registers.
#[derive(Clone, Copy)]
pub(super) struct Avx512(());

impl Avx512 {
    /// # Safety
    /// The processor has the features of [`run`].
    #[inline(always)]
    pub(super) unsafe fn new() -> Self {
        Self(())
    }
}

/// # Safety
/// The processor has the features named here.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx512(()))
}

/// # Safety
/// The processor has AVX-512 F.
#[inline(always)]
unsafe fn add_halves(v: __m512) -> __m256 {
    // SAFETY: by contract.
    unsafe {
        let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(v)));
        _mm256_add_ps(_mm512_castps512_ps256(v), high)
    }
}

/// # Safety
/// The processor has AVX-512 F.
#[inline(always)]
unsafe fn upper_halves(v: __m512) -> __m512i {
    // SAFETY: by contract.
    unsafe { _mm512_srli_epi32::<16>(_mm512_castps_si512(v)) }
}

// SAFETY of every block below: a value of `Avx512` exists only inside `run`, whose caller made sure of the
// instructions; what pointers need is the methods' own contract.
impl Simd for Avx512 {
    type Vector = __m512;
    const LANES: usize = 16;
    const MANY_REGISTERS: bool = true;

    #[inline(always)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: see above.
        unsafe { run(kernel) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_loadu_ps(p) }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u8) -> __m512 {
        // SAFETY: see above.
        unsafe {
            let halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
        }
    }

    #[inline(always)]
    unsafe fn load_f16(self, p: *const u8) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }

    #[inline(always)]
    unsafe fn load_i8(self, p: *const i8) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: __m512) {
        // SAFETY: see above.
        unsafe { _mm512_storeu_ps(p, v) }
    }

    one_instruction! {
        add: _mm512_add_ps,
        sub: _mm512_sub_ps,
        mul: _mm512_mul_ps,
        div: _mm512_div_ps,
        max: _mm512_max_ps,
        min: _mm512_min_ps,
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn sum(self, v: __m512) -> f32 {
        // SAFETY: see above.
        unsafe { super::avx2::sum(add_halves(v)) }
    }

    #[inline(always)]
    fn sum4(self, v: [__m512; 4]) -> [f32; 4] {
        // SAFETY: see above.
        unsafe { super::avx2::sum4([add_halves(v[0]), add_halves(v[1]), add_halves(v[2]), add_halves(v[3])]) }
    }

    #[inline(always)]
    fn greatest(self, v: __m512) -> f32 {
        // SAFETY: see above.
        unsafe { _mm512_reduce_max_ps(v) }
    }

    #[inline(always)]
    fn round_to_bf16(self, v: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe {
            let bits = _mm512_castps_si512(v);
            let is_odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(is_odd, _mm512_set1_epi32(0x7fff)));
            let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
            let result = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v), quiet);
            _mm512_castsi512_ps(_mm512_and_si512(result, _mm512_set1_epi32(0xffff_0000_u32.cast_signed())))
        }
    }

    #[inline(always)]
    fn truncate_to_bf16(self, v: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe {
            let mask = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
            _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(v), mask))
        }
    }

    #[inline(always)]
    fn store_bf16(self, target: &mut [u32], v: __m512) {
        assert!(target.len() >= Self::LANES / 2);
        // SAFETY: see above; the target has the 32 bytes.
        unsafe {
            let halves = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(_mm512_castps_si512(v)));
            _mm256_storeu_si256(target.as_mut_ptr().cast(), halves);
        }
    }

    #[inline(always)]
    fn pack_bf16(self, numbers: &[f32; 32], target: &mut TileRow) {
        /// The odd 16-bit words of both vectors: the upper halves of their elements.
        const ODD: [u16; 32] = {
            let mut words = [0; 32];
            let mut i = 0;
            while i < 32 {
                words[i as usize] = 2 * i + 1;
                i += 1;
            }
            words
        };
        // SAFETY: see above; 16 numbers are 64 bytes, as the indices and the target are.
        unsafe {
            let half = _mm512_set1_epi32(0x8000);
            let low = _mm512_add_epi32(_mm512_loadu_si512(numbers.as_ptr().cast()), half);
            let high = _mm512_add_epi32(_mm512_loadu_si512(numbers[16..].as_ptr().cast()), half);
            let words = _mm512_permutex2var_epi16(low, _mm512_loadu_si512(ODD.as_ptr().cast()), high);
            _mm512_storeu_si512(target.0.as_mut_ptr().cast(), words);
        }
    }

    #[inline(always)]
    fn split_f16(self, weights: &[u8; 64], high: &mut TileRow, low: &mut TileRow) {
        // SAFETY: see above; all three have 64 bytes.
        unsafe {
            let w = _mm512_loadu_si512(weights.as_ptr().cast());
            let infinity = _mm512_set1_epi16(0x7c00);
            let magnitude = _mm512_and_si512(w, _mm512_set1_epi16(0x7fff));
            let is_not_infinite = _mm512_cmpneq_epi16_mask(magnitude, infinity);
            // Fours of elements in turn, as `packus` puts them together again.
            let turns = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), w);
            let halves = [_mm512_castsi512_si256(turns), _mm512_extracti64x4_epi64::<1>(turns)];
            let [a, b] = [_mm512_cvtph_ps(halves[0]), _mm512_cvtph_ps(halves[1])];
            let first = _mm512_packus_epi32(upper_halves(a), upper_halves(b));
            let [a, b] = [_mm512_sub_ps(a, self.truncate_to_bf16(a)), _mm512_sub_ps(b, self.truncate_to_bf16(b))];
            let rest = _mm512_maskz_packus_epi32(is_not_infinite, upper_halves(a), upper_halves(b));
            _mm512_store_si512(high.0.as_mut_ptr().cast(), first);
            _mm512_store_si512(low.0.as_mut_ptr().cast(), rest);
        }
    }

    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // Iterators take closures.
    fn transpose(self, source: &[TileRow; 16], target: &mut [TileRow; 16]) {
        // SAFETY: see above; rows are 64 bytes.
        unsafe {
            let zero = _mm512_setzero_si512();
            let (mut a, mut b) = ([zero; 16], [zero; 16]);
            for i in 0..16 {
                a[i] = _mm512_load_si512(source[i].0.as_ptr().cast());
            }
            // Within each quarter of a vector: pairs of rows, then fours.
            for i in 0..8 {
                b[2 * i] = _mm512_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
                b[2 * i + 1] = _mm512_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
            }
            for i in 0..4 {
                a[4 * i] = _mm512_unpacklo_epi64(b[4 * i], b[4 * i + 2]);
                a[4 * i + 1] = _mm512_unpackhi_epi64(b[4 * i], b[4 * i + 2]);
                a[4 * i + 2] = _mm512_unpacklo_epi64(b[4 * i + 1], b[4 * i + 3]);
                a[4 * i + 3] = _mm512_unpackhi_epi64(b[4 * i + 1], b[4 * i + 3]);
            }
            // Now quarter `q` of `a[4 * i + c]` has column `4 * q + c` of rows `4 * i ..`.
            for c in 0..4 {
                let even01 = _mm512_shuffle_i32x4::<0x88>(a[c], a[4 + c]);
                let odd01 = _mm512_shuffle_i32x4::<0xdd>(a[c], a[4 + c]);
                let even23 = _mm512_shuffle_i32x4::<0x88>(a[8 + c], a[12 + c]);
                let odd23 = _mm512_shuffle_i32x4::<0xdd>(a[8 + c], a[12 + c]);
                b[c] = _mm512_shuffle_i32x4::<0x88>(even01, even23);
                b[4 + c] = _mm512_shuffle_i32x4::<0x88>(odd01, odd23);
                b[8 + c] = _mm512_shuffle_i32x4::<0xdd>(even01, even23);
                b[12 + c] = _mm512_shuffle_i32x4::<0xdd>(odd01, odd23);
            }
            for i in 0..16 {
                _mm512_store_si512(target[i].0.as_mut_ptr().cast(), b[i]);
            }
        }
    }

    #[inline(always)]
    fn scale_by_exp2(self, v: __m512, n: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_scalef_ps(v, n) }
    }

    #[inline(always)]
    fn exp2_integral(self, n: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe {
            let exponent = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent))
        }
    }
}

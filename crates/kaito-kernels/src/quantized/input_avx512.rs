//! Quantising activations by AVX-512: the same bits as the portable definition in [`super::input`] and [`super::rotation`].

use std::arch::x86_64::*;

use super::{
    GROUP,
    input::{Factors, Numbers, ZERO_POINT},
    weights::{ROUND, TINY},
};

/// Vectors of a group.
const VECTORS: usize = GROUP / 16;

/// Rotates and quantises a group. Numbers go where they are to be: copied, they would be read back before they can be.
///
/// # Safety
/// The processor has AVX-512 F.
#[target_feature(enable = "avx512f")]
#[allow(clippy::needless_range_loop)] // Iterators take closures.
pub(super) unsafe fn quantize_group(values: &[f32; GROUP], numbers: &mut Numbers) -> Factors {
    let mut v = [_mm512_setzero_ps(); VECTORS];
    let part = _mm512_set1_ps(1.0 / GROUP as f32);
    for i in 0..VECTORS {
        // SAFETY: a group has as many vectors.
        v[i] = unsafe { _mm512_mul_ps(_mm512_loadu_ps(values.as_ptr().add(16 * i)), part) };
    }
    // Elements 64, 32 and 16 apart are in vectors 4, 2 and 1 apart.
    for apart in [4, 2, 1] {
        let before = v;
        for i in 0..VECTORS {
            v[i] = if i & apart == 0 {
                _mm512_add_ps(before[i], before[i + apart])
            } else {
                _mm512_sub_ps(before[i - apart], before[i])
            };
        }
    }
    // Closer ones change places, and the second of each is subtracted: a product with 1 or -1 rounds nothing.
    for i in 0..VECTORS {
        let mut x = v[i];
        x = _mm512_fmadd_ps(x, signs(0xff00), _mm512_shuffle_f32x4::<0b01_00_11_10>(x, x));
        x = _mm512_fmadd_ps(x, signs(0xf0f0), _mm512_shuffle_f32x4::<0b10_11_00_01>(x, x));
        x = _mm512_fmadd_ps(x, signs(0xcccc), _mm512_permute_ps::<0b01_00_11_10>(x));
        x = _mm512_fmadd_ps(x, signs(0xaaaa), _mm512_permute_ps::<0b10_11_00_01>(x));
        v[i] = x;
    }
    let mut greatest = _mm512_setzero_si512();
    for x in v {
        greatest = _mm512_max_epu32(greatest, _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fff_ffff)));
    }
    let bits = _mm512_reduce_max_epu32(greatest);
    let magnitude = f32::from_bits(bits);
    if bits >= f32::INFINITY.to_bits() || magnitude < TINY {
        return Factors::of_zeros(bits, numbers);
    }
    let inverse = _mm512_set1_ps(127.0 / magnitude);
    let mut sums = _mm512_setzero_si512();
    for i in 0..VECTORS {
        let rounded = _mm512_add_ps(_mm512_mul_ps(v[i], inverse), _mm512_set1_ps(ROUND));
        let ints = _mm512_sub_epi32(_mm512_castps_si512(rounded), _mm512_set1_epi32(ROUND.to_bits() as i32));
        sums = _mm512_add_epi32(sums, ints);
        // SAFETY: a group has as many vectors.
        unsafe { _mm_storeu_si128(numbers.0.as_mut_ptr().add(16 * i).cast(), _mm512_cvtepi32_epi8(ints)) };
    }
    Factors { scale: magnitude / 127.0, correction: -ZERO_POINT * _mm512_reduce_add_epi32(sums) }
}

/// -1 in these lanes and 1 in the others.
#[inline]
#[target_feature(enable = "avx512f")]
fn signs(negative: __mmask16) -> __m512 {
    _mm512_mask_blend_ps(negative, _mm512_set1_ps(1.0), _mm512_set1_ps(-1.0))
}

//! Quantising activations by AVX-512: the same bits as the portable definition in [`super::input_groups`] and [`super::rotation`].

use std::arch::x86_64::*;

use super::{
    GROUP,
    input::{Numbers, SUBGROUP_SUMS, ZERO_POINT},
    input_groups::{Factors, scale_of_zeros, subgroup_sums},
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

/// Quantises a group that is not rotated, of which `PARTS` parts have a scale each: see [`super::input_groups`].
///
/// # Safety
/// The processor has AVX-512 F.
#[target_feature(enable = "avx512f")]
#[allow(clippy::needless_range_loop)] // Iterators take closures.
pub(super) unsafe fn quantize_unrotated<const PARTS: usize>(
    values: &[f32; GROUP],
    numbers: &mut Numbers,
) -> ([f32; PARTS], [i32; SUBGROUP_SUMS]) {
    let mut scales = [0.0; PARTS];
    let mut ints = [_mm512_setzero_si512(); VECTORS];
    for part in 0..PARTS {
        let of_part = part * VECTORS / PARTS..(part + 1) * VECTORS / PARTS;
        let mut greatest = _mm512_setzero_si512();
        for i in of_part.clone() {
            // SAFETY: a group has as many vectors.
            let x = unsafe { _mm512_loadu_si512(values.as_ptr().add(16 * i).cast()) };
            greatest = _mm512_max_epu32(greatest, _mm512_and_si512(x, _mm512_set1_epi32(0x7fff_ffff)));
        }
        let bits = _mm512_reduce_max_epu32(greatest);
        let magnitude = f32::from_bits(bits);
        if bits >= f32::INFINITY.to_bits() || magnitude < TINY {
            scales[part] = scale_of_zeros(bits);
            continue;
        }
        scales[part] = magnitude / 127.0;
        let inverse = _mm512_set1_ps(127.0 / magnitude);
        for i in of_part {
            // SAFETY: as above.
            let x = unsafe { _mm512_loadu_ps(values.as_ptr().add(16 * i)) };
            let rounded = _mm512_add_ps(_mm512_mul_ps(x, inverse), _mm512_set1_ps(ROUND));
            ints[i] = _mm512_sub_epi32(_mm512_castps_si512(rounded), _mm512_set1_epi32(ROUND.to_bits() as i32));
        }
    }
    for i in 0..VECTORS {
        // SAFETY: a group has as many vectors.
        unsafe { _mm_storeu_si128(numbers.0.as_mut_ptr().add(16 * i).cast(), _mm512_cvtepi32_epi8(ints[i])) };
    }
    (scales, subgroup_sums(&sums_of_vectors(ints)))
}

/// The sum of each vector's elements.
#[inline]
#[target_feature(enable = "avx512f")]
fn sums_of_vectors(v: [__m512i; VECTORS]) -> [i32; VECTORS] {
    // Each step adds two vectors' elements in half as many, until a vector has one in each quarter, of four vectors.
    let pair = |a, b| _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    let four = |a, b| _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    let (first, second) = (four(pair(v[0], v[1]), pair(v[2], v[3])), four(pair(v[4], v[5]), pair(v[6], v[7])));
    // Quarters 0 and 1 of the first, then of the second; likewise 2 and 3.
    let halves = _mm512_add_epi32(
        _mm512_shuffle_i64x2::<0b01_00_01_00>(first, second),
        _mm512_shuffle_i64x2::<0b11_10_11_10>(first, second),
    );
    let mut lanes = [0i32; 16];
    // SAFETY: 16 elements are a vector.
    unsafe { _mm512_storeu_si512(lanes.as_mut_ptr().cast(), halves) };
    std::array::from_fn(|i| lanes[i / 4 * 8 + i % 4] + lanes[i / 4 * 8 + 4 + i % 4])
}

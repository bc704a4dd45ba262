use std::arch::x86_64::*;

use super::{Dot, DotKernel, QUADS, UnpackedGroup};
use crate::quantized::{
    BLOCK_ROWS, SCALE_BYTES,
    input::InputGroups,
    int4::{CODEBOOK, NIBBLE_BYTES, SIDE_BYTES},
};
use crate::simd::opaque;

/// AVX2 with FMA. A vector has eight rows: half a block.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

/// # Safety
/// The processor has the features named here.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn run<K: DotKernel>(kernel: K) -> K::Output {
    kernel.run(Avx2(()))
}

// SAFETY of every block below: a value of `Avx2` exists only inside `run`, whose caller made sure of the instructions;
// what pointers need is the methods' own contract.
impl Dot for Avx2 {
    type Ints = [__m256i; 2];
    type Floats = [__m256; 2];
    const TILE_BLOCKS: usize = 1;
    const TILE_TOKENS: usize = 4;
    const PREFETCH_FROM: Option<usize> = Some(1);

    #[inline(always)]
    fn call<K: DotKernel>(self, kernel: K) -> K::Output {
        // SAFETY: see above.
        unsafe { run(kernel) }
    }

    #[inline(always)]
    unsafe fn group<const R: usize, const T: usize, const Q: usize>(
        self,
        weights: [*const u8; R],
        input: InputGroups,
    ) -> [[[__m256i; 2]; T]; R] {
        // SAFETY: see above.
        unsafe { bytes::<R, T, Q>(weights, input) }
    }

    #[inline(always)]
    fn unpack(self, nibbles: &[u8; NIBBLE_BYTES], side: &[u8; SIDE_BYTES], target: &mut UnpackedGroup) {
        // SAFETY: see above.
        unsafe { unpack(nibbles, side, target) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> [__m256; 2] {
        // SAFETY: see above.
        unsafe { [_mm256_set1_ps(x); 2] }
    }

    #[inline(always)]
    fn load(self, lanes: &[f32; BLOCK_ROWS]) -> [__m256; 2] {
        let p = lanes.as_ptr();
        // SAFETY: see above.
        unsafe { [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))] }
    }

    #[inline(always)]
    fn store(self, lanes: &mut [f32; BLOCK_ROWS], v: [__m256; 2]) {
        let p = lanes.as_mut_ptr();
        // SAFETY: see above.
        unsafe {
            _mm256_storeu_ps(p, v[0]);
            _mm256_storeu_ps(p.add(8), v[1]);
        }
    }

    #[inline(always)]
    fn scales(self, scales: &[u8; SCALE_BYTES]) -> [__m256; 2] {
        let p = scales.as_ptr();
        // SAFETY: see above.
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(16).cast()));
            let widen = (_mm256_slli_epi32::<16>(low), _mm256_slli_epi32::<16>(high));
            [_mm256_castsi256_ps(widen.0), _mm256_castsi256_ps(widen.1)]
        }
    }

    #[inline(always)]
    fn halves(self, halves: &[u8; 2 * BLOCK_ROWS]) -> [__m256; 2] {
        let p = halves.as_ptr();
        // SAFETY: see above.
        unsafe { [_mm256_cvtph_ps(_mm_loadu_si128(p.cast())), _mm256_cvtph_ps(_mm_loadu_si128(p.add(16).cast()))] }
    }

    #[inline(always)]
    fn signed_bytes(self, bytes: &[u8; BLOCK_ROWS]) -> [__m256i; 2] {
        // SAFETY: see above.
        unsafe {
            let bytes = _mm_loadu_si128(bytes.as_ptr().cast());
            [_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(bytes))]
        }
    }

    #[inline(always)]
    fn fma(self, a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: see above.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }

    #[inline(always)]
    fn mul(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: see above.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn corrected(self, ints: &[i32; BLOCK_ROWS], correction: i32) -> [__m256i; 2] {
        let p = ints.as_ptr();
        // SAFETY: see above.
        unsafe {
            let correction = _mm256_set1_epi32(correction);
            let (low, high) = (_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(8).cast()));
            [_mm256_add_epi32(low, correction), _mm256_add_epi32(high, correction)]
        }
    }

    #[inline(always)]
    fn add_product(self, a: [__m256i; 2], b: [__m256i; 2], c: [__m256i; 2]) -> [__m256i; 2] {
        // SAFETY: see above.
        unsafe {
            [
                _mm256_add_epi32(_mm256_mullo_epi32(a[0], b[0]), c[0]),
                _mm256_add_epi32(_mm256_mullo_epi32(a[1], b[1]), c[1]),
            ]
        }
    }

    #[inline(always)]
    fn floats(self, ints: [__m256i; 2]) -> [__m256; 2] {
        // SAFETY: see above.
        unsafe { [_mm256_cvtepi32_ps(ints[0]), _mm256_cvtepi32_ps(ints[1])] }
    }
}

/// Bytes are multiplied as numbers of 16 bits: the sum of two products of bytes would not fit in the 16 bits that `vpmaddubsw` has
/// for it. A vector has four columns of eight rows; even and odd columns are widened apart, so that a row's products are in one
/// lane.
///
/// # Safety
/// As [`Dot::group`], and the processor has AVX2.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // Iterators take closures.
unsafe fn bytes<const R: usize, const T: usize, const Q: usize>(
    weights: [*const u8; R],
    input: InputGroups,
) -> [[[__m256i; 2]; T]; R] {
    // SAFETY: by contract.
    unsafe {
        let columns = widen::<T, Q>(input);
        let even = _mm256_set1_epi16(255);
        let mut sums = [[[_mm256_setzero_si256(); 2]; T]; R];
        for r in 0..R {
            let mut lanes = corrections::<T>(input);
            for pair in opaque(0)..opaque(Q / 2) {
                for quad in [2 * pair, 2 * pair + 1] {
                    let stored = load_halves(weights[r].add(quad * 64));
                    let evens = both_and(stored, even);
                    let odds = [_mm256_srli_epi16::<8>(stored[0]), _mm256_srli_epi16::<8>(stored[1])];
                    for t in 0..T {
                        add_words(&mut lanes[t], evens, *columns[t].0.as_ptr().add(quad));
                        add_words(&mut lanes[t], odds, *columns[t].1.as_ptr().add(quad));
                    }
                }
            }
            sums[r] = lanes;
        }
        sums
    }
}

/// Adds the products of two columns of a token, in one number, with their weights of both halves of the rows.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn add_words(sums: &mut [__m256i; 2], weights: [__m256i; 2], columns: i32) {
    // SAFETY: by contract.
    unsafe {
        let x = _mm256_set1_epi32(columns);
        for half in 0..2 {
            sums[half] = _mm256_add_epi32(sums[half], _mm256_madd_epi16(weights[half], x));
        }
    }
}

/// For each quad of a group its even columns and its odd ones, two numbers of 16 bits each.
#[derive(Clone, Copy)]
#[repr(align(32))]
struct Columns([i32; QUADS], [i32; QUADS]);

/// # Safety
/// The groups can be read, and the processor has AVX2.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // Iterators take closures.
unsafe fn widen<const T: usize, const Q: usize>(input: InputGroups) -> [Columns; T] {
    let mut columns = [Columns([0; QUADS], [0; QUADS]); T];
    // SAFETY: by contract; eight quads are 32 bytes, and where there are only four, they are read alone.
    unsafe {
        for t in 0..T {
            for quad in (0..Q).step_by(8) {
                let p = input.numbers.add(t).cast::<i32>().add(quad);
                let values = if Q.is_multiple_of(8) {
                    _mm256_loadu_si256(p.cast())
                } else {
                    _mm256_castsi128_si256(_mm_loadu_si128(p.cast()))
                };
                let even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(values));
                _mm256_store_si256(columns[t].0.as_mut_ptr().add(quad).cast(), even);
                _mm256_store_si256(columns[t].1.as_mut_ptr().add(quad).cast(), _mm256_srai_epi16::<8>(values));
            }
        }
    }
    columns
}

/// What the sums begin with, for both halves of the rows.
///
/// # Safety
/// The groups can be read, and the processor has AVX2.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // Iterators take closures.
unsafe fn corrections<const T: usize>(input: InputGroups) -> [[__m256i; 2]; T] {
    // SAFETY: by contract.
    unsafe {
        let mut lanes = [[_mm256_setzero_si256(); 2]; T];
        for t in 0..T {
            lanes[t] = [_mm256_set1_epi32(*input.corrections.add(t)); 2];
        }
        lanes
    }
}

/// Both halves of a block's rows: 64 bytes.
///
/// # Safety
/// They can be read at `p`, and the processor has AVX2.
#[inline(always)]
unsafe fn load_halves(p: *const u8) -> [__m256i; 2] {
    // SAFETY: by contract.
    unsafe { [_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast())] }
}

/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn both_and(halves: [__m256i; 2], mask: __m256i) -> [__m256i; 2] {
    // SAFETY: by contract.
    unsafe { [_mm256_and_si256(halves[0], mask), _mm256_and_si256(halves[1], mask)] }
}

/// The codebook by byte shuffles, times multipliers of three bits by additions: see
/// [`int4::unpack`](crate::quantized::int4::unpack).
///
/// # Safety
/// The processor has AVX2.
#[target_feature(enable = "avx2")]
unsafe fn unpack(nibbles: &[u8; NIBBLE_BYTES], side: &[u8; SIDE_BYTES], target: &mut UnpackedGroup) {
    let target = target.as_mut_ptr().cast::<u8>();
    // SAFETY: the features are there by contract. After the scales a side has 16 bytes three times; each 64 bytes of nibbles make 128,
    // which are all of the target.
    unsafe {
        // A multiplier is 3 and what its two bits say.
        let one = _mm256_broadcastsi128_si256(_mm_loadu_si128(CODEBOOK.as_ptr().cast()));
        let two = _mm256_add_epi8(one, one);
        let three = _mm256_add_epi8(two, one);
        let nibble = _mm256_set1_epi8(15);
        // A byte of each of eight rows, four times: for each column of a quad.
        let four =
            _mm256_setr_epi32(0, 0x0404_0404, 0x0808_0808, 0x0c0c_0c0c, 0, 0x0404_0404, 0x0808_0808, 0x0c0c_0c0c);
        for half in 0..2 {
            let mut planes = [_mm256_setzero_si256(); 3];
            for (i, plane) in planes.iter_mut().enumerate() {
                let rows = _mm_loadl_epi64(side.as_ptr().add(SCALE_BYTES + i * BLOCK_ROWS + half * 8).cast());
                *plane = _mm256_shuffle_epi8(_mm256_cvtepu8_epi32(rows), four);
            }
            for subgroup in 0..8 {
                let magnitude = planes[subgroup / 4];
                let has_one = is_set(magnitude, 1 << (subgroup % 4 * 2));
                let has_two = is_set(magnitude, 2 << (subgroup % 4 * 2));
                let is_negative = is_set(planes[2], 1 << subgroup);
                for pair in [2 * subgroup, 2 * subgroup + 1] {
                    let packed = _mm256_loadu_si256(nibbles.as_ptr().add(pair * 64 + half * 32).cast());
                    let both = [packed, _mm256_srli_epi16::<4>(packed)];
                    for (i, indices) in both.into_iter().enumerate() {
                        let indices = _mm256_and_si256(indices, nibble);
                        let once = _mm256_and_si256(_mm256_shuffle_epi8(one, indices), has_one);
                        let twice = _mm256_and_si256(_mm256_shuffle_epi8(two, indices), has_two);
                        let product =
                            _mm256_add_epi8(_mm256_shuffle_epi8(three, indices), _mm256_add_epi8(once, twice));
                        let signed = _mm256_sub_epi8(_mm256_xor_si256(product, is_negative), is_negative);
                        let bytes = _mm256_xor_si256(signed, _mm256_set1_epi8(-128));
                        _mm256_storeu_si256(target.add(pair * 128 + i * 64 + half * 32).cast(), bytes);
                    }
                }
            }
        }
    }
}

/// All bits of the bytes that have `bit` set.
#[inline]
#[target_feature(enable = "avx2")]
fn is_set(bytes: __m256i, bit: u8) -> __m256i {
    let bit = _mm256_set1_epi8(bit as i8);
    _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit)
}

use std::arch::x86_64::*;

use super::{Dot, DotKernel, FactoredGroup, GROUP_BYTES, QUADS, Split, UnpackedGroup};
use crate::quantized::{
    BLOCK_ROWS, QUAD, SCALE_BYTES,
    input::{InputGroups, SumPair},
    int4::{BYTES, NIBBLE_BYTES, SIDE_BYTES},
    repacked::zero_point,
};

/// AVX-512 F, BW, VL, VNNI and VBMI.
#[derive(Clone, Copy)]
pub(super) struct Avx512Vnni(());

/// # Safety
/// The processor has the features named here.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi,avx2,fma,f16c")]
pub(super) unsafe fn run<K: DotKernel>(kernel: K) -> K::Output {
    kernel.run(Avx512Vnni(()))
}

// SAFETY of every block below: a value of `Avx512Vnni` exists only inside `run`, whose caller made sure of the
// instructions; what pointers need is the methods' own contract.
impl Dot for Avx512Vnni {
    type Ints = __m512i;
    type Floats = __m512;
    // 16 sums of integers, 4 vectors of weights and four columns of a token.
    const TILE_BLOCKS: usize = 2;
    const TILE_TOKENS: usize = 8;
    const PREFETCH_FROM: Option<usize> = Some(6);
    const UNPACKS_IN_REGISTERS: bool = true;

    #[inline(always)]
    fn call<K: DotKernel>(self, kernel: K) -> K::Output {
        // SAFETY: see above.
        unsafe { run(kernel) }
    }

    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // Iterators take closures.
    unsafe fn group<const R: usize, const T: usize, const Q: usize>(
        self,
        weights: [*const u8; R],
        input: InputGroups,
    ) -> [[__m512i; T]; R] {
        // SAFETY: see above. A quad has 4 bytes a token and 64 bytes a block of rows.
        unsafe {
            let mut sums = [[_mm512_setzero_si512(); T]; R];
            // Each addition waits some cycles for the one before it: where there are few sums, every other quad has its own.
            let mut odd = [[_mm512_setzero_si512(); T]; R];
            for t in 0..T {
                let correction = _mm512_set1_epi32(*input.corrections.add(t));
                for r in 0..R {
                    sums[r][t] = correction;
                }
            }
            for pair in 0..Q / 2 {
                let mut low = [_mm512_setzero_si512(); R];
                let mut high = [_mm512_setzero_si512(); R];
                for r in 0..R {
                    low[r] = _mm512_loadu_si512(weights[r].add(pair * 128).cast());
                    high[r] = _mm512_loadu_si512(weights[r].add(pair * 128 + 64).cast());
                }
                for t in 0..T {
                    let x = input.numbers.add(t).cast::<i32>().add(2 * pair);
                    let first = _mm512_set1_epi32(x.read());
                    for r in 0..R {
                        sums[r][t] = _mm512_dpbusd_epi32(sums[r][t], low[r], first);
                    }
                    let second = _mm512_set1_epi32(x.add(1).read());
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
    fn unpack(self, nibbles: &[u8; NIBBLE_BYTES], side: &[u8; SIDE_BYTES], target: &mut UnpackedGroup) {
        // SAFETY: see above.
        unsafe { unpack(nibbles, side, target) }
    }

    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // Iterators take closures.
    unsafe fn group_of_nibbles<const R: usize, const T: usize>(
        self,
        nibbles: [*const u8; R],
        sides: [*const u8; R],
        input: InputGroups,
    ) -> [[__m512i; T]; R] {
        // SAFETY: see above. A group has 16 pairs of quads, of 8 bytes a token and of 64 bytes a block of rows.
        unsafe {
            let tables = tables();
            let mut planes = [[_mm512_setzero_si512(); 3]; R];
            let mut sums = [[_mm512_setzero_si512(); T]; R];
            // Each addition waits some cycles for the one before it: where there are few sums, each quad of a pair has its own.
            let mut odd = [[_mm512_setzero_si512(); T]; R];
            for r in 0..R {
                planes[r] = multiplier_planes(sides[r]);
                for t in 0..T {
                    sums[r][t] = _mm512_set1_epi32(*input.corrections.add(t));
                }
            }
            for subgroup in 0..SUBGROUPS {
                let mut multipliers = [_mm512_setzero_si512(); R];
                for r in 0..R {
                    multipliers[r] = multiplier_bits(planes[r], subgroup);
                }
                for pair in 2 * subgroup..2 * subgroup + 2 {
                    let mut quads = [[_mm512_setzero_si512(); 2]; R];
                    for r in 0..R {
                        let packed = _mm512_loadu_si512(nibbles[r].add(pair * 64).cast());
                        quads[r] = weights_of_nibbles(tables, packed, multipliers[r]);
                    }
                    for t in 0..T {
                        let x = input.numbers.add(t).cast::<i32>().add(2 * pair);
                        let (first, second) = (_mm512_set1_epi32(x.read()), _mm512_set1_epi32(x.add(1).read()));
                        for r in 0..R {
                            sums[r][t] = _mm512_dpbusd_epi32(sums[r][t], quads[r][0], first);
                            if R * T <= 4 {
                                odd[r][t] = _mm512_dpbusd_epi32(odd[r][t], quads[r][1], second);
                            } else {
                                sums[r][t] = _mm512_dpbusd_epi32(sums[r][t], quads[r][1], second);
                            }
                        }
                    }
                }
            }
            if R * T <= 4 {
                for r in 0..R {
                    for t in 0..T {
                        sums[r][t] = _mm512_add_epi32(sums[r][t], odd[r][t]);
                    }
                }
            }
            sums
        }
    }

    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // Iterators take closures.
    unsafe fn packed_quads<const R: usize, const T: usize, const Q: usize, const BITS: usize>(
        self,
        quants: [*const u8; R],
        minima: bool,
        input: InputGroups,
    ) -> [[__m512i; T]; R] {
        // SAFETY: see above. Four quads have 16 bytes a token.
        unsafe {
            let mut sums = [[_mm512_setzero_si512(); T]; R];
            // Each addition waits some cycles for the one before it: where there are few sums, every other quad has its own.
            let mut odd = [[_mm512_setzero_si512(); T]; R];
            if !minima {
                for t in 0..T {
                    // Corrections are for the zero point 128.
                    let correction = _mm512_set1_epi32(*input.corrections.add(t));
                    let correction = match BITS {
                        4 => _mm512_srai_epi32::<4>(correction),
                        _ => _mm512_srai_epi32::<2>(correction),
                    };
                    for r in 0..R {
                        sums[r][t] = correction;
                    }
                }
            }
            for four in 0..Q / 4 {
                let mut quads = [[_mm512_setzero_si512(); 4]; R];
                for r in 0..R {
                    quads[r] = four_quads::<BITS>(quants[r].add(four * FOUR_QUADS * BITS / 8));
                }
                for i in 0..4 {
                    for t in 0..T {
                        let x = input.numbers.add(t).cast::<i32>().add(4 * four + i);
                        let x = _mm512_set1_epi32(x.read());
                        for r in 0..R {
                            if R * T <= 4 && i % 2 == 1 {
                                odd[r][t] = _mm512_dpbusd_epi32(odd[r][t], quads[r][i], x);
                            } else {
                                sums[r][t] = _mm512_dpbusd_epi32(sums[r][t], quads[r][i], x);
                            }
                        }
                    }
                }
            }
            if R * T <= 4 {
                for r in 0..R {
                    for t in 0..T {
                        sums[r][t] = _mm512_add_epi32(sums[r][t], odd[r][t]);
                    }
                }
            }
            sums
        }
    }

    #[inline(always)]
    fn unpack_repacked(self, bits: usize, quants: &[u8], offset: u8, target: &mut UnpackedGroup) {
        assert_eq!(quants.len(), GROUP_BYTES * bits / 8);
        // SAFETY: see above; there are as many bytes as a group of so many bits has.
        unsafe {
            match bits {
                4 => unpack_quads::<4>(quants.as_ptr(), offset, target),
                6 => unpack_quads::<6>(quants.as_ptr(), offset, target),
                _ => unpack_quads::<8>(quants.as_ptr(), offset, target),
            }
        }
    }

    #[inline(always)]
    fn unpack_factored(self, group: FactoredGroup, target: &mut [UnpackedGroup; 2]) {
        // SAFETY: see above.
        unsafe {
            match (group.split, group.bits) {
                (Split::OfFactors, _) => split_factors(group, target),
                (Split::OfProducts, 4) => split_products::<4>(group, target),
                (Split::OfProducts, _) => split_products::<6>(group, target),
            }
        }
    }

    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // Iterators take closures.
    unsafe fn pair_products<const T: usize>(
        self,
        pairs: usize,
        factors: *const u8,
        sums: *const SumPair,
        width: usize,
    ) -> [__m512i; T] {
        // SAFETY: see above. A pair has 32 bytes.
        unsafe {
            let mut products = [_mm512_setzero_si512(); T];
            for pair in 0..pairs {
                let factors = _mm512_cvtepi8_epi16(_mm256_loadu_si256(factors.add(pair * 32).cast()));
                for t in 0..T {
                    let sums = _mm512_set1_epi32(sums.add(pair * width + t).cast::<i32>().read_unaligned());
                    products[t] = _mm512_dpwssd_epi32(products[t], factors, sums);
                }
            }
            products
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
    fn halves(self, halves: &[u8; 2 * BLOCK_ROWS]) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(halves.as_ptr().cast())) }
    }

    #[inline(always)]
    fn signed_bytes(self, bytes: &[u8; BLOCK_ROWS]) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_cvtepi8_epi32(_mm_loadu_si128(bytes.as_ptr().cast())) }
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn ints(self, ints: &[i32; BLOCK_ROWS]) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_loadu_si512(ints.as_ptr().cast()) }
    }

    #[inline(always)]
    fn joined<const SHIFT: u32>(self, high: &[i32; BLOCK_ROWS], low: &[i32; BLOCK_ROWS]) -> __m512i {
        let (high, low) = (self.ints(high), self.ints(low));
        // SAFETY: see above.
        unsafe { _mm512_add_epi32(_mm512_slli_epi32::<SHIFT>(high), low) }
    }

    #[inline(always)]
    fn add_product(self, a: __m512i, b: __m512i, c: __m512i) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_add_epi32(_mm512_mullo_epi32(a, b), c) }
    }

    #[inline(always)]
    fn floats(self, ints: __m512i) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_cvtepi32_ps(ints) }
    }

    #[inline(always)]
    fn corrected(self, ints: &[i32; BLOCK_ROWS], correction: i32) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_add_epi32(_mm512_loadu_si512(ints.as_ptr().cast()), _mm512_set1_epi32(correction)) }
    }
}

/// Weights of four quads.
const FOUR_QUADS: usize = 4 * QUAD * BLOCK_ROWS;

const _: () = assert!(zero_point(4, false) == 128 >> 4 && zero_point(6, false) == 128 >> 2);

/// Four quads of `BITS` bits, 4, 6 or 8, a byte for each weight. See [`crate::quantized::repacked`].
///
/// # Safety
/// They can be read there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn four_quads<const BITS: usize>(quants: *const u8) -> [__m512i; 4] {
    // SAFETY: by contract.
    let load = |i: usize| unsafe { _mm512_loadu_si512(quants.add(64 * i).cast()) };
    if BITS == 8 {
        return [load(0), load(1), load(2), load(3)];
    }
    let (two, four) = (_mm512_set1_epi8(0x03), _mm512_set1_epi8(0x0f));
    if BITS == 4 {
        let (first, second) = (load(0), load(1));
        let high = |packed| _mm512_and_si512(_mm512_srli_epi16::<4>(packed), four);
        return [_mm512_and_si512(first, four), high(first), _mm512_and_si512(second, four), high(second)];
    }
    let (first, second, third) = (load(0), load(1), load(2));
    // The last quad lies in the upper two bits of the others. Ternary logic: the bits of the mask from the first, the rest from the second.
    let lower = _mm512_ternarylogic_epi32::<0xca>(two, _mm512_srli_epi16::<6>(first), _mm512_srli_epi16::<4>(second));
    let last = _mm512_ternarylogic_epi32::<0xca>(four, lower, _mm512_srli_epi16::<2>(third));
    [first, second, third, last].map(|quad| _mm512_and_si512(quad, _mm512_set1_epi8(0x3f)))
}

/// Writes a group of repacked weights as bytes, `offset` added to each: all of `target`.
///
/// # Safety
/// The group can be read there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn unpack_quads<const BITS: usize>(quants: *const u8, offset: u8, target: &mut UnpackedGroup) {
    let (target, offset) = (target.as_mut_ptr().cast::<u8>(), _mm512_set1_epi8(offset as i8));
    for four in 0..QUADS / 4 {
        // SAFETY: by contract; a group of bytes has room for as many quads.
        unsafe {
            let quads = four_quads::<BITS>(quants.add(four * FOUR_QUADS * BITS / 8));
            for (i, quad) in quads.into_iter().enumerate() {
                let place = target.add(four * FOUR_QUADS + i * (FOUR_QUADS / 4));
                _mm512_storeu_si512(place.cast(), _mm512_add_epi8(quad, offset));
            }
        }
    }
}

/// The upper and the lower bits of [`Split::OfFactors`]. Both weights in 16 bits have the same factor. Their products with its bits are below
/// 128, so that one product of 16 bits is both.
///
/// # Safety
/// The processor has the features.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn split_factors(group: FactoredGroup, target: &mut [UnpackedGroup; 2]) {
    let [high, low] = target;
    let (high, low) = (high.as_mut_ptr().cast::<u8>(), low.as_mut_ptr().cast::<u8>());
    for part in 0..group.parts {
        // SAFETY: the group has checked how many bytes there are; a group of bytes has room for as many quads.
        unsafe {
            let factors = factors_twice(group, part);
            let (upper, lower) = (_mm512_srli_epi16::<3>(factors), _mm512_and_si512(factors, _mm512_set1_epi16(0x07)));
            for four in fours_of(group, part) {
                let quads = four_quads::<4>(group.quants.as_ptr().add(four * FOUR_QUADS / 2));
                for (i, quad) in quads.into_iter().enumerate() {
                    let place = four * FOUR_QUADS + i * (FOUR_QUADS / 4);
                    _mm512_storeu_si512(high.add(place).cast(), _mm512_mullo_epi16(quad, upper));
                    _mm512_storeu_si512(low.add(place).cast(), _mm512_mullo_epi16(quad, lower));
                }
            }
        }
    }
}

/// Those of [`Split::OfProducts`], which are computed in 16 bits: of the even columns and of the odd ones.
///
/// # Safety
/// The processor has the features.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn split_products<const BITS: usize>(group: FactoredGroup, target: &mut [UnpackedGroup; 2]) {
    let [high, low] = target;
    let (high, low) = (high.as_mut_ptr().cast::<u8>(), low.as_mut_ptr().cast::<u8>());
    let (even, half) = (_mm512_set1_epi16(0x00ff), _mm512_set1_epi8(32));
    for part in 0..group.parts {
        // SAFETY: as above.
        unsafe {
            let factors = factors_twice(group, part);
            // Half of what the upper bits count, for rounding, and the zero point.
            let zero = _mm512_mullo_epi16(factors, _mm512_set1_epi16(i16::from(group.zero_point)));
            let offset = _mm512_sub_epi16(_mm512_set1_epi16(32), zero);
            for four in fours_of(group, part) {
                let quads = four_quads::<BITS>(group.quants.as_ptr().add(four * FOUR_QUADS * BITS / 8));
                for (i, quad) in quads.into_iter().enumerate() {
                    let first = _mm512_add_epi16(_mm512_mullo_epi16(_mm512_and_si512(quad, even), factors), offset);
                    let second = _mm512_add_epi16(_mm512_mullo_epi16(_mm512_srli_epi16::<8>(quad), factors), offset);
                    // Ternary logic: the bits of the mask from the second, the rest from the third. The upper bits of even columns are the
                    // upper eight of the product times 4, shifted down; those of odd columns stay there.
                    let (first_high, second_high) = (_mm512_slli_epi16::<2>(first), _mm512_slli_epi16::<2>(second));
                    let upper =
                        _mm512_ternarylogic_epi32::<0xca>(even, _mm512_srli_epi16::<8>(first_high), second_high);
                    let lower = _mm512_ternarylogic_epi32::<0xca>(even, first, _mm512_slli_epi16::<8>(second));
                    let lower = _mm512_and_si512(lower, _mm512_set1_epi8(63));
                    let place = four * FOUR_QUADS + i * (FOUR_QUADS / 4);
                    _mm512_storeu_si512(high.add(place).cast(), upper);
                    _mm512_storeu_si512(low.add(place).cast(), _mm512_sub_epi8(lower, half));
                }
            }
        }
    }
}

/// The factor of each row of a part, in both halves of 32 bits.
///
/// # Safety
/// The processor has the features, and the group the part.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn factors_twice(group: FactoredGroup, part: usize) -> __m512i {
    // SAFETY: by contract; the group has checked how many there are.
    let factors = unsafe { _mm_loadu_si128(group.factors.as_ptr().add(part * BLOCK_ROWS).cast()) };
    let factors = _mm512_cvtepi8_epi32(factors);
    _mm512_mask_blend_epi16(0xaaaa_aaaa, factors, _mm512_slli_epi32::<16>(factors))
}

/// The quads of a part, four at a time.
#[inline(always)]
fn fours_of(group: FactoredGroup, part: usize) -> std::ops::Range<usize> {
    let fours = QUADS / 4;
    part * fours / group.parts..(part + 1) * fours / group.parts
}

/// Columns that share a multiplier are two pairs of quads.
const SUBGROUPS: usize = QUADS / 4;

/// A byte of a table of 128 for each nibble: see [`int4::unpack`](crate::quantized::int4::unpack).
///
/// # Safety
/// The processor has the features named here.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
unsafe fn unpack(nibbles: &[u8; NIBBLE_BYTES], side: &[u8; SIDE_BYTES], target: &mut UnpackedGroup) {
    let target = target.as_mut_ptr().cast::<u8>();
    // SAFETY: the features are there by contract. Each 64 bytes of nibbles make 128, which are all of the target.
    unsafe {
        let tables = tables();
        let planes = multiplier_planes(side.as_ptr());
        for subgroup in 0..SUBGROUPS {
            let multipliers = multiplier_bits(planes, subgroup);
            for pair in 2 * subgroup..2 * subgroup + 2 {
                let packed = _mm512_loadu_si512(nibbles.as_ptr().add(pair * 64).cast());
                let [low, high] = weights_of_nibbles(tables, packed, multipliers);
                _mm512_storeu_si512(target.add(pair * 128).cast(), low);
                _mm512_storeu_si512(target.add(pair * 128 + 64).cast(), high);
            }
        }
    }
}

/// The weights, with the zero point 128, of positive multipliers and of negative ones.
#[inline]
#[target_feature(enable = "avx512f")]
fn tables() -> [__m512i; 2] {
    let table = BYTES.as_ptr().cast::<u8>();
    // SAFETY: it has 128 bytes.
    unsafe { [_mm512_loadu_si512(table.cast()), _mm512_loadu_si512(table.add(64).cast())] }
}

/// The three bytes of each row that hold multipliers, four times each: for each column of a quad.
///
/// # Safety
/// A side can be read there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
#[allow(clippy::needless_range_loop)] // Iterators take closures.
unsafe fn multiplier_planes(side: *const u8) -> [__m512i; 3] {
    let four = _mm512_set4_epi32(0x0c0c_0c0c, 0x0808_0808, 0x0404_0404, 0);
    let mut planes = [_mm512_setzero_si512(); 3];
    for i in 0..3 {
        // SAFETY: by contract; after the scales a side has 16 bytes three times.
        let rows = unsafe { _mm_loadu_si128(side.add(SCALE_BYTES + i * BLOCK_ROWS).cast()) };
        planes[i] = _mm512_shuffle_epi8(_mm512_cvtepu8_epi32(rows), four);
    }
    planes
}

/// The bits of a subgroup's multipliers as bits of an index: 4 and 5 the magnitude, 6 the sign.
#[inline]
#[target_feature(enable = "avx512f")]
fn multiplier_bits(planes: [__m512i; 3], subgroup: usize) -> __m512i {
    // Rotations that may go either way, of which bits within a byte are taken.
    let (magnitude, sign) = ((4 - subgroup as i32 % 4 * 2) & 31, (6 - subgroup as i32) & 31);
    let magnitude = _mm512_rolv_epi32(planes[subgroup / 4], _mm512_set1_epi32(magnitude));
    let sign = _mm512_rolv_epi32(planes[2], _mm512_set1_epi32(sign));
    let magnitude = _mm512_and_si512(magnitude, _mm512_set1_epi8(0x30));
    // magnitude | (sign & 0x40)
    _mm512_ternarylogic_epi32::<0xf8>(magnitude, sign, _mm512_set1_epi8(0x40))
}

/// The weights of a pair of quads, of which the multipliers' bits are given.
#[inline]
#[target_feature(enable = "avx512f,avx512vbmi")]
fn weights_of_nibbles(tables: [__m512i; 2], packed: __m512i, multipliers: __m512i) -> [__m512i; 2] {
    let nibble = _mm512_set1_epi8(0x0f);
    // (packed & nibble) | multipliers
    let low = _mm512_ternarylogic_epi32::<0xea>(packed, nibble, multipliers);
    let high = _mm512_ternarylogic_epi32::<0xea>(_mm512_srli_epi32::<4>(packed), nibble, multipliers);
    [_mm512_permutex2var_epi8(tables[0], low, tables[1]), _mm512_permutex2var_epi8(tables[0], high, tables[1])]
}

const _: () = assert!(GROUP_BYTES == 2 * NIBBLE_BYTES && BYTES.len() * BYTES[0].len() == 128);

//! The formats, one by one. The layouts are those of ggml (`ggml-common.h`), the arithmetic is that of its reference: scales of f16
//! are widened, and every product, sum and difference is rounded to f32, in this order.

use half::f16;

/// A block format.
pub(super) trait Block {
    /// Weights of a block.
    const WEIGHTS: usize;
    /// Bytes of a block.
    const BYTES: usize;

    /// The numbers that one block of [`Block::BYTES`] stands for, [`Block::WEIGHTS`] of them.
    fn dequantize(block: &[u8], weights: &mut [f32]);
}

/// 32 weights of 4 bits: `scale * (q - 8)`.
pub(super) struct Q4_0;
/// 32 weights of 4 bits: `scale * q + minimum`.
pub(super) struct Q4_1;
/// 32 weights of 5 bits: `scale * (q - 16)`.
pub(super) struct Q5_0;
/// 32 weights of 5 bits: `scale * q + minimum`.
pub(super) struct Q5_1;
/// 32 weights of 8 bits, signed: `scale * q`.
pub(super) struct Q8_0;
/// 256 weights of 2 bits in groups of 16, each with a scale and a minimum of 4 bits.
pub(super) struct Q2K;
/// 256 weights of 3 bits in groups of 16, each with a scale of 6 bits.
pub(super) struct Q3K;
/// 256 weights of 4 bits in groups of 32, each with a scale and a minimum of 6 bits.
pub(super) struct Q4K;
/// 256 weights of 5 bits in groups of 32, each with a scale and a minimum of 6 bits.
pub(super) struct Q5K;
/// 256 weights of 6 bits in groups of 16, each with a scale of 8 bits.
pub(super) struct Q6K;

/// Splits a number of f16 off, widened.
#[inline(always)]
fn half(bytes: &[u8]) -> (f32, &[u8]) {
    (f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(), &bytes[2..])
}

/// Bit `i` of `bits`, as bit 4 of a byte.
#[inline(always)]
fn fifth_bit(bits: u32, i: usize) -> u8 {
    (((bits >> i) & 1) as u8) << 4
}

#[inline(always)]
fn four_bytes(bytes: &[u8]) -> (u32, &[u8]) {
    (u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]), &bytes[4..])
}

/// 32 weights of which byte `i` of 16 has the lower bits of weight `i` in its lower half, and of weight `i + 16` in its upper half.
/// `weight` makes a weight of its lower bits and its number.
#[inline(always)]
fn halves(quants: &[u8], weights: &mut [f32], weight: impl Fn(u8, usize) -> f32) {
    let (low, high) = weights.split_at_mut(16);
    for (i, ((low, high), &byte)) in low.iter_mut().zip(high).zip(quants).enumerate() {
        *low = weight(byte & 15, i);
        *high = weight(byte >> 4, i + 16);
    }
}

impl Block for Q4_0 {
    const WEIGHTS: usize = 32;
    const BYTES: usize = 2 + 16;

    #[inline(always)]
    fn dequantize(block: &[u8], weights: &mut [f32]) {
        let (scale, quants) = half(block);
        halves(quants, weights, |q, _| scale * f32::from(q as i8 - 8));
    }
}

impl Block for Q4_1 {
    const WEIGHTS: usize = 32;
    const BYTES: usize = 2 + 2 + 16;

    #[inline(always)]
    fn dequantize(block: &[u8], weights: &mut [f32]) {
        let (scale, rest) = half(block);
        let (minimum, quants) = half(rest);
        halves(quants, weights, |q, _| scale * f32::from(q) + minimum);
    }
}

impl Block for Q5_0 {
    const WEIGHTS: usize = 32;
    const BYTES: usize = 2 + 4 + 16;

    #[inline(always)]
    fn dequantize(block: &[u8], weights: &mut [f32]) {
        let (scale, rest) = half(block);
        let (fifth, quants) = four_bytes(rest);
        halves(quants, weights, |q, i| scale * f32::from((q | fifth_bit(fifth, i)) as i8 - 16));
    }
}

impl Block for Q5_1 {
    const WEIGHTS: usize = 32;
    const BYTES: usize = 2 + 2 + 4 + 16;

    #[inline(always)]
    fn dequantize(block: &[u8], weights: &mut [f32]) {
        let (scale, rest) = half(block);
        let (minimum, rest) = half(rest);
        let (fifth, quants) = four_bytes(rest);
        halves(quants, weights, |q, i| scale * f32::from(q | fifth_bit(fifth, i)) + minimum);
    }
}

impl Block for Q8_0 {
    const WEIGHTS: usize = 32;
    const BYTES: usize = 2 + 32;

    #[inline(always)]
    fn dequantize(block: &[u8], weights: &mut [f32]) {
        let (scale, quants) = half(block);
        weights.iter_mut().zip(quants).for_each(|(weight, &q)| *weight = scale * f32::from(q as i8));
    }
}

/// Weights of the formats with groups.
const MANY: usize = 256;

impl Block for Q2K {
    const WEIGHTS: usize = MANY;
    const BYTES: usize = 16 + 64 + 2 + 2;

    #[inline(always)]
    fn dequantize(block: &[u8], weights: &mut [f32]) {
        let (groups, rest) = block.split_at(16);
        let (quants, rest) = rest.split_at(64);
        let (scale, rest) = half(rest);
        let (minimum, _) = half(rest);
        for (group, weights) in weights.chunks_exact_mut(16).enumerate() {
            let scale = scale * f32::from(groups[group] & 15);
            let minimum = minimum * f32::from(groups[group] >> 4);
            let (quants, shift) = two_bits(quants, group);
            for (weight, &byte) in weights.iter_mut().zip(quants) {
                *weight = scale * f32::from((byte >> shift) & 3) - minimum;
            }
        }
    }
}

/// Where the two bits of a group of 16 weights lie: 32 bytes hold those of 128 weights, the first 32 in the lowest bits of each.
#[inline(always)]
fn two_bits(quants: &[u8], group: usize) -> (&[u8], usize) {
    let (half, pair, side) = (group / 8, group % 8 / 2, group % 2);
    let start = half * 32 + side * 16;
    (&quants[start..start + 16], 2 * pair)
}

impl Block for Q3K {
    const WEIGHTS: usize = MANY;
    const BYTES: usize = 32 + 64 + 12 + 2;

    #[inline(always)]
    fn dequantize(block: &[u8], weights: &mut [f32]) {
        let (third, rest) = block.split_at(32);
        let (quants, rest) = rest.split_at(64);
        let (groups, rest) = rest.split_at(12);
        let (scale, _) = half(rest);
        for (group, weights) in weights.chunks_exact_mut(16).enumerate() {
            // 4 bits of 16 scales in 8 bytes, those of the second half in the upper bits; their other 2 bits in the 4 bytes behind.
            let low = (groups[group % 8] >> (group / 8 * 4)) & 15;
            let high = (groups[8 + group % 4] >> (group / 4 * 2)) & 3;
            let scale = scale * f32::from((low | high << 4) as i8 - 32);
            let (quants, shift) = two_bits(quants, group);
            let third = &third[group % 2 * 16..][..16];
            for ((weight, &byte), &third) in weights.iter_mut().zip(quants).zip(third) {
                // A third bit that is not set takes 4 away.
                let less = if (third >> (group / 2)) & 1 == 0 { 4 } else { 0 };
                *weight = scale * f32::from(((byte >> shift) & 3) as i8 - less);
            }
        }
    }
}

/// Scales and minima of 8 groups, 6 bits each, in 12 bytes.
#[inline(always)]
fn scales_and_minima(packed: &[u8]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut minima) = ([0; 8], [0; 8]);
    for i in 0..4 {
        let (scale, minimum, both) = (packed[i], packed[i + 4], packed[i + 8]);
        (scales[i], minima[i]) = (scale & 63, minimum & 63);
        // The upper 2 bits of the second four lie above the 6 bits of the first.
        scales[i + 4] = (both & 15) | (scale >> 6) << 4;
        minima[i + 4] = (both >> 4) | (minimum >> 6) << 4;
    }
    (scales, minima)
}

impl Block for Q4K {
    const WEIGHTS: usize = MANY;
    const BYTES: usize = 2 + 2 + 12 + 128;

    #[inline(always)]
    fn dequantize(block: &[u8], weights: &mut [f32]) {
        let (scale, rest) = half(block);
        let (minimum, rest) = half(rest);
        let (packed, quants) = rest.split_at(12);
        let (scales, minima) = scales_and_minima(packed);
        for (group, weights) in weights.chunks_exact_mut(32).enumerate() {
            let (scale, minimum) = (scale * f32::from(scales[group]), minimum * f32::from(minima[group]));
            let shift = group % 2 * 4;
            for (weight, &byte) in weights.iter_mut().zip(&quants[group / 2 * 32..][..32]) {
                *weight = scale * f32::from((byte >> shift) & 15) - minimum;
            }
        }
    }
}

impl Block for Q5K {
    const WEIGHTS: usize = MANY;
    const BYTES: usize = 2 + 2 + 12 + 32 + 128;

    #[inline(always)]
    fn dequantize(block: &[u8], weights: &mut [f32]) {
        let (scale, rest) = half(block);
        let (minimum, rest) = half(rest);
        let (packed, rest) = rest.split_at(12);
        let (fifth, quants) = rest.split_at(32);
        let (scales, minima) = scales_and_minima(packed);
        for (group, weights) in weights.chunks_exact_mut(32).enumerate() {
            let (scale, minimum) = (scale * f32::from(scales[group]), minimum * f32::from(minima[group]));
            let shift = group % 2 * 4;
            for ((weight, &byte), &fifth) in weights.iter_mut().zip(&quants[group / 2 * 32..][..32]).zip(fifth) {
                *weight = scale * f32::from((byte >> shift) & 15 | ((fifth >> group) & 1) << 4) - minimum;
            }
        }
    }
}

impl Block for Q6K {
    const WEIGHTS: usize = MANY;
    const BYTES: usize = 128 + 64 + 16 + 2;

    #[inline(always)]
    fn dequantize(block: &[u8], weights: &mut [f32]) {
        let (low, rest) = block.split_at(128);
        let (high, rest) = rest.split_at(64);
        let (groups, rest) = rest.split_at(16);
        let (scale, _) = half(rest);
        for (group, weights) in weights.chunks_exact_mut(16).enumerate() {
            let scale = scale * f32::from(groups[group] as i8);
            // A half of the block has 4 runs of 32 weights: the first two in the lower halves of 64 bytes, the others in the upper ones.
            let (half, run, side) = (group / 8, group % 8 / 2, group % 2);
            let low = &low[half * 64 + run % 2 * 32 + side * 16..][..16];
            let high = &high[half * 32 + side * 16..][..16];
            let (shift, high_shift) = (run / 2 * 4, run * 2);
            for ((weight, &low), &high) in weights.iter_mut().zip(low).zip(high) {
                *weight = scale * f32::from(((low >> shift) & 15 | ((high >> high_shift) & 3) << 4) as i8 - 32);
            }
        }
    }
}

//! The formats, one by one. The layouts are those of ggml (`ggml-common.h`), the arithmetic is that of its reference: scales of f16
//! are widened, and every product, sum and difference is rounded to f32, in this order.

/// A block format.
pub(super) trait Block {
    /// Weights of a block.
    const WEIGHTS: usize;
    /// Bytes of a block.
    const BYTES: usize;

    /// The numbers that one block of [`Block::BYTES`] stands for, [`Block::WEIGHTS`] of them.
    fn dequantize(block: &[u8], weights: &mut [f32]);

    /// The integers that a block holds, [`Block::WEIGHTS`] of them, and what makes weights of them.
    fn integers(block: &[u8], integers: &mut [i8]) -> BlockSides;
}

/// Factors of a block at most.
pub(crate) const MOST_FACTORS: usize = 16;

/// What makes weights of the integers of a block: `scale * integer + minimum`, where a format with groups has a factor of each group's
/// scale, and of its minimum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlockSides {
    /// The bits of an f16.
    pub scale: [u8; 2],
    /// The bits of an f16; zero where the format has no minima.
    pub minimum: [u8; 2],
    pub factors: [i8; MOST_FACTORS],
    pub minimum_factors: [i8; MOST_FACTORS],
}

impl BlockSides {
    /// Those of a format without groups; `sides` begins with the scale, and with the minimum.
    fn plain(sides: &[u8], has_minimum: bool) -> Self {
        let minimum = if has_minimum { *array(&sides[2..]) } else { [0; 2] };
        Self { scale: *array(sides), minimum, factors: [1; MOST_FACTORS], minimum_factors: [1; MOST_FACTORS] }
    }

    /// Those of a format with 8 groups: scale and minimum, and their factors in 12 bytes.
    fn with_packed_factors(scales: &[u8], packed: &[u8]) -> Self {
        let (factors, minima) = scales_and_minima(packed);
        let (scale, minimum) = scales.split_at(2);
        Self::with_factors(scale, minimum, factors.map(|factor| factor as i8), minima.map(|factor| factor as i8))
    }

    /// Those of a format with `N` groups. What is stored as its minimum is subtracted.
    fn with_factors<const N: usize>(scale: &[u8], minimum: &[u8], factors: [i8; N], minimum_factors: [i8; N]) -> Self {
        let [low, high] = *array(minimum);
        let mut sides =
            Self { scale: *array(scale), minimum: [low, high ^ 0x80], factors: [0; 16], minimum_factors: [0; 16] };
        sides.factors[..N].copy_from_slice(&factors);
        sides.minimum_factors[..N].copy_from_slice(&minimum_factors);
        sides
    }
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

// Loops go over arrays, whose lengths the compiler knows, and call nothing: what is called from a function for an instruction set is
// not compiled for it unless it is inlined.

/// Splits a number of f16 off, widened.
#[inline(always)]
fn half(bytes: &[u8]) -> (f32, &[u8]) {
    (widen(u16::from_le_bytes([bytes[0], bytes[1]])), &bytes[2..])
}

/// The number of f16 with these bits, in f32.
#[inline(always)]
fn widen(bits: u16) -> f32 {
    /// 2^112: the difference of the exponents' biases. The product is exact, for numbers below the normal ones too.
    const REBIAS: f32 = f32::from_bits(0x7780_0000);
    let (sign, magnitude) = (u32::from(bits & 0x8000) << 16, u32::from(bits & 0x7fff) << 13);
    let finite = (f32::from_bits(magnitude) * REBIAS).to_bits();
    // Infinities and NaN, whose exponent is all ones.
    let magnitude = if bits & 0x7c00 == 0x7c00 { magnitude | 0x7f80_0000 } else { finite };
    f32::from_bits(sign | magnitude)
}

/// The first `N` of some bytes, all of which are there: a block has as many bytes as its format says.
#[inline(always)]
fn array<const N: usize>(bytes: &[u8]) -> &[u8; N] {
    bytes.first_chunk().unwrap_or(&[0; N])
}

#[inline(always)]
fn four_bytes(bytes: &[u8]) -> (u32, &[u8]) {
    (u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]), &bytes[4..])
}

/// 32 weights of which byte `i` of 16 has the lower bits of weight `i` in its lower half, and of weight `i + 16` in its upper half.
#[inline(always)]
fn halves(quants: &[u8]) -> [u8; 32] {
    let quants: &[u8; 16] = array(quants);
    let mut all = [0; 32];
    for i in 0..16 {
        all[i] = quants[i] & 15;
        all[i + 16] = quants[i] >> 4;
    }
    all
}

/// The fifth bits of 32 weights, as bit 4 of a byte each.
#[inline(always)]
fn fifth_bits(bits: u32) -> [u8; 32] {
    let mut all = [0; 32];
    for (i, all) in all.iter_mut().enumerate() {
        *all = (((bits >> i) & 1) as u8) << 4;
    }
    all
}

/// The bits of `mask`, `shift` to the left, of each byte.
#[inline(always)]
fn field<const N: usize>(bytes: &[u8; N], shift: usize, mask: u8) -> [u8; N] {
    let mut fields = [0; N];
    for i in 0..N {
        fields[i] = (bytes[i] >> shift) & mask;
    }
    fields
}

#[inline(always)]
fn shifted_left<const N: usize>(bytes: &[u8; N], shift: usize) -> [u8; N] {
    let mut shifted = [0; N];
    for i in 0..N {
        shifted[i] = bytes[i] << shift;
    }
    shifted
}

/// The bits of both.
#[inline(always)]
fn joined<const N: usize>(one: &[u8; N], other: &[u8; N]) -> [u8; N] {
    let mut joined = [0; N];
    for i in 0..N {
        joined[i] = one[i] | other[i];
    }
    joined
}

/// `scale * (quant - offset)` of each.
#[inline(always)]
fn scaled<const N: usize>(quants: &[u8; N], offset: i8, scale: f32, weights: &mut [f32]) {
    let Some(weights) = weights.first_chunk_mut::<N>() else { return };
    for i in 0..N {
        weights[i] = scale * f32::from((quants[i] as i8).wrapping_sub(offset));
    }
}

/// `scale * quant + minimum` of each.
#[inline(always)]
fn raised<const N: usize>(quants: &[u8; N], scale: f32, minimum: f32, weights: &mut [f32]) {
    let Some(weights) = weights.first_chunk_mut::<N>() else { return };
    for i in 0..N {
        weights[i] = scale * f32::from(quants[i]) + minimum;
    }
}

/// `quant - offset` of each.
fn lowered<const N: usize>(quants: &[u8; N], offset: i8, integers: &mut [i8]) {
    for (integer, quant) in integers.iter_mut().zip(quants) {
        *integer = (*quant as i8).wrapping_sub(offset);
    }
}

impl Block for Q4_0 {
    const WEIGHTS: usize = 32;
    const BYTES: usize = 2 + 16;

    #[inline(always)]
    fn dequantize(block: &[u8], weights: &mut [f32]) {
        let (scale, quants) = half(block);
        scaled(&halves(quants), 8, scale, weights);
    }

    fn integers(block: &[u8], integers: &mut [i8]) -> BlockSides {
        lowered(&halves(&block[2..]), 8, integers);
        BlockSides::plain(block, false)
    }
}

impl Block for Q4_1 {
    const WEIGHTS: usize = 32;
    const BYTES: usize = 2 + 2 + 16;

    #[inline(always)]
    fn dequantize(block: &[u8], weights: &mut [f32]) {
        let (scale, rest) = half(block);
        let (minimum, quants) = half(rest);
        raised(&halves(quants), scale, minimum, weights);
    }

    fn integers(block: &[u8], integers: &mut [i8]) -> BlockSides {
        lowered(&halves(&block[4..]), 0, integers);
        BlockSides::plain(block, true)
    }
}

impl Block for Q5_0 {
    const WEIGHTS: usize = 32;
    const BYTES: usize = 2 + 4 + 16;

    #[inline(always)]
    fn dequantize(block: &[u8], weights: &mut [f32]) {
        let (scale, rest) = half(block);
        let (fifth, quants) = four_bytes(rest);
        scaled(&joined(&halves(quants), &fifth_bits(fifth)), 16, scale, weights);
    }

    fn integers(block: &[u8], integers: &mut [i8]) -> BlockSides {
        let (fifth, quants) = four_bytes(&block[2..]);
        lowered(&joined(&halves(quants), &fifth_bits(fifth)), 16, integers);
        BlockSides::plain(block, false)
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
        raised(&joined(&halves(quants), &fifth_bits(fifth)), scale, minimum, weights);
    }

    fn integers(block: &[u8], integers: &mut [i8]) -> BlockSides {
        let (fifth, quants) = four_bytes(&block[4..]);
        lowered(&joined(&halves(quants), &fifth_bits(fifth)), 0, integers);
        BlockSides::plain(block, true)
    }
}

impl Block for Q8_0 {
    const WEIGHTS: usize = 32;
    const BYTES: usize = 2 + 32;

    #[inline(always)]
    fn dequantize(block: &[u8], weights: &mut [f32]) {
        let (scale, quants) = half(block);
        scaled(array::<32>(quants), 0, scale, weights);
    }

    fn integers(block: &[u8], integers: &mut [i8]) -> BlockSides {
        lowered(array::<32>(&block[2..]), 0, integers);
        BlockSides::plain(block, false)
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
            raised(&field(quants, shift, 3), scale, -minimum, weights);
        }
    }

    fn integers(block: &[u8], integers: &mut [i8]) -> BlockSides {
        let (groups, rest) = block.split_at(16);
        let (quants, scales) = rest.split_at(64);
        for (group, integers) in integers.chunks_exact_mut(16).enumerate() {
            let (quants, shift) = two_bits(quants, group);
            lowered(&field(quants, shift, 3), 0, integers);
        }
        let factors = array::<16>(groups).map(|both| ((both & 15) as i8, (both >> 4) as i8));
        let (scale, minimum) = scales.split_at(2);
        BlockSides::with_factors(scale, minimum, factors.map(|(scale, _)| scale), factors.map(|(_, minimum)| minimum))
    }
}

/// Where the two bits of a group of 16 weights lie: 32 bytes hold those of 128 weights, the first 32 in the lowest bits of each.
#[inline(always)]
fn two_bits(quants: &[u8], group: usize) -> (&[u8; 16], usize) {
    let (half, pair, side) = (group / 8, group % 8 / 2, group % 2);
    (array(&quants[half * 32 + side * 16..]), 2 * pair)
}

/// The three bits of a group of 16 weights. A third bit that is not set takes 4 away, so that it is like others with 4 taken from all.
#[inline(always)]
fn three_bits(third: &[u8], quants: &[u8], group: usize) -> [u8; 16] {
    let (quants, shift) = two_bits(quants, group);
    let third = shifted_left(&field(array::<16>(&third[group % 2 * 16..]), group / 2, 1), 2);
    joined(&field(quants, shift, 3), &third)
}

/// The factor of a group's scale: 4 bits of 16 factors in 8 bytes, those of the second half in the upper bits; their other 2 bits in the 4
/// bytes behind.
#[inline(always)]
fn scale_factor(groups: &[u8], group: usize) -> i8 {
    let low = (groups[group % 8] >> (group / 8 * 4)) & 15;
    let high = (groups[8 + group % 4] >> (group / 4 * 2)) & 3;
    (low | high << 4) as i8 - 32
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
            let scale = scale * f32::from(scale_factor(groups, group));
            scaled(&three_bits(third, quants, group), 4, scale, weights);
        }
    }

    fn integers(block: &[u8], integers: &mut [i8]) -> BlockSides {
        let (third, rest) = block.split_at(32);
        let (quants, rest) = rest.split_at(64);
        let (groups, scale) = rest.split_at(12);
        for (group, integers) in integers.chunks_exact_mut(16).enumerate() {
            lowered(&three_bits(third, quants, group), 4, integers);
        }
        BlockSides::with_factors(
            scale,
            &[0; 2],
            std::array::from_fn::<_, 16, _>(|group| scale_factor(groups, group)),
            [0; 16],
        )
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
            raised(&field(array::<32>(&quants[group / 2 * 32..]), shift, 15), scale, -minimum, weights);
        }
    }

    fn integers(block: &[u8], integers: &mut [i8]) -> BlockSides {
        let (scales, rest) = block.split_at(4);
        let (packed, quants) = rest.split_at(12);
        for (group, integers) in integers.chunks_exact_mut(32).enumerate() {
            let shift = group % 2 * 4;
            lowered(&field(array::<32>(&quants[group / 2 * 32..]), shift, 15), 0, integers);
        }
        BlockSides::with_packed_factors(scales, packed)
    }
}

/// The five bits of a group of 32 weights.
#[inline(always)]
fn five_bits(fifth: &[u8], quants: &[u8], group: usize) -> [u8; 32] {
    let low = field(array::<32>(&quants[group / 2 * 32..]), group % 2 * 4, 15);
    let fifth = shifted_left(&field(array::<32>(fifth), group, 1), 4);
    joined(&low, &fifth)
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
            raised(&five_bits(fifth, quants, group), scale, -minimum, weights);
        }
    }

    fn integers(block: &[u8], integers: &mut [i8]) -> BlockSides {
        let (scales, rest) = block.split_at(4);
        let (packed, rest) = rest.split_at(12);
        let (fifth, quants) = rest.split_at(32);
        for (group, integers) in integers.chunks_exact_mut(32).enumerate() {
            lowered(&five_bits(fifth, quants, group), 0, integers);
        }
        BlockSides::with_packed_factors(scales, packed)
    }
}

/// The six bits of a group of 16 weights. A half of the block has 4 runs of 32 weights: the first two in the lower halves of 64 bytes, the
/// others in the upper ones.
#[inline(always)]
fn six_bits(low: &[u8], high: &[u8], group: usize) -> [u8; 16] {
    let (half, run, side) = (group / 8, group % 8 / 2, group % 2);
    let low = field(array::<16>(&low[half * 64 + run % 2 * 32 + side * 16..]), run / 2 * 4, 15);
    let high = shifted_left(&field(array::<16>(&high[half * 32 + side * 16..]), run * 2, 3), 4);
    joined(&low, &high)
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
            scaled(&six_bits(low, high, group), 32, scale, weights);
        }
    }

    fn integers(block: &[u8], integers: &mut [i8]) -> BlockSides {
        let (low, rest) = block.split_at(128);
        let (high, rest) = rest.split_at(64);
        let (groups, scale) = rest.split_at(16);
        for (group, integers) in integers.chunks_exact_mut(16).enumerate() {
            lowered(&six_bits(low, high, group), 32, integers);
        }
        BlockSides::with_factors(scale, &[0; 2], array::<16>(groups).map(|factor| factor as i8), [0; 16])
    }
}

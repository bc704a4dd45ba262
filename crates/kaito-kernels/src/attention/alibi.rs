//! ALiBi: attention biases in place of rotary positions (Press et al. 2022), as the first Falcon models have them.

use half::bf16;

/// The slope of each of `heads` query heads, in bf16 as in the reference: a geometric series for a power of two; heads beyond the
/// largest power of two have every other slope of the series for twice that power.
pub fn alibi_slopes(heads: usize) -> Vec<f32> {
    let Some(log) = heads.checked_ilog2() else { return Vec::new() };
    let power = 1usize << log;
    // The reference keeps the base in f32 before it is raised.
    let base = |count: usize| f64::from((2f64.powf(-(2f64.powf(-((count as f64).log2() - 3.0))))) as f32);
    let slope = |base: f64, exponent: usize| bf16::from_f32(base.powi(exponent as i32) as f32).to_f32();
    let series = (1..=power).map(|exponent| slope(base(power), exponent));
    series.chain((0..heads - power).map(|i| slope(base(2 * power), 2 * i + 1))).collect()
}

/// What is added to the score of the key at `position`, before the score is scaled. The reference rounds to bf16 whatever type the
/// model computes in: first the position, then the product.
#[inline(always)]
pub fn alibi_bias(slope: f32, position: usize) -> f32 {
    // Through 32 bits, for which every instruction set has a conversion of whole vectors.
    rounded(slope * rounded(position as i32 as f32))
}

/// The nearest number of bf16, ties to even; `x` is finite.
#[inline(always)]
fn rounded(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
}

/// Adds the biases of the positions from `first` on to `scores`, which are scaled already.
#[inline(always)]
pub(super) fn add_alibi(scores: &mut [f32], slope: f32, first: usize, scale: f32) {
    for (i, score) in scores.iter_mut().enumerate() {
        *score += scale * alibi_bias(slope, first + i);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Heads, and the slopes of the first and of the last one: `build_alibi_tensor` of transformers 4.46.3, by torch 2.5.1.
    const SLOPES: [(usize, f32, f32); 8] = [
        (1, 0.00390625, 0.00390625),
        (2, 0.0625, 0.00390625),
        (6, 0.25, 0.125),
        (8, 0.5, 0.00390625),
        (32, 0.83984375, 0.00390625),
        (64, 0.91796875, 0.00390625),
        (71, 0.91796875, 0.5703125),
        (128, 0.95703125, 0.00390625),
    ];

    /// Slope, position and bias, by the same.
    const BIASES: [(f32, usize, f32); 16] = [
        (0.25, 0, 0.0),
        (0.25, 255, 63.75),
        (0.25, 257, 64.0),
        (0.25, 259, 65.0),
        (0.25, 1023, 256.0),
        (0.25, 2999, 748.0),
        (0.00390625, 1, 0.00390625),
        (0.00390625, 255, 0.99609375),
        (0.00390625, 259, 1.015625),
        (0.00390625, 2046, 8.0),
        (0.00390625, 2999, 11.6875),
        (0.125, 255, 31.875),
        (0.125, 257, 32.0),
        (0.125, 259, 32.5),
        (0.125, 2047, 256.0),
        (0.125, 2999, 374.0),
    ];

    #[test]
    fn slopes_and_biases_are_those_of_the_reference() {
        for (heads, first, last) in SLOPES {
            let slopes = alibi_slopes(heads);
            assert_eq!(slopes.len(), heads);
            assert_eq!((slopes[0], slopes[heads - 1]), (first, last), "{heads} heads");
        }
        for (slope, position, bias) in BIASES {
            assert_eq!(alibi_bias(slope, position), bias, "{slope} at {position}");
        }
        assert_eq!(alibi_slopes(0), [0.0; 0]);
    }
}

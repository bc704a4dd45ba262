//! The format of 4 bits: how the weights of a group are chosen, and how they are read.
//!
//! A weight is `scale * multiplier * CODEBOOK[nibble]`. The scale is that of its row and group, the multiplier that of its row and
//! [`SUBGROUP`] columns. Multipliers and codebook are integers so small that their product is a signed byte, so that the
//! products of a whole group are integers. The codebook's steps are wider at its ends, as the normal distribution wants them, and it
//! reaches further down than up: a negative multiplier turns it around.

use super::{BLOCK_ROWS, GROUP, QUAD, SCALE_BYTES, rotation::Columns};
use crate::simd::Simd;

/// Columns of a row that share a multiplier.
pub(super) const SUBGROUP: usize = 16;
const SUBGROUPS: usize = GROUP / SUBGROUP;

/// What a nibble stands for.
pub(super) const CODEBOOK: [i8; 16] = [-21, -17, -14, -11, -8, -6, -4, -2, 0, 2, 4, 6, 8, 11, 14, 19];

/// What the three bits of a subgroup stand for.
pub(super) const MULTIPLIERS: [i8; 8] = [3, 4, 5, 6, -3, -4, -5, -6];

/// Bytes of scales and multipliers of a group in a block of rows: a bf16 for each row; then two bits for each subgroup, the first
/// four in a byte of each row and the last four in another; then the bits that are set where a multiplier is negative.
pub(super) const SIDE_BYTES: usize = SCALE_BYTES + 3 * BLOCK_ROWS;

/// Bytes of the nibbles of a group in a block of rows.
pub(super) const NIBBLE_BYTES: usize = BLOCK_ROWS * GROUP / 2;

/// 128 and the weight without its scale, for the three bits of a subgroup and a nibble.
pub(super) const BYTES: [[u8; 16]; 8] = {
    let mut bytes = [[0; 16]; 8];
    let mut i = 0;
    while i < 8 * 16 {
        bytes[i / 16][i % 16] = (128 + MULTIPLIERS[i / 16] as i16 * CODEBOOK[i % 16] as i16) as u8;
        i += 1;
    }
    bytes
};

/// The nibble of each number of the codebook, from -21 on.
const NIBBLES: [u8; 41] = {
    let mut nibbles = [0; 41];
    let mut i = 0;
    while i < 16 {
        nibbles[(CODEBOOK[i] + 21) as usize] = i as u8;
        i += 1;
    }
    nibbles
};

/// Writes the weights of a group without their scales, as bytes with the zero point 128: `[quad][row][column of the quad]`.
pub(super) fn unpack(nibbles: &[u8; NIBBLE_BYTES], side: &[u8; SIDE_BYTES], target: &mut [u8; BLOCK_ROWS * GROUP]) {
    for (quad, target) in target.as_chunks_mut::<{ BLOCK_ROWS * QUAD }>().0.iter_mut().enumerate() {
        let pair = &nibbles[quad / 2 * BLOCK_ROWS * QUAD..][..BLOCK_ROWS * QUAD];
        let shift = quad % 2 * 4;
        for row in 0..BLOCK_ROWS {
            let bytes = &BYTES[multiplier_bits(side, row, quad * QUAD / SUBGROUP)];
            for i in row * QUAD..(row + 1) * QUAD {
                target[i] = bytes[usize::from(pair[i] >> shift & 15)];
            }
        }
    }
}

/// The three bits of a row's subgroup.
fn multiplier_bits(side: &[u8; SIDE_BYTES], row: usize, subgroup: usize) -> usize {
    let byte = |plane: usize| usize::from(side[SCALE_BYTES + plane * BLOCK_ROWS + row]);
    byte(subgroup / 4) >> (subgroup % 4 * 2) & 3 | (byte(2) >> subgroup & 1) << 2
}

/// The group's scales to try: its largest magnitude, divided by the largest that a weight can have without its scale, times each.
const FACTORS: [f32; 4] = [0.9, 0.97, 1.04, 1.11];
const LARGEST: f32 = 126.0;

/// What was found best for each row of a group so far, in units of the row's largest magnitude.
struct Best {
    scales: [f32; BLOCK_ROWS],
    /// The three bits of each subgroup.
    multipliers: [[u8; BLOCK_ROWS]; SUBGROUPS],
    errors: [f32; BLOCK_ROWS],
}

/// Quantises a group: of several scales and all multipliers those with the least sum of squared errors. `units` is the group in
/// units of the largest magnitude of each row, which `magnitudes` has; rows of zeros have zero there. Returns the scales, and writes
/// nibbles, one in a byte, and multipliers.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // Iterators take closures.
pub(super) fn quantize_group<S: Simd>(
    simd: S,
    units: &Columns,
    magnitudes: &[f32; BLOCK_ROWS],
    nibbles: &mut [[u8; BLOCK_ROWS]; GROUP],
    multipliers: &mut [u8; 3 * BLOCK_ROWS],
) -> [half::bf16; BLOCK_ROWS] {
    let mut best = Best {
        scales: [0.0; BLOCK_ROWS],
        multipliers: [[0; BLOCK_ROWS]; SUBGROUPS],
        errors: [f32::INFINITY; BLOCK_ROWS],
    };
    for factor in FACTORS {
        best.try_scales(simd, units, &[factor / LARGEST; BLOCK_ROWS]);
    }
    let refined = best.refined(simd, units);
    best.try_scales(simd, units, &refined);

    let mut scales = [half::bf16::ZERO; BLOCK_ROWS];
    let mut inverses = [0.0; BLOCK_ROWS];
    for row in 0..BLOCK_ROWS {
        scales[row] = half::bf16::from_f32(best.scales[row] * magnitudes[row]);
        if magnitudes[row] > 0.0 {
            // The scale was rounded.
            inverses[row] = magnitudes[row] / scales[row].to_f32();
        }
    }
    *multipliers = [0; 3 * BLOCK_ROWS];
    for subgroup in 0..SUBGROUPS {
        let mut steps = [0.0; BLOCK_ROWS];
        for row in 0..BLOCK_ROWS {
            let bits = best.multipliers[subgroup][row];
            multipliers[subgroup / 4 * BLOCK_ROWS + row] |= (bits & 3) << (subgroup % 4 * 2);
            multipliers[2 * BLOCK_ROWS + row] |= (bits >> 2) << subgroup;
            steps[row] = inverses[row] / f32::from(MULTIPLIERS[usize::from(bits)]);
        }
        for column in subgroup * SUBGROUP..(subgroup + 1) * SUBGROUP {
            let mut numbers = [0.0; BLOCK_ROWS];
            for v in 0..BLOCK_ROWS / S::LANES {
                let at = v * S::LANES;
                let x = simd.mul(simd.load_slice(&units.0[column][at..]), simd.load_slice(&steps[at..]));
                simd.store_slice(&mut numbers[at..], nearest(simd, x));
            }
            for row in 0..BLOCK_ROWS {
                nibbles[column][row] = NIBBLES[(numbers[row] + 21.0) as usize];
            }
        }
    }
    scales
}

impl Best {
    /// Takes these scales for the rows where they and the best multipliers for them leave a smaller error.
    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // Iterators take closures.
    fn try_scales<S: Simd>(&mut self, simd: S, units: &Columns, scales: &[f32; BLOCK_ROWS]) {
        let mut totals = [0.0f32; BLOCK_ROWS];
        let mut picks = [[0u8; BLOCK_ROWS]; SUBGROUPS];
        for subgroup in 0..SUBGROUPS {
            let mut least = [f32::INFINITY; BLOCK_ROWS];
            for bits in 0..MULTIPLIERS.len() {
                let errors = errors(simd, units, subgroup, f32::from(MULTIPLIERS[bits]), scales);
                for row in 0..BLOCK_ROWS {
                    let less = errors[row] < least[row];
                    least[row] = if less { errors[row] } else { least[row] };
                    picks[subgroup][row] = if less { bits as u8 } else { picks[subgroup][row] };
                }
            }
            for row in 0..BLOCK_ROWS {
                totals[row] += least[row];
            }
        }
        for row in 0..BLOCK_ROWS {
            if totals[row] < self.errors[row] {
                (self.errors[row], self.scales[row]) = (totals[row], scales[row]);
                for subgroup in 0..SUBGROUPS {
                    self.multipliers[subgroup][row] = picks[subgroup][row];
                }
            }
        }
    }

    /// The scales with the least error for the numbers that the best ones so far lead to: for numbers `t` of values `x` it is
    /// `sum x t / sum t^2`.
    #[inline(always)]
    fn refined<S: Simd>(&self, simd: S, units: &Columns) -> [f32; BLOCK_ROWS] {
        let mut refined = self.scales;
        for v in 0..BLOCK_ROWS / S::LANES {
            let at = v * S::LANES;
            let (mut products, mut squares) = (simd.splat(0.0), simd.splat(0.0));
            for subgroup in 0..SUBGROUPS {
                let (mut multipliers, mut inverses) = ([0.0; BLOCK_ROWS], [0.0; BLOCK_ROWS]);
                for row in at..at + S::LANES {
                    multipliers[row] = f32::from(MULTIPLIERS[usize::from(self.multipliers[subgroup][row])]);
                    inverses[row] = 1.0 / (self.scales[row] * multipliers[row]);
                }
                let (multiplier, inverse) = (simd.load_slice(&multipliers[at..]), simd.load_slice(&inverses[at..]));
                for column in subgroup * SUBGROUP..(subgroup + 1) * SUBGROUP {
                    let x = simd.load_slice(&units.0[column][at..]);
                    let t = simd.mul(nearest(simd, simd.mul(x, inverse)), multiplier);
                    products = simd.add(products, simd.mul(x, t));
                    squares = simd.add(squares, simd.mul(t, t));
                }
            }
            let (mut numerators, mut denominators) = ([0.0; BLOCK_ROWS], [0.0; BLOCK_ROWS]);
            simd.store_slice(&mut numerators[at..], products);
            simd.store_slice(&mut denominators[at..], squares);
            for row in at..at + S::LANES {
                if denominators[row] > 0.0 {
                    refined[row] = numerators[row] / denominators[row];
                }
            }
        }
        refined
    }
}

/// The sum of the squared errors of each row's subgroup.
#[inline(always)]
fn errors<S: Simd>(
    simd: S,
    units: &Columns,
    subgroup: usize,
    multiplier: f32,
    scales: &[f32; BLOCK_ROWS],
) -> [f32; BLOCK_ROWS] {
    let mut errors = [0.0; BLOCK_ROWS];
    for v in 0..BLOCK_ROWS / S::LANES {
        let at = v * S::LANES;
        let step = simd.mul(simd.load_slice(&scales[at..]), simd.splat(multiplier));
        let inverse = simd.div(simd.splat(1.0), step);
        let mut sum = simd.splat(0.0);
        for column in subgroup * SUBGROUP..(subgroup + 1) * SUBGROUP {
            let x = simd.load_slice(&units.0[column][at..]);
            let error = simd.sub(x, simd.mul(nearest(simd, simd.mul(x, inverse)), step));
            sum = simd.add(sum, simd.mul(error, error));
        }
        simd.store_slice(&mut errors[at..], sum);
    }
    errors
}

/// The number of the codebook nearest to `x`; below -17, -21 from -19.5 on.
///
/// From -8 to 8 the codebook has steps of 2, then three of 3 below and two above, then one of 4 below, taken for one of 5, and one of 5
/// above. What is beyond a part goes on to the next.
#[inline(always)]
fn nearest<S: Simd>(simd: S, x: S::Vector) -> S::Vector {
    let inner = simd.min(simd.max(x, simd.splat(-8.0)), simd.splat(8.0));
    let rest = simd.sub(x, inner);
    let outer = simd.min(simd.max(rest, simd.splat(-9.0)), simd.splat(6.0));
    let rest = simd.sub(rest, outer);
    let last = simd.min(simd.max(rest, simd.splat(-5.0)), simd.splat(5.0));
    let inner = rounded(simd, inner, 2.0);
    let outer = rounded(simd, outer, 3.0);
    let last = rounded(simd, last, 5.0);
    simd.max(simd.add(simd.add(inner, outer), last), simd.splat(-21.0))
}

/// The nearest multiple of `step`.
#[inline(always)]
fn rounded<S: Simd>(simd: S, x: S::Vector, step: f32) -> S::Vector {
    let round = simd.splat(super::weights::ROUND);
    let steps = simd.sub(simd.add(simd.mul(x, simd.splat(1.0 / step)), round), round);
    simd.mul(steps, simd.splat(step))
}

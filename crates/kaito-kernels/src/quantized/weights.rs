//! Quantisation of weights, once, while a model loads.

use std::marker::PhantomData;

use half::bf16;

use super::{BLOCK_ROWS, GROUP, QUAD, Quantization, SCALE_BYTES};
use crate::{
    DType, MatrixRef, ThreadPool,
    matmul::element::{Bf16, Element, F16, F32},
    simd::{Kernel, Level, MAX_LANES, Simd, dispatch},
};

/// Quantises `source` into `target`, which has [`Quantization::bytes`] bytes.
///
/// 8 bits: a group's largest magnitude becomes 127, the others the nearest of the steps below it. 4 bits: of several scales
/// near the one that makes the largest magnitude -8, the one with the least sum of squared errors. A group that holds
/// an infinity or NaN gets the scale NaN.
///
/// # Panics
/// If a shape does not fit its data.
pub fn quantize(pool: &ThreadPool, quantization: Quantization, source: MatrixRef, target: &mut [u8]) {
    quantize_on(Level::best(), pool, quantization, source, target);
}

pub(super) fn quantize_on(
    level: Level,
    pool: &ThreadPool,
    quantization: Quantization,
    source: MatrixRef,
    target: &mut [u8],
) {
    let (rows, cols) = (source.rows(), source.cols());
    assert_eq!(Some(target.len()), quantization.bytes(rows, cols), "bytes of an {quantization} matrix {rows} x {cols}");
    let groups = cols.div_ceil(GROUP);
    if groups == 0 || rows == 0 {
        return;
    }
    let blocks = rows.div_ceil(BLOCK_ROWS);
    let (quants, scales) = target.split_at_mut(blocks * groups * quantization.group_bytes());
    let quants = quants.chunks_exact_mut(groups * quantization.group_bytes());
    let targets = quants.zip(scales.chunks_exact_mut(groups * SCALE_BYTES)).enumerate();
    pool.for_each_item(blocks, targets, |(block, (quants, scales))| {
        let first = block * BLOCK_ROWS;
        let source = source.slice_rows(first, BLOCK_ROWS.min(rows - first));
        match source.dtype() {
            DType::F32 => dispatch(level, Block::<F32> { quantization, source, quants, scales, element: PhantomData }),
            DType::Bf16 => {
                dispatch(level, Block::<Bf16> { quantization, source, quants, scales, element: PhantomData })
            }
            DType::F16 => dispatch(level, Block::<F16> { quantization, source, quants, scales, element: PhantomData }),
        }
    });
}

/// Up to [`BLOCK_ROWS`] rows.
struct Block<'a, E> {
    quantization: Quantization,
    source: MatrixRef<'a>,
    quants: &'a mut [u8],
    scales: &'a mut [u8],
    element: PhantomData<E>,
}

impl<E: Element> Kernel for Block<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { quantization, source, quants, scales, .. } = self;
        let quants = quants.chunks_exact_mut(quantization.group_bytes());
        for (g, (quants, scales)) in quants.zip(scales.chunks_exact_mut(SCALE_BYTES)).enumerate() {
            let count = GROUP.min(source.cols() - g * GROUP);
            for row in 0..BLOCK_ROWS {
                let mut values = [0.0; GROUP];
                if row < source.rows() {
                    let first = (row * source.cols() + g * GROUP) * E::SIZE;
                    widen_group::<S, E>(simd, &source.data()[first..first + count * E::SIZE], count, &mut values);
                }
                let (scale, numbers) = match quantization {
                    Quantization::Int8 => group_of_8_bits(&values),
                    Quantization::Int4 => group_of_4_bits(simd, &values),
                };
                scales[2 * row..2 * row + 2].copy_from_slice(&scale.to_le_bytes());
                place(quantization, &numbers, row, quants);
            }
        }
    }
}

#[inline(always)]
fn widen_group<S: Simd, E: Element>(simd: S, source: &[u8], count: usize, values: &mut [f32; GROUP]) {
    let mut i = 0;
    while i + S::LANES <= count {
        simd.store_slice(&mut values[i..], E::load_slice(simd, &source[i * E::SIZE..]));
        i += S::LANES;
    }
    if i < count {
        simd.store_partial(&mut values[i..count], E::load_rest(simd, &source[i * E::SIZE..count * E::SIZE]));
    }
}

/// Writes the numbers of one row of a block to their places in the layout.
#[inline(always)]
fn place(quantization: Quantization, numbers: &[u8; GROUP], row: usize, quants: &mut [u8]) {
    match quantization {
        Quantization::Int8 => {
            for (quad, four) in numbers.as_chunks::<QUAD>().0.iter().enumerate() {
                let at = (quad * BLOCK_ROWS + row) * QUAD;
                quants[at..at + QUAD].copy_from_slice(four);
            }
        }
        Quantization::Int4 => {
            for (pair, eight) in numbers.as_chunks::<{ 2 * QUAD }>().0.iter().enumerate() {
                let at = (pair * BLOCK_ROWS + row) * QUAD;
                // Four numbers below 16 at a time.
                let [low, high] =
                    [0, QUAD].map(|i| u32::from_le_bytes([eight[i], eight[i + 1], eight[i + 2], eight[i + 3]]));
                quants[at..at + QUAD].copy_from_slice(&(low | high << 4).to_le_bytes());
            }
        }
    }
}

/// Adding it rounds a number of magnitude below 2^22 to an integer, ties to even, in the lowest bits.
pub(crate) const ROUND: f32 = 12_582_912.0;

/// Magnitudes below it are taken for zero: the inverse of a scale would overflow.
pub(crate) const TINY: f32 = 1.925_93e-34; // 2^-112

/// The bits of the largest magnitude: those of infinity or more if there is an infinity or NaN.
#[inline(always)]
pub(super) fn magnitude_bits(values: &[f32; GROUP]) -> u32 {
    let mut lanes = [0u32; 16];
    for part in values.as_chunks::<16>().0 {
        for l in 0..16 {
            lanes[l] = lanes[l].max(part[l].to_bits() & 0x7fff_ffff);
        }
    }
    let mut max = 0;
    for lane in lanes {
        max = max.max(lane);
    }
    max
}

#[inline(always)]
fn is_finite(magnitude_bits: u32) -> bool {
    magnitude_bits < f32::INFINITY.to_bits()
}

#[inline(always)]
fn group_of_8_bits(values: &[f32; GROUP]) -> (bf16, [u8; GROUP]) {
    let mut numbers = [128; GROUP];
    let magnitude = magnitude_bits(values);
    if !is_finite(magnitude) {
        return (bf16::NAN, numbers);
    }
    let magnitude = f32::from_bits(magnitude);
    if magnitude < TINY {
        return (bf16::ZERO, numbers);
    }
    // Where the scale is rounded down, the largest magnitudes are clamped to 127 steps: by less than half a step.
    let scale = bf16::from_f32(magnitude / 127.0);
    let inverse = 1.0 / scale.to_f32();
    for i in 0..GROUP {
        let steps = (values[i] * inverse).clamp(-127.0, 127.0);
        numbers[i] = ((steps + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as u8).wrapping_add(128);
    }
    (scale, numbers)
}

/// Scales to try for a group: its largest magnitude divided by minus each of these. With 8 the largest magnitude becomes -8, the
/// lowest step; with more it is clamped to it, which makes the other steps finer.
const DIVISORS: [f32; 6] = [8.0, 8.5, 9.0, 9.5, 10.0, 7.5];

#[inline(always)]
fn group_of_4_bits<S: Simd>(simd: S, values: &[f32; GROUP]) -> (bf16, [u8; GROUP]) {
    let mut numbers = [8; GROUP];
    let magnitude = magnitude_bits(values);
    if !is_finite(magnitude) {
        return (bf16::NAN, numbers);
    }
    if f32::from_bits(magnitude) < TINY {
        return (bf16::ZERO, numbers);
    }
    let mut least = simd.splat(0.0);
    for part in values.chunks_exact(S::LANES) {
        least = simd.min(simd.load_slice(part), least);
    }
    let magnitude = f32::from_bits(magnitude);
    let is_negative = simd.greatest(simd.sub(simd.splat(0.0), least)) == magnitude;
    let extreme = if is_negative { -magnitude } else { magnitude };

    // In units of the largest magnitude nothing overflows or underflows.
    let mut units = [0.0; GROUP];
    let inverse = simd.splat(-1.0 / extreme);
    for (unit, value) in units.chunks_exact_mut(S::LANES).zip(values.chunks_exact(S::LANES)) {
        simd.store_slice(unit, simd.mul(simd.load_slice(value), inverse));
    }
    // For given steps `q` of values `x` the scale `sum x q / sum q^2` is the best one. It leaves an error of
    // `sum x^2 - (sum x q)^2 / sum q^2`.
    // All scales are tried side by side, and their sums of `x q` and `q^2` are reduced together.
    let mut sums = [[simd.splat(0.0); 4]; 2 * DIVISORS.len()];
    for part in units.as_chunks::<MAX_LANES>().0 {
        for v in 0..MAX_LANES / S::LANES {
            let x = simd.load_slice(&part[v * S::LANES..]);
            for i in 0..DIVISORS.len() {
                let steps = steps_of_4_bits(simd, x, DIVISORS[i]);
                sums[2 * i][v] = simd.add(sums[2 * i][v], simd.mul(x, steps));
                sums[2 * i + 1][v] = simd.add(sums[2 * i + 1][v], simd.mul(steps, steps));
            }
        }
    }
    let sums = reduce(simd, &sums);
    let (mut best_gain, mut best_divisor, mut best_scale) = (-1.0, DIVISORS[0], 0.0);
    for i in 0..DIVISORS.len() {
        let (products, squares) = (sums[2 * i], sums[2 * i + 1]);
        let gain = products * products / squares;
        if gain > best_gain {
            (best_gain, best_divisor, best_scale) = (gain, DIVISORS[i], products / squares);
        }
    }
    let mut steps = [0.0; GROUP];
    for (steps, unit) in steps.chunks_exact_mut(S::LANES).zip(units.chunks_exact(S::LANES)) {
        simd.store_slice(steps, steps_of_4_bits(simd, simd.load_slice(unit), best_divisor));
    }
    for i in 0..GROUP {
        numbers[i] = (steps[i] + (ROUND + 8.0)).to_bits() as u8;
    }
    (bf16::from_f32(-best_scale * extreme), numbers)
}

/// The nearest of the steps from -8 to 7.
#[inline(always)]
fn steps_of_4_bits<S: Simd>(simd: S, x: S::Vector, divisor: f32) -> S::Vector {
    let steps = simd.mul(x, simd.splat(divisor));
    let steps = simd.min(simd.max(steps, simd.splat(-8.0)), simd.splat(7.0));
    simd.sub(simd.add(steps, simd.splat(ROUND)), simd.splat(ROUND))
}

/// The sum of the 16 lanes of each, in one vector or several: halves are added until one lane is left, in the same order on every
/// instruction set.
#[inline(always)]
fn reduce<S: Simd, const N: usize>(simd: S, vectors: &[[S::Vector; 4]; N]) -> [f32; N] {
    let mut sums = [0.0; N];
    if S::LANES >= 8 {
        // That is the order of `Simd::sum4`.
        let mut first = [simd.splat(0.0); N];
        for i in 0..N {
            first[i] = if S::LANES == MAX_LANES { vectors[i][0] } else { simd.add(vectors[i][0], vectors[i][1]) };
        }
        for (sums, first) in sums.as_chunks_mut::<4>().0.iter_mut().zip(first.as_chunks::<4>().0) {
            *sums = simd.sum4(*first);
        }
        return sums;
    }
    for (sum, vectors) in sums.iter_mut().zip(vectors) {
        let mut lanes = [0.0; MAX_LANES];
        for v in 0..MAX_LANES / S::LANES {
            simd.store_slice(&mut lanes[v * S::LANES..], vectors[v]);
        }
        for half in [8, 4, 2, 1] {
            for l in 0..half {
                lanes[l] += lanes[l + half];
            }
        }
        *sum = lanes[0];
    }
    sums
}

const _: () = assert!((2 * DIVISORS.len()).is_multiple_of(4));

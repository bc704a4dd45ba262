//! Quantisation of weights, once, while a model loads.

use std::marker::PhantomData;

use half::bf16;

use super::{
    BLOCK_ROWS, GROUP, QUAD, Quantization, QuantizedFormat, SCALE_BYTES,
    int4::{self, SIDE_BYTES},
    rotation::{Columns, rotate_weights},
};
use crate::{
    DType, MatrixRef, ThreadPool,
    matmul::element::{Bf16, Element, F16, F32},
    simd::{Kernel, Level, Simd, dispatch},
};

/// Quantises `source` into `target`, which has [`Quantization::bytes`] bytes. Each group of a row is rotated first (see
/// [`super::rotation`]).
///
/// 8 bits: a group's largest magnitude becomes 127, the others the nearest of the steps below it. 4 bits: of several scales and all
/// multipliers those with the least sum of squared errors (see [`super::int4`]). A group that holds an infinity or NaN gets the scale
/// NaN; one whose magnitudes are all below 2^-112 is taken for zero.
///
/// # Panics
/// If a shape does not fit its data.
pub fn quantize(pool: &ThreadPool, quantization: Quantization, source: MatrixRef, target: &mut [u8]) {
    quantize_on(Level::chosen(), pool, quantization, source, target);
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
    let format = QuantizedFormat::from(quantization);
    let (quants, sides) = target.split_at_mut(blocks * groups * format.group_bytes());
    let quants = quants.chunks_exact_mut(groups * format.group_bytes());
    let targets = quants.zip(sides.chunks_exact_mut(groups * format.side_bytes())).enumerate();
    pool.for_each_item(blocks, targets, |(block, (quants, sides))| {
        let first = block * BLOCK_ROWS;
        let source = source.slice_rows(first, BLOCK_ROWS.min(rows - first));
        match source.dtype() {
            DType::F32 => dispatch(level, Block::<F32> { quantization, source, quants, sides, element: PhantomData }),
            DType::Bf16 => dispatch(level, Block::<Bf16> { quantization, source, quants, sides, element: PhantomData }),
            DType::F16 => dispatch(level, Block::<F16> { quantization, source, quants, sides, element: PhantomData }),
        }
    });
}

/// Up to [`BLOCK_ROWS`] rows.
struct Block<'a, E> {
    quantization: Quantization,
    source: MatrixRef<'a>,
    quants: &'a mut [u8],
    sides: &'a mut [u8],
    element: PhantomData<E>,
}

impl<E: Element> Kernel for Block<'_, E> {
    type Output = ();

    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // Iterators take closures.
    fn run<S: Simd>(self, simd: S) {
        let Self { quantization, source, quants, sides, .. } = self;
        let format = QuantizedFormat::from(quantization);
        let quants = quants.chunks_exact_mut(format.group_bytes());
        let mut columns = Columns([[0.0; BLOCK_ROWS]; GROUP]);
        let mut numbers = [[0; BLOCK_ROWS]; GROUP];
        for (g, (quants, side)) in quants.zip(sides.chunks_exact_mut(format.side_bytes())).enumerate() {
            let count = GROUP.min(source.cols() - g * GROUP);
            for row in 0..BLOCK_ROWS {
                let mut values = [0.0; GROUP];
                if row < source.rows() {
                    let first = (row * source.cols() + g * GROUP) * E::SIZE;
                    widen_group::<S, E>(simd, &source.data()[first..first + count * E::SIZE], count, &mut values);
                }
                for column in 0..GROUP {
                    columns.0[column][row] = values[column];
                }
            }
            rotate_weights(simd, &mut columns);
            let (scales, rest) = side.split_at_mut(SCALE_BYTES);
            let chosen = match quantization {
                Quantization::Int8 => {
                    let chosen = groups_of_8_bits(&mut columns, &mut numbers);
                    place_bytes(&numbers, quants);
                    chosen
                }
                Quantization::Int4 => {
                    let mut multipliers = [0; SIDE_BYTES - SCALE_BYTES];
                    let chosen = groups_of_4_bits(simd, &mut columns, &mut numbers, &mut multipliers);
                    rest.copy_from_slice(&multipliers);
                    place_nibbles(&numbers, quants);
                    chosen
                }
            };
            for row in 0..BLOCK_ROWS {
                scales[2 * row..2 * row + 2].copy_from_slice(&chosen[row].to_le_bytes());
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

/// Writes the numbers of a group to their places in the layout.
#[inline(always)]
fn place_bytes(numbers: &[[u8; BLOCK_ROWS]; GROUP], quants: &mut [u8]) {
    for (quad, target) in quants.as_chunks_mut::<{ BLOCK_ROWS * QUAD }>().0.iter_mut().enumerate() {
        for row in 0..BLOCK_ROWS {
            for i in 0..QUAD {
                target[row * QUAD + i] = numbers[quad * QUAD + i][row];
            }
        }
    }
}

/// The same for numbers below 16, two of which share a byte.
#[inline(always)]
fn place_nibbles(numbers: &[[u8; BLOCK_ROWS]; GROUP], quants: &mut [u8]) {
    for (pair, target) in quants.as_chunks_mut::<{ BLOCK_ROWS * QUAD }>().0.iter_mut().enumerate() {
        for row in 0..BLOCK_ROWS {
            for i in 0..QUAD {
                let column = 2 * pair * QUAD + i;
                target[row * QUAD + i] = numbers[column][row] | numbers[column + QUAD][row] << 4;
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
pub(super) fn magnitude_bits(values: &[f32]) -> u32 {
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

/// The largest magnitude of each row. Rows that hold an infinity or NaN have NaN there and are set to zero, and so are those whose
/// magnitudes are all below [`TINY`].
#[inline(always)]
fn magnitudes(columns: &mut Columns) -> [f32; BLOCK_ROWS] {
    let mut bits = [0u32; BLOCK_ROWS];
    for column in &columns.0 {
        for row in 0..BLOCK_ROWS {
            bits[row] = bits[row].max(column[row].to_bits() & 0x7fff_ffff);
        }
    }
    let mut magnitudes = [0.0; BLOCK_ROWS];
    for row in 0..BLOCK_ROWS {
        let magnitude = f32::from_bits(bits[row]);
        if is_finite(bits[row]) && magnitude >= TINY {
            magnitudes[row] = magnitude;
            continue;
        }
        magnitudes[row] = if is_finite(bits[row]) { 0.0 } else { f32::NAN };
        for column in &mut columns.0 {
            column[row] = 0.0;
        }
    }
    magnitudes
}

#[inline(always)]
fn groups_of_8_bits(columns: &mut Columns, numbers: &mut [[u8; BLOCK_ROWS]; GROUP]) -> [bf16; BLOCK_ROWS] {
    let magnitudes = magnitudes(columns);
    let mut scales = [bf16::ZERO; BLOCK_ROWS];
    let mut inverses = [0.0; BLOCK_ROWS];
    for row in 0..BLOCK_ROWS {
        scales[row] = bf16::from_f32(magnitudes[row] / 127.0);
        if magnitudes[row] > 0.0 {
            inverses[row] = 1.0 / scales[row].to_f32();
        }
    }
    for (column, numbers) in columns.0.iter().zip(numbers) {
        for row in 0..BLOCK_ROWS {
            // Where the scale is rounded down, the largest magnitudes are clamped to 127 steps: by less than half a step.
            let steps = (column[row] * inverses[row]).clamp(-127.0, 127.0);
            numbers[row] = ((steps + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as u8).wrapping_add(128);
        }
    }
    scales
}

#[inline(always)]
fn groups_of_4_bits<S: Simd>(
    simd: S,
    columns: &mut Columns,
    numbers: &mut [[u8; BLOCK_ROWS]; GROUP],
    multipliers: &mut [u8; SIDE_BYTES - SCALE_BYTES],
) -> [bf16; BLOCK_ROWS] {
    let magnitudes = magnitudes(columns);
    // In units of the largest magnitude nothing overflows or underflows.
    let mut inverses = [0.0; BLOCK_ROWS];
    for row in 0..BLOCK_ROWS {
        if magnitudes[row] > 0.0 {
            inverses[row] = 1.0 / magnitudes[row];
        }
    }
    for column in &mut columns.0 {
        for row in 0..BLOCK_ROWS {
            column[row] *= inverses[row];
        }
    }
    int4::quantize_group(simd, columns, &magnitudes, numbers, multipliers)
}

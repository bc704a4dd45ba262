//! What the tests of quantised weights share.

mod activations;
mod errors;
mod products;
mod weights;

use std::num::NonZeroUsize;

use super::{dot::DotLevel, product::quantized_matmul_on, weights::quantize_on, *};
use crate::{DType, MatrixRef, Rows, RowsMut, ThreadPool, Write, matmul::tests::numbers, narrow, simd::Level, swiglu};

pub(super) fn pool(threads: usize) -> ThreadPool {
    ThreadPool::new(NonZeroUsize::new(threads).unwrap())
}

const BOTH: [Quantization; 2] = [Quantization::Int8, Quantization::Int4];

fn bytes_of(values: &[f32], dtype: DType) -> Vec<u8> {
    let mut bytes = vec![0; values.len() * dtype.size()];
    narrow(values, dtype, &mut bytes);
    bytes
}

fn quantized(quantization: Quantization, rows: usize, cols: usize, values: &[f32]) -> Vec<u8> {
    let source = bytes_of(values, DType::F32);
    let mut target = vec![0; quantization.bytes(rows, cols).unwrap()];
    quantize(&pool(1), quantization, MatrixRef::new(DType::F32, rows, cols, &source).unwrap(), &mut target);
    target
}

/// The number and the scale of element (`row`, `col`), read from the layout as the documentation states it. Columns go up to
/// a multiple of 128.
fn element(matrix: &QuantizedRef, row: usize, col: usize) -> (i32, f32) {
    let groups = matrix.cols.div_ceil(128);
    let (group_bytes, side_bytes) = if matrix.format == Quantization::Int8.into() { (2048, 32) } else { (1024, 80) };
    let (block, lane, group, quad) = (row / 16, row % 16, col / 128, col % 128 / 4);
    let quants = &matrix.data[(block * groups + group) * group_bytes..];
    let sides = &matrix.data[matrix.rows.div_ceil(16) * groups * group_bytes..];
    let side = &sides[(block * groups + group) * side_bytes..];
    let number = match matrix.format {
        QuantizedFormat::Repacked(_) => unreachable!(),
        QuantizedFormat::Quantized(Quantization::Int8) => i32::from(quants[quad * 64 + lane * 4 + col % 4]) - 128,
        QuantizedFormat::Quantized(Quantization::Int4) => {
            let byte = quants[quad / 2 * 64 + lane * 4 + col % 4];
            let nibble = if quad.is_multiple_of(2) { byte & 15 } else { byte >> 4 };
            let codebook = [-21, -17, -14, -11, -8, -6, -4, -2, 0, 2, 4, 6, 8, 11, 14, 19];
            let subgroup = col % 128 / 16;
            let magnitudes = side[32 + subgroup / 4 * 16 + lane] >> (2 * (subgroup % 4)) & 3;
            let is_negative = side[64 + lane] >> subgroup & 1 == 1;
            let magnitude = 3 + i32::from(magnitudes);
            if is_negative {
                -magnitude * codebook[usize::from(nibble)]
            } else {
                magnitude * codebook[usize::from(nibble)]
            }
        }
    };
    (number, half::bf16::from_le_bytes([side[2 * lane], side[2 * lane + 1]]).to_f32())
}

/// The product of a vector of a group with the Walsh-Hadamard matrix, by its definition: the sign of an element is that of the parity of
/// the bits that row and column share.
fn transformed(values: &[f64]) -> Vec<f64> {
    let sign = |i: usize, j: usize| if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
    (0..128).map(|i| values.iter().enumerate().map(|(j, x)| sign(i, j) * x).sum()).collect()
}

struct Case {
    quantization: Quantization,
    rows: usize,
    cols: usize,
    tokens: usize,
    input: Vec<f32>,
    data: Vec<u8>,
}

impl Case {
    fn new(quantization: Quantization, rows: usize, cols: usize, tokens: usize, seed: u64) -> Self {
        let mut next = numbers(seed);
        let weight: Vec<f32> = (0..rows * cols).map(|_| next()).collect();
        let data = quantized(quantization, rows, cols, &weight);
        Self { quantization, rows, cols, tokens, input: (0..tokens * cols).map(|_| 3.0 * next()).collect(), data }
    }

    fn weight(&self) -> QuantizedRef<'_> {
        QuantizedRef::new(self.quantization, self.rows, self.cols, &self.data).unwrap()
    }

    fn quantized_input(&self, level: Level, pool: &ThreadPool) -> QuantizedInput {
        let mut input = QuantizedInput::new(Grouping::Rotated);
        let rows = Rows::new(&self.input, self.cols);
        input.quantize_on(level, pool, self.tokens, self.cols, rows);
        input
    }

    fn compute(&self, level: DotLevel, pool: &ThreadPool) -> Vec<f32> {
        let mut output = vec![f32::NAN; self.tokens * self.rows];
        let input = self.quantized_input(Level::chosen(), pool);
        quantized_matmul_on(level, pool, &input, self.weight(), RowsMut::new(&mut output, self.rows), Write::Set);
        output
    }

    /// Each output by the definition: integer sums, scales, one rounding a group.
    fn expected(&self) -> Vec<f32> {
        let input = self.quantized_input(Level::Portable, &pool(1));
        let (weight, groups) = (self.weight(), self.cols.div_ceil(128));
        let mut outputs = Vec::new();
        for t in 0..self.tokens {
            for r in 0..self.rows {
                let mut y = 0.0f32;
                for g in 0..groups {
                    let (numbers, scale) = input.group(t, g);
                    let products = (0..128).map(|c| element(&weight, r, g * 128 + c).0 * i32::from(numbers[c]));
                    let sum: i32 = products.sum();
                    y = (sum as f32).mul_add(element(&weight, r, g * 128).1 * scale[0], y);
                }
                outputs.push(y);
            }
        }
        outputs
    }
}

#[track_caller]
pub(super) fn assert_same_bits(context: &str, actual: &[f32], expected: &[f32]) {
    assert_eq!(actual.len(), expected.len(), "{context}");
    for (i, (a, b)) in actual.iter().zip(expected).enumerate() {
        let same = a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
        assert!(same, "{context}: output {i} is {a:e}, not {b:e}");
    }
}

/// Numbers of the standard normal distribution (Box and Muller 1958).
pub(super) fn normal(seed: u64) -> impl FnMut() -> f32 {
    let mut next = numbers(seed);
    move || {
        let (u, v) = (0.5 - 0.5 * next().min(0.999_999), next());
        (-2.0 * u.ln()).sqrt() * (std::f32::consts::PI * v).cos()
    }
}

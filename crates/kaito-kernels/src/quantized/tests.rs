use std::num::NonZeroUsize;

use proptest::prelude::*;

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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_shape_has_the_bits_of_the_definition_on_every_level(
        rows in 1usize..70,
        cols in prop_oneof![1usize..200, 500usize..1300],
        tokens in 1usize..30,
        seed: u64,
        threads in 1usize..4,
    ) {
        let pool = pool(threads);
        for quantization in BOTH {
            let case = Case::new(quantization, rows, cols, tokens, seed);
            let expected = case.expected();
            for &level in DotLevel::available() {
                let context = format!("{level:?} {quantization} {rows} x {cols}, {tokens} tokens");
                assert_same_bits(&context, &case.compute(level, &pool), &expected);
            }
        }
    }

    /// Whatever a file holds, every level reads the same numbers from it.
    #[test]
    fn any_bytes_have_the_same_product_on_every_level(
        rows in 1usize..40,
        cols in 1usize..300,
        tokens in 1usize..8,
        seed: u64,
        extreme: bool,
    ) {
        let mut next = numbers(seed);
        for quantization in BOTH {
            let mut case = Case::new(quantization, rows, cols, tokens, seed);
            for byte in &mut case.data {
                let any = (next() * 128.0) as i32 as u8;
                *byte = if extreme { if any < 128 { 0 } else { 255 } } else { any };
            }
            // The largest sums: all activations at one end.
            if extreme {
                case.input.iter_mut().for_each(|x| *x = x.signum());
            }
            let expected = case.compute(DotLevel::Portable, &pool(1));
            for &level in DotLevel::available() {
                let context = format!("{level:?} {quantization} {rows} x {cols}, {tokens} tokens");
                assert_same_bits(&context, &case.compute(level, &pool(1)), &expected);
            }
        }
    }
}

#[test]
fn bits_do_not_depend_on_tokens_threads_or_other_rows() {
    const TOKENS: usize = 300;
    const ROWS: usize = 77;
    let (alone, together) = (pool(1), pool(3));
    for quantization in BOTH {
        for cols in [40, 700, 1088] {
            let mut next = numbers(7);
            let weight: Vec<f32> = (0..ROWS * cols).map(|_| next()).collect();
            let all = Case::new(quantization, ROWS, cols, TOKENS, 5);
            let all = Case { data: quantized(quantization, ROWS, cols, &weight), ..all };
            for &level in DotLevel::available() {
                let expected = all.compute(level, &together);
                for tokens in [1, 2, 3, 5, 6, 7, 8, 12, 13, 16, 17, 31, 64, 257] {
                    for first in [0, TOKENS - tokens] {
                        let input = all.input[first * cols..(first + tokens) * cols].to_vec();
                        let part = Case { tokens, input, data: all.data.clone(), ..all };
                        let context = format!("{level:?} {quantization} {cols} columns, tokens {first}.. {tokens}");
                        let expected = &expected[first * ROWS..(first + tokens) * ROWS];
                        assert_same_bits(&context, &part.compute(level, &alone), expected);
                    }
                }
                for rows in [1, 15, 16, 33, 76] {
                    let data = quantized(quantization, rows, cols, &weight[..rows * cols]);
                    let part = Case { rows, data, input: all.input.clone(), ..all };
                    let context = format!("{level:?} {quantization} {cols} columns, {rows} rows");
                    let expected: Vec<f32> = expected.chunks(ROWS).flat_map(|row| row[..rows].to_vec()).collect();
                    assert_same_bits(&context, &part.compute(level, &together), &expected);
                }
            }
        }
    }
}

#[test]
fn quantisation_is_the_same_on_every_level_and_whatever_the_threads() {
    for quantization in BOTH {
        for dtype in [DType::F32, DType::Bf16, DType::F16] {
            for (rows, cols) in [(1, 1), (37, 130), (16, 64), (50, 1000)] {
                let mut next = numbers(rows as u64);
                let values: Vec<f32> = (0..rows * cols).map(|_| next()).collect();
                let source = bytes_of(&values, dtype);
                let source = MatrixRef::new(dtype, rows, cols, &source).unwrap();
                let on = |level, threads| {
                    let mut target = vec![0xaa; quantization.bytes(rows, cols).unwrap()];
                    quantize_on(level, &pool(threads), quantization, source, &mut target);
                    target
                };
                let expected = on(Level::Portable, 1);
                for &level in Level::available() {
                    for threads in [1, 3] {
                        assert!(on(level, threads) == expected, "{level:?} {quantization} {dtype} {rows} x {cols}");
                    }
                }
            }
        }
        let case = Case::new(quantization, 1, 1000, 40, 3);
        let expected = case.quantized_input(Level::Portable, &pool(1)).all_groups();
        for &level in Level::available() {
            assert!(case.quantized_input(level, &pool(3)).all_groups() == expected, "{level:?}");
        }
    }
}

#[test]
fn weights_of_8_bits_are_within_half_a_step() {
    for_groups_of_very_different_sizes(Quantization::Int8, |values, numbers, scale| {
        for (x, number) in values.iter().zip(numbers) {
            let error = (f64::from(*number) * scale - x).abs();
            // The scale is off by 2^-9 of itself at most: 127 steps by a quarter of one.
            assert!(error <= 0.76 * scale, "{x:e} is off by {error:e}, more than {:e}", 0.76 * scale);
        }
    });
}

/// Against the best of 16 numbers and 8 multipliers for each 16 columns, by trying all. A group's multipliers were chosen before its
/// scale was rounded to bf16, and between the two lowest numbers the threshold is 19.5 and not 19; so single groups may be worse.
#[test]
fn weights_of_4_bits_are_the_best_for_their_scales_and_the_scales_better_than_the_usual_ones() {
    let codebook = [-21.0, -17.0, -14.0, -11.0, -8.0, -6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0, 8.0, 11.0, 14.0, 19.0];
    let sums = std::cell::Cell::new([0.0; 3]);
    for_groups_of_very_different_sizes(Quantization::Int4, |values, numbers, scale| {
        let actual: f64 = values.iter().zip(numbers).map(|(x, number)| (f64::from(*number) * scale - x).powi(2)).sum();
        let best_with = |scale: f64| -> f64 {
            let of_subgroup = |values: &[f64]| -> f64 {
                let with = |multiplier: f64| -> f64 {
                    let errors = |x: &f64| codebook.map(|c| (c * multiplier * scale - x).powi(2));
                    values.iter().map(|x| errors(x).into_iter().fold(f64::INFINITY, f64::min)).sum()
                };
                [3.0, 4.0, 5.0, 6.0, -3.0, -4.0, -5.0, -6.0].map(with).into_iter().fold(f64::INFINITY, f64::min)
            };
            values.chunks(16).map(of_subgroup).sum()
        };
        // The usual scale makes the largest magnitude the largest weight.
        let largest = values.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
        let size: f64 = values.iter().map(|x| x * x).sum();
        let [mut sum, mut least, mut usual] = sums.get();
        sum += actual / size;
        least += best_with(scale) / size;
        usual += best_with(largest / 126.0) / size;
        sums.set([sum, least, usual]);
    });
    let [actual, least, usual] = sums.get();
    assert!(least <= actual && actual <= 1.01 * least, "{actual:e} against {least:e}");
    assert!(actual < usual, "{actual:e} against {usual:e}");
}

/// Calls `check` with the rotated values, the numbers and the scale of each group of rows of sizes from 2^-110 to 2^114.
fn for_groups_of_very_different_sizes(quantization: Quantization, check: impl Fn(&[f64], &[i32], f64)) {
    let (rows, cols) = (33, 200);
    let mut next = numbers(1);
    let values: Vec<f32> = (0..rows * cols).map(|i| next() * 2f32.powi((i / cols) as i32 * 7 - 110)).collect();
    let data = quantized(quantization, rows, cols, &values);
    let matrix = QuantizedRef::new(quantization, rows, cols, &data).unwrap();
    for row in 0..rows {
        for first in (0..cols).step_by(128) {
            let columns = first..cols.min(first + 128);
            let exact: Vec<f64> = columns.map(|col| f64::from(values[row * cols + col])).collect();
            let numbers: Vec<i32> = (first..first + 128).map(|col| element(&matrix, row, col).0).collect();
            check(&transformed(&exact), &numbers, f64::from(element(&matrix, row, first).1));
        }
    }
}

#[test]
fn activations_are_rotated_and_within_half_a_step() {
    let case = Case::new(Quantization::Int8, 1, 200, 3, 8);
    let input = case.quantized_input(Level::chosen(), &pool(1));
    for token in 0..3 {
        for (group, columns) in [0..128, 128..200].into_iter().enumerate() {
            let values: Vec<f64> = columns.map(|col| f64::from(case.input[token * 200 + col]) / 128.0).collect();
            let (numbers, scale) = input.group(token, group);
            assert!(numbers.iter().any(|number| number.abs() == 127));
            for (number, x) in numbers.into_iter().zip(transformed(&values)) {
                let error = (f64::from(number) * f64::from(scale[0]) - x).abs();
                assert!(error <= 0.501 * f64::from(scale[0]), "{x} is off by {error} with steps of {}", scale[0]);
            }
        }
    }
}

#[test]
fn missing_rows_and_columns_are_zero_and_so_is_a_group_of_zeros() {
    for quantization in BOTH {
        let data = quantized(quantization, 3, 70, &[0.0; 210]);
        let matrix = QuantizedRef::new(quantization, 16, 128, &data).unwrap();
        for row in 0..16 {
            for col in 0..128 {
                assert_eq!(element(&matrix, row, col).0, 0, "{quantization} {row} {col}");
            }
        }
        assert!((0..16).all(|row| element(&matrix, row, 0).1 == 0.0));
    }
}

#[test]
fn special_activations() {
    let tiny = f32::from_bits(3);
    for quantization in BOTH {
        for cols in [64, 100, 700] {
            for tokens in [1, 4, 20] {
                for (name, x, expected) in [
                    ("infinity", f32::INFINITY, f32::NAN),
                    ("minus infinity", f32::NEG_INFINITY, f32::NAN),
                    ("not a number", f32::NAN, f32::NAN),
                    ("denormal", tiny, 0.0),
                    ("nothing", 0.0, 0.0),
                    ("the largest", f32::MAX, f32::INFINITY),
                ] {
                    let mut input = vec![0.0; tokens * cols];
                    let at = cols - 1;
                    // The last token's alone.
                    input[(tokens - 1) * cols + at] = x;
                    let data = quantized(quantization, 17, cols, &vec![3.0; 17 * cols]);
                    let case = Case { quantization, rows: 17, cols, tokens, input, data };
                    for &level in DotLevel::available() {
                        let context = format!("{name}: {level:?} {quantization} {cols} columns, {tokens} tokens");
                        let output = case.compute(level, &pool(1));
                        let (others, last) = output.split_at((tokens - 1) * 17);
                        assert!(others.iter().all(|&y| y == 0.0), "{context}: {others:?}");
                        assert_same_bits(&context, last, &[expected; 17]);
                    }
                }
            }
        }
    }
}

#[test]
fn weights_that_are_no_numbers_spoil_their_rows_alone() {
    for quantization in BOTH {
        let sound = Case::new(quantization, 20, 70, 1, 6);
        let mut next = numbers(6);
        let values: Vec<f32> = (0..20 * 70).map(|_| next()).collect();
        for x in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = values.clone();
            values[5 * 70 + 66] = x;
            let data = quantized(quantization, 20, 70, &values);
            let case = Case { data, input: sound.input.clone(), ..sound };
            for &level in DotLevel::available() {
                let mut expected = sound.compute(level, &pool(1));
                expected[5] = f32::NAN;
                assert_same_bits(&format!("{level:?} {quantization} {x}"), &case.compute(level, &pool(1)), &expected);
            }
        }
    }
}

#[test]
fn rows_lie_where_strides_and_offsets_say_and_neighbours_stay() {
    let pool = pool(2);
    for quantization in BOTH {
        for tokens in [1, 3, 20] {
            let case = Case::new(quantization, 19, 137, tokens, 9);
            for &level in DotLevel::available() {
                let expected = case.compute(level, &pool);
                let mut strided = vec![f32::NAN; tokens * 150];
                for t in 0..tokens {
                    strided[t * 150 + 7..][..137].copy_from_slice(&case.input[t * 137..][..137]);
                }
                let mut input = QuantizedInput::new(Grouping::Rotated);
                let rows = Rows { data: &strided, stride: 150, offset: 7 };
                input.quantize(&pool, tokens, 137, rows);
                let mut output = vec![1.5; tokens * 30];
                let out = RowsMut { data: &mut output, stride: 30, offset: 11 };
                quantized_matmul_on(level, &pool, &input, case.weight(), out, Write::Set);
                for (i, &y) in output.iter().enumerate() {
                    let (t, r) = (i / 30, (i % 30).wrapping_sub(11));
                    let expected = if r < 19 { expected[t * 19 + r] } else { 1.5 };
                    assert_eq!(y, expected, "{level:?}: element {i}");
                }
                // What is added begins at what is there.
                let mut sums = vec![0.25; tokens * 19];
                let out = RowsMut::new(&mut sums, 19);
                quantized_matmul_on(level, &pool, &input, case.weight(), out, Write::Add);
                for (y, expected) in sums.iter().zip(&expected) {
                    assert!(
                        (y - 0.25 - expected).abs() <= 1e-4 * expected.abs().max(1.0),
                        "{level:?}: {y}, {expected}"
                    );
                }
            }
        }
    }
}

#[test]
fn quantising_swiglu_has_the_bits_of_its_parts() {
    let cases = [(1, 1, 0..1), (3, 130, 0..130), (20, 700, 65..600), (37, 5632, 0..5632), (2, 9, 4..4)];
    for (tokens, inner, columns) in cases {
        let (mut next, stride) = (numbers(inner as u64), 2 * inner + 3);
        let mut gate_up: Vec<f32> = (0..tokens * stride).map(|_| 8.0 * next()).collect();
        gate_up[3] = f32::INFINITY;
        let rows = Rows { data: &gate_up, stride, offset: 3 };
        let mut activated = vec![0.0; tokens * inner];
        swiglu(&pool(1), tokens, rows, inner, RowsMut::new(&mut activated, inner));
        let input = Rows { data: &activated, stride: inner, offset: columns.start };
        let mut expected = QuantizedInput::new(Grouping::Rotated);
        expected.quantize(&pool(1), tokens, columns.len(), input);
        for threads in [1, 3] {
            let mut fused = QuantizedInput::new(Grouping::Rotated);
            fused.quantize_swiglu(&pool(threads), tokens, rows, inner, columns.clone());
            for (token, group) in (0..tokens).flat_map(|t| (0..columns.len().div_ceil(128)).map(move |g| (t, g))) {
                let ((numbers, scale), (others, other)) = (fused.group(token, group), expected.group(token, group));
                assert_eq!(
                    (numbers, scale[0].to_bits()),
                    (others, other[0].to_bits()),
                    "group {group} of token {token}"
                );
            }
            assert_eq!(fused.all_groups().2, expected.all_groups().2);
        }
    }
}

#[test]
fn memory_of_an_input_is_used_again() {
    let case = Case::new(Quantization::Int8, 1, 640, 20, 4);
    let mut input = case.quantized_input(Level::chosen(), &pool(1));
    let capacity = input.capacity();
    let rows = Rows::new(&case.input, 640);
    input.quantize(&pool(1), 3, 640, rows);
    input.quantize(&pool(1), 20, 640, rows);
    assert_eq!(input.capacity(), capacity);
    assert!(input.all_groups() == case.quantized_input(Level::chosen(), &pool(1)).all_groups());
}

#[test]
fn lengths_are_checked() {
    assert_eq!(Quantization::Int8.bytes(16, 128), Some(2048 + 32));
    assert_eq!(Quantization::Int4.bytes(17, 129), Some(4 * (1024 + 80)));
    assert_eq!(Quantization::Int8.bytes(usize::MAX, usize::MAX), None);
    let error = QuantizedRef::new(Quantization::Int4, 16, 64, &[0; 1103]).unwrap_err();
    assert_eq!(error.to_string(), "a matrix of 16 x 64 in int4 does not have 1103 bytes");
}

#[test]
#[should_panic(expected = "columns of the input and of the weights")]
fn an_input_for_other_weights_is_refused() {
    let data = quantized(Quantization::Int4, 1, 64, &[0.0; 64]);
    let weight = QuantizedRef::new(Quantization::Int4, 1, 64, &data).unwrap();
    let mut input = QuantizedInput::new(Grouping::Rotated);
    input.quantize(&pool(1), 1, 65, Rows::new(&[0.0; 65], 65));
    quantized_matmul(&pool(1), &input, weight, RowsMut::new(&mut [0.0], 1), Write::Set);
}

#[test]
fn empty_sums_are_zero() {
    let weight = QuantizedRef::new(Quantization::Int8, 3, 0, &[]).unwrap();
    let mut input = QuantizedInput::new(Grouping::Rotated);
    input.quantize(&pool(1), 1, 0, Rows::new(&[], 0));
    let mut y = [1.0, 2.0, 3.0];
    quantized_matmul(&pool(1), &input, weight, RowsMut::new(&mut y, 3), Write::Add);
    assert_eq!(y, [1.0, 2.0, 3.0]);
    quantized_matmul(&pool(1), &input, weight, RowsMut::new(&mut y, 3), Write::Set);
    assert_eq!(y, [0.0; 3]);
}

/// Numbers of the standard normal distribution (Box and Muller 1958).
fn normal(seed: u64) -> impl FnMut() -> f32 {
    let mut next = numbers(seed);
    move || {
        let (u, v) = (0.5 - 0.5 * next().min(0.999_999), next());
        (-2.0 * u.ln()).sqrt() * (std::f32::consts::PI * v).cos()
    }
}

/// The error of a product, as a part of its own size: of normal weights, whose rows do not influence each other, and
/// normal activations, with and without the few large components that language models have.
///
/// Of 128 normal numbers the greatest magnitude is near 2.9. Steps of a 127th of that have a root mean square error of
/// 2.9 / 127 / sqrt(12) = 0.0066; weights and activations together 0.0094. A component 20 times as large as the others is, rotated,
/// 20 / sqrt(128) = 1.8 in each of them, next to 1: the greatest magnitude is near 1.8 + 2.9, the size sqrt(1 + 1.8^2), and so the error
/// no larger than without it. 4 bits have the error of their weights, near 0.07.
/// A thousand results tell these parts to some 3%.
#[test]
fn relative_errors_of_true_shapes() {
    const ROWS: usize = 256;
    const TOKENS: usize = 4;
    println!("columns  activations  int8    int4");
    for cols in [2048, 3072, 4096, 4544, 5632, 8192, 11008, 14336, 18176] {
        let mut next = normal(cols as u64);
        let weight: Vec<f32> = (0..ROWS * cols).map(|_| 0.02 * next()).collect();
        for (name, large, bounds) in [("normal", 1.0, [0.0105, 0.078]), ("a few large", 20.0, [0.0125, 0.078])] {
            let size = |i: usize| if i % cols % 128 == 77 { large } else { 1.0 };
            let input: Vec<f32> = (0..TOKENS * cols).map(|i| size(i) * next()).collect();
            let mut errors = [0.0; 2];
            for (error, quantization) in errors.iter_mut().zip([Quantization::Int8, Quantization::Int4]) {
                let data = quantized(quantization, ROWS, cols, &weight);
                let case = Case { quantization, rows: ROWS, cols, tokens: TOKENS, input: input.clone(), data };
                let output = case.compute(DotLevel::chosen(), &pool(2));
                let (mut squares, mut sizes) = (0.0, 0.0);
                for (i, y) in output.into_iter().enumerate() {
                    let (x, w) = (&input[i / ROWS * cols..][..cols], &weight[i % ROWS * cols..][..cols]);
                    let exact: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                    squares += (f64::from(y) - exact).powi(2);
                    sizes += exact.powi(2);
                }
                *error = (squares / sizes).sqrt();
            }
            println!("{cols:7}  {name:11}  {:.4}  {:.4}", errors[0], errors[1]);
            for (error, bound) in errors.into_iter().zip(bounds) {
                assert!(error < bound, "{cols} columns, {name}: {error} is not below {bound}");
            }
        }
    }
}

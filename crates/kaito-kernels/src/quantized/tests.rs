use std::num::NonZeroUsize;

use proptest::prelude::*;

use super::{dot::DotLevel, input::InputGroup, product::quantized_matmul_on, weights::quantize_on, *};
use crate::{DType, MatrixRef, Rows, RowsMut, ThreadPool, Write, matmul::tests::numbers, narrow, simd::Level};

fn pool(threads: usize) -> ThreadPool {
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

/// The number and the scale of element (`row`, `col`), read from the layout as the module's documentation states it.
fn element(matrix: &QuantizedRef, row: usize, col: usize) -> (i32, f32) {
    let groups = matrix.cols.div_ceil(64);
    let group_bytes = if matrix.quantization == Quantization::Int8 { 1024 } else { 512 };
    let (block, lane, group, quad) = (row / 16, row % 16, col / 64, col % 64 / 4);
    let quants = &matrix.data[(block * groups + group) * group_bytes..];
    let number = match matrix.quantization {
        Quantization::Int8 => i32::from(quants[quad * 64 + lane * 4 + col % 4]) - 128,
        Quantization::Int4 => {
            let byte = quants[quad / 2 * 64 + lane * 4 + col % 4];
            i32::from(if quad.is_multiple_of(2) { byte & 15 } else { byte >> 4 }) - 8
        }
    };
    let scales = &matrix.data[matrix.rows.div_ceil(16) * groups * group_bytes..];
    let at = ((block * groups + group) * 16 + lane) * 2;
    (number, half::bf16::from_le_bytes([scales[at], scales[at + 1]]).to_f32())
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
        let mut input = QuantizedInput::new();
        let rows = Rows::new(&self.input, self.cols);
        input.quantize_on(level, pool, self.quantization, self.tokens, self.cols, rows);
        input
    }

    fn compute(&self, level: DotLevel, pool: &ThreadPool) -> Vec<f32> {
        let mut output = vec![f32::NAN; self.tokens * self.rows];
        let input = self.quantized_input(Level::best(), pool);
        quantized_matmul_on(level, pool, &input, self.weight(), RowsMut::new(&mut output, self.rows), Write::Set);
        output
    }

    /// Each output by the definition: integer sums, scales, one rounding a group.
    fn expected(&self) -> Vec<f32> {
        let input = self.quantized_input(Level::Portable, &pool(1));
        let (weight, groups) = (self.weight(), self.cols.div_ceil(64));
        let mut outputs = Vec::new();
        for t in 0..self.tokens {
            for r in 0..self.rows {
                let mut y = 0.0f32;
                for g in 0..groups {
                    let x = &input.groups[t * groups + g];
                    let last = 64.min(self.cols - g * 64);
                    let products = (0..last).map(|c| element(&weight, r, g * 64 + c).0 * i32::from(x.values[c]));
                    let sum: i32 = products.sum();
                    y = (sum as f32).mul_add(element(&weight, r, g * 64).1 * x.scale, y);
                }
                outputs.push(y);
            }
        }
        outputs
    }
}

#[track_caller]
fn assert_same_bits(context: &str, actual: &[f32], expected: &[f32]) {
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
        let expected = case.quantized_input(Level::Portable, &pool(1)).groups;
        for &level in Level::available() {
            assert!(case.quantized_input(level, &pool(3)).groups == expected, "{level:?}");
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

#[test]
fn the_scale_of_4_bits_is_better_than_the_usual_ones() {
    for_groups_of_very_different_sizes(Quantization::Int4, |values, numbers, scale| {
        let squares = |approximate: &dyn Fn(usize) -> f64| -> f64 {
            values.iter().enumerate().map(|(i, x)| (approximate(i) - x).powi(2)).sum()
        };
        let actual = squares(&|i| f64::from(numbers[i]) * scale);
        let extreme = values.iter().copied().fold(0.0f64, |m, x| if x.abs() > m.abs() { x } else { m });
        // The scale is rounded to bf16, off by 2^-9 at most.
        let rounding = squares(&|_| 0.0) * 2f64.powi(-18);
        for divisor in [-8.0, -8.5, -9.0, -10.0] {
            let step = extreme / divisor;
            let usual = squares(&|i| (values[i] / step).round().clamp(-8.0, 7.0) * step);
            assert!(actual <= 1.0001 * usual + rounding, "divisor {divisor}: {actual:e} against {usual:e}");
        }
    });
}

/// Calls `check` with the values, the numbers and the scale of each group of rows of sizes from 2^-110 to 2^114.
fn for_groups_of_very_different_sizes(quantization: Quantization, check: impl Fn(&[f64], &[i32], f64)) {
    let (rows, cols) = (33, 200);
    let mut next = numbers(1);
    let values: Vec<f32> = (0..rows * cols).map(|i| next() * 2f32.powi((i / cols) as i32 * 7 - 110)).collect();
    let data = quantized(quantization, rows, cols, &values);
    let matrix = QuantizedRef::new(quantization, rows, cols, &data).unwrap();
    for row in 0..rows {
        for first in (0..cols).step_by(64) {
            let columns = first..cols.min(first + 64);
            let exact: Vec<f64> = columns.clone().map(|col| f64::from(values[row * cols + col])).collect();
            let numbers: Vec<i32> = columns.map(|col| element(&matrix, row, col).0).collect();
            check(&exact, &numbers, f64::from(element(&matrix, row, first).1));
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
        for x in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = vec![1.0; 20 * 70];
            values[5 * 70 + 66] = x;
            let data = quantized(quantization, 20, 70, &values);
            let case = Case { quantization, rows: 20, cols: 70, tokens: 1, input: vec![1.0; 70], data };
            for &level in DotLevel::available() {
                for (row, y) in case.compute(level, &pool(1)).into_iter().enumerate() {
                    let good = if row == 5 { y.is_nan() } else { (y - 70.0).abs() < 0.5 };
                    assert!(good, "{level:?} {quantization}: row {row} is {y}");
                }
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
                let mut input = QuantizedInput::new();
                let rows = Rows { data: &strided, stride: 150, offset: 7 };
                input.quantize(&pool, quantization, tokens, 137, rows);
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
fn memory_of_an_input_is_used_again() {
    let case = Case::new(Quantization::Int8, 1, 640, 20, 4);
    let mut input = case.quantized_input(Level::best(), &pool(1));
    let capacity = input.groups.capacity();
    let rows = Rows::new(&case.input, 640);
    input.quantize(&pool(1), Quantization::Int4, 3, 640, rows);
    input.quantize(&pool(1), Quantization::Int8, 20, 640, rows);
    assert_eq!(input.groups.capacity(), capacity);
    assert!(input.groups == case.quantized_input(Level::best(), &pool(1)).groups);
}

#[test]
fn lengths_are_checked() {
    assert_eq!(Quantization::Int8.bytes(16, 64), Some(1024 + 32));
    assert_eq!(Quantization::Int4.bytes(17, 65), Some(4 * (512 + 32)));
    assert_eq!(Quantization::Int8.bytes(usize::MAX, usize::MAX), None);
    let error = QuantizedRef::new(Quantization::Int4, 16, 64, &[0; 543]).unwrap_err();
    assert_eq!(error.to_string(), "an int4 matrix of 16 x 64 does not have 543 bytes");
    assert_eq!(size_of::<InputGroup>(), 72);
}

#[test]
#[should_panic(expected = "the input was quantised for 64 columns of int8 weights")]
fn an_input_for_other_weights_is_refused() {
    let data = quantized(Quantization::Int4, 1, 64, &[0.0; 64]);
    let weight = QuantizedRef::new(Quantization::Int4, 1, 64, &data).unwrap();
    let mut input = QuantizedInput::new();
    input.quantize(&pool(1), Quantization::Int8, 1, 64, Rows::new(&[0.0; 64], 64));
    quantized_matmul(&pool(1), &input, weight, RowsMut::new(&mut [0.0], 1), Write::Set);
}

#[test]
fn empty_sums_are_zero() {
    let weight = QuantizedRef::new(Quantization::Int8, 3, 0, &[]).unwrap();
    let mut input = QuantizedInput::new();
    input.quantize(&pool(1), Quantization::Int8, 1, 0, Rows::new(&[], 0));
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
/// Of 64 normal numbers the greatest magnitude is near 2.7. Steps of a 127th of that have a root mean square error of
/// 2.7 / 127 / sqrt(12) = 0.0061; weights and activations together 0.0087. 4 bits have the error of an optimal uniform
/// quantiser of 16 steps for 64 numbers at a time, near 0.09. A component 20 times as large as the others costs its group
/// steps of 20 / 127, an error of 0.045 in each of 63 others, next to a size of sqrt(63 + 400): 0.017 in its group.
/// A thousand results tell these parts to some 3%.
#[test]
fn relative_errors_of_true_shapes() {
    const ROWS: usize = 256;
    const TOKENS: usize = 4;
    println!("columns  activations  int8    int4");
    for cols in [2048, 3072, 4096, 4544, 5632, 8192, 11008, 14336, 18176] {
        let mut next = normal(cols as u64);
        let weight: Vec<f32> = (0..ROWS * cols).map(|_| 0.02 * next()).collect();
        for (name, large, bounds) in [("normal", 1.0, [0.0095, 0.1]), ("a few large", 20.0, [0.02, 0.1])] {
            let size = |i: usize| if i % cols % 128 == 77 { large } else { 1.0 };
            let input: Vec<f32> = (0..TOKENS * cols).map(|i| size(i) * next()).collect();
            let mut errors = [0.0; 2];
            for (error, quantization) in errors.iter_mut().zip([Quantization::Int8, Quantization::Int4]) {
                let data = quantized(quantization, ROWS, cols, &weight);
                let case = Case { quantization, rows: ROWS, cols, tokens: TOKENS, input: input.clone(), data };
                let output = case.compute(DotLevel::best(), &pool(2));
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

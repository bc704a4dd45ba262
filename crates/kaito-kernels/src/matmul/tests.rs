use std::num::NonZeroUsize;

use proptest::prelude::*;

use super::*;
use crate::{Rows, narrow, simd::Level};

/// Numbers between -1 and 1 that repeat after 2^64 (the generator of Steele and Vigna's SplitMix64).
pub(crate) fn numbers(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed;
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

fn pool(threads: usize) -> ThreadPool {
    ThreadPool::new(NonZeroUsize::new(threads).unwrap())
}

const DTYPES: [DType; 3] = [DType::F32, DType::Bf16, DType::F16];

fn matmul_on(
    level: Level,
    pool: &ThreadPool,
    tokens: usize,
    input: Rows,
    weight: MatrixRef,
    output: RowsMut,
    mode: Write,
) {
    let mut tiled = TiledInput::new();
    tiled.tile_on(level, pool, tokens, weight.cols(), input);
    matmul(pool, &tiled, weight, output, mode);
}

struct Case {
    dtype: DType,
    rows: usize,
    cols: usize,
    tokens: usize,
    input: Vec<f32>,
    bytes: Vec<u8>,
}

/// Weight bytes begin at an odd offset.
fn case(dtype: DType, rows: usize, cols: usize, tokens: usize, seed: u64) -> Case {
    let mut next = numbers(seed);
    let weight: Vec<f32> = (0..rows * cols).map(|_| next()).collect();
    let mut bytes = vec![0; 1 + weight.len() * dtype.size()];
    narrow(&weight, dtype, &mut bytes[1..]);
    Case { dtype, rows, cols, tokens, input: (0..tokens * cols).map(|_| next()).collect(), bytes }
}

impl Case {
    fn weight(&self) -> MatrixRef<'_> {
        MatrixRef::new(self.dtype, self.rows, self.cols, &self.bytes[1..]).unwrap()
    }

    fn compute(&self, level: Level, pool: &ThreadPool) -> Vec<f32> {
        let mut output = vec![f32::NAN; self.tokens * self.rows];
        let (input, out) = (Rows::new(&self.input, self.cols), RowsMut::new(&mut output, self.rows));
        matmul_on(level, pool, self.tokens, input, self.weight(), out, Write::Set);
        output
    }

    /// Each output in f64, and the sum of its terms' magnitudes.
    fn expected(&self) -> Vec<(f64, f64)> {
        let mut weight = vec![0.0; self.rows * self.cols];
        crate::widen(self.dtype, &self.bytes[1..], &mut weight);
        let mut expected = Vec::new();
        for t in 0..self.tokens {
            for r in 0..self.rows {
                let x = &self.input[t * self.cols..][..self.cols];
                let w = &weight[r * self.cols..][..self.cols];
                let terms = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
                expected.push(terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs())));
            }
        }
        expected
    }
}

#[track_caller]
fn assert_close(context: &str, actual: &[f32], expected: &[(f64, f64)]) {
    assert_eq!(actual.len(), expected.len());
    for (i, (&y, &(value, size))) in actual.iter().zip(expected).enumerate() {
        // A sum of n terms in any order is off by at most n units of 2^-24 of the terms' magnitudes; the order used
        // here, with 4 lanes or more and blocks, needs far fewer.
        let bound = size * 300.0 / f64::from(1 << 24);
        assert!((f64::from(y) - value).abs() <= bound, "{context}: output {i} is {y}, not {value} +- {bound}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn any_shape_is_near_the_f64_result_on_every_level(
        rows in 1usize..70,
        cols in prop_oneof![1usize..80, 1000usize..1060, 2040usize..2080],
        tokens in 1usize..40,
        seed: u64,
        threads in 1usize..4,
    ) {
        let pool = pool(threads);
        for dtype in DTYPES {
            let case = case(dtype, rows, cols, tokens, seed);
            let expected = case.expected();
            for &level in Level::available() {
                let context = format!("{level:?} {dtype} {rows} x {cols}, {tokens} tokens");
                assert_close(&context, &case.compute(level, &pool), &expected);
            }
        }
    }
}

#[test]
fn bits_do_not_depend_on_tokens_threads_or_other_rows() {
    const TOKENS: usize = 300;
    let alone = pool(1);
    let together = pool(3);
    for dtype in DTYPES {
        for cols in [40, 1037, 2048] {
            let all = case(dtype, 77, cols, TOKENS, 5);
            for &level in Level::available() {
                let expected = all.compute(level, &together);
                for tokens in [1, 2, 3, 4, 5, 6, 7, 8, 11, 15, 16, 17, 31, 64, 257] {
                    for first in [0, TOKENS - tokens] {
                        let part = Case {
                            tokens,
                            input: all.input[first * cols..(first + tokens) * cols].to_vec(),
                            bytes: all.bytes.clone(),
                            ..all
                        };
                        let actual = part.compute(level, &alone);
                        let expected = &expected[first * 77..(first + tokens) * 77];
                        let same = actual.iter().zip(expected).all(|(a, b)| a.to_bits() == b.to_bits());
                        assert!(same, "{level:?} {dtype} {cols} columns: tokens {first}.. {tokens} of {TOKENS}");
                    }
                }
                for rows in [1, 3, 8, 76] {
                    let first = 77 - rows;
                    let mut output = vec![0.0; TOKENS * rows];
                    let out = RowsMut::new(&mut output, rows);
                    let weight = all.weight().slice_rows(first, rows);
                    matmul_on(level, &alone, TOKENS, Rows::new(&all.input, cols), weight, out, Write::Set);
                    for (t, row) in output.chunks(rows).enumerate() {
                        assert_eq!(row, &expected[t * 77 + first..][..rows], "{level:?} {dtype} {rows} rows");
                    }
                }
            }
        }
    }
}

#[test]
fn narrow_weights_give_the_bits_of_a_widened_copy() {
    let pool = pool(2);
    for dtype in [DType::Bf16, DType::F16] {
        for (cols, tokens) in [(40, 1), (1037, 1), (1037, 5), (2048, 17), (2048, 64)] {
            let stored = case(dtype, 33, cols, tokens, 11);
            let mut widened = vec![0.0; 33 * cols];
            crate::widen(dtype, &stored.bytes[1..], &mut widened);
            let mut bytes = vec![0; 1 + widened.len() * size_of::<f32>()];
            narrow(&widened, DType::F32, &mut bytes[1..]);
            let copy = Case { dtype: DType::F32, input: stored.input.clone(), bytes, ..stored };
            for &level in Level::available() {
                let (actual, expected) = (stored.compute(level, &pool), copy.compute(level, &pool));
                let same = actual.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{level:?} {dtype} {cols} columns, {tokens} tokens");
            }
        }
    }
}

#[test]
fn rows_lie_where_strides_and_offsets_say_and_neighbours_stay() {
    let pool = pool(2);
    for tokens in [1, 3, 20] {
        let case = case(DType::Bf16, 19, 37, tokens, 9);
        for &level in Level::available() {
            let expected = case.compute(level, &pool);
            let mut input = vec![f32::NAN; tokens * 50];
            for t in 0..tokens {
                input[t * 50 + 7..][..37].copy_from_slice(&case.input[t * 37..][..37]);
            }
            let mut output = vec![1.5; tokens * 30];
            let rows = Rows { data: &input, stride: 50, offset: 7 };
            let out = RowsMut { data: &mut output, stride: 30, offset: 11 };
            matmul_on(level, &pool, tokens, rows, case.weight(), out, Write::Set);
            let out = RowsMut { data: &mut output, stride: 30, offset: 11 };
            matmul_on(level, &pool, tokens, rows, case.weight(), out, Write::Add);
            for (i, &y) in output.iter().enumerate() {
                let (t, r) = (i / 30, (i % 30).wrapping_sub(11));
                let expected = if r < 19 { 2.0 * expected[t * 19 + r] } else { 1.5 };
                assert_eq!(y, expected, "{level:?}: element {i}");
            }
        }
    }
}

#[test]
fn special_values() {
    let tiny = f32::from_bits(3);
    let cases: [(&str, [f32; 2], [f32; 2], f32); 6] = [
        ("infinity", [f32::INFINITY, 1.0], [1.0, 1.0], f32::INFINITY),
        ("infinity of the weight", [-1.0, 1.0], [f32::INFINITY, 1.0], f32::NEG_INFINITY),
        ("infinities that cancel", [1.0, -1.0], [f32::INFINITY, f32::INFINITY], f32::NAN),
        ("not a number", [0.0, 1.0], [f32::NAN, 1.0], f32::NAN),
        ("denormal input", [tiny, 0.0], [1.0, 1.0], tiny),
        ("overflow", [f32::MAX, f32::MAX], [1.0, 1.0], f32::INFINITY),
    ];
    let pool = pool(1);
    for (name, x, w, expected) in cases {
        for dtype in DTYPES {
            // One pair lies among whole vectors, or in the tail.
            for (cols, at) in [(64, 20), (19, 17), (2, 0)] {
                for tokens in [1, 4, 20] {
                    let mut weight = vec![0.0; 9 * cols];
                    let mut input = vec![0.0; tokens * cols];
                    weight.chunks_mut(cols).for_each(|row| row[at..at + 2].copy_from_slice(&w));
                    input.chunks_mut(cols).for_each(|row| row[at..at + 2].copy_from_slice(&x));
                    let mut bytes = vec![0; weight.len() * dtype.size() + 1];
                    narrow(&weight, dtype, &mut bytes[1..]);
                    let case = Case { dtype, rows: 9, cols, tokens, input, bytes };
                    for &level in Level::available() {
                        for y in case.compute(level, &pool) {
                            let same = y.to_bits() == expected.to_bits() || (y.is_nan() && expected.is_nan());
                            assert!(same, "{name}: {level:?} {dtype} {cols} columns, {tokens} tokens: {y}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn denormal_weights_count() {
    for dtype in DTYPES {
        let smallest = match dtype {
            DType::F16 => 2f32.powi(-24),
            DType::Bf16 => 2f32.powi(-133),
            DType::F32 => 2f32.powi(-149),
        };
        let mut bytes = vec![0; 33 * dtype.size()];
        narrow(&[smallest; 33], dtype, &mut bytes);
        let weight = MatrixRef::new(dtype, 1, 33, &bytes).unwrap();
        for &level in Level::available() {
            let mut y = [0.0];
            let (x, out) = ([4.0; 33], RowsMut::new(&mut y, 1));
            matmul_on(level, &pool(1), 1, Rows::new(&x, 33), weight, out, Write::Set);
            assert_eq!(y[0], 132.0 * smallest, "{level:?} {dtype}");
        }
    }
}

#[test]
fn empty_sums_are_zero() {
    let weight = MatrixRef::new(DType::F32, 3, 0, &[]).unwrap();
    let mut y = [1.0, 2.0, 3.0];
    matmul_on(Level::best(), &pool(1), 1, Rows::new(&[], 0), weight, RowsMut::new(&mut y, 3), Write::Add);
    assert_eq!(y, [1.0, 2.0, 3.0]);
    matmul_on(Level::best(), &pool(1), 1, Rows::new(&[], 0), weight, RowsMut::new(&mut y, 3), Write::Set);
    assert_eq!(y, [0.0; 3]);
}

#[test]
#[should_panic(expected = "input: 2 rows of 4 with stride 4 and offset 0 do not fit in 7 elements")]
fn a_short_input_is_refused() {
    TiledInput::new().tile(&pool(1), 2, 4, Rows::new(&[0.0; 7], 4));
}

#[test]
#[should_panic(expected = "input and weight have different numbers of columns")]
fn an_input_of_other_columns_is_refused() {
    let bytes = [0; 16];
    let weight = MatrixRef::new(DType::F32, 1, 4, &bytes).unwrap();
    let mut input = TiledInput::new();
    input.tile(&pool(1), 1, 3, Rows::new(&[0.0; 3], 3));
    matmul(&pool(1), &input, weight, RowsMut::new(&mut [0.0; 1], 1), Write::Set);
}

/// A step of few tokens follows one of many: what those left behind is none of its values.
#[test]
fn memory_that_is_used_again_gives_the_same_bits() {
    let pool = pool(2);
    let mut input = TiledInput::new();
    for (tokens, cols) in [(40, 1037), (3, 37), (17, 1037), (1, 5)] {
        let case = case(DType::Bf16, 19, cols, tokens, 3);
        for &level in Level::available() {
            let mut output = vec![f32::NAN; tokens * 19];
            input.tile_on(level, &pool, tokens, cols, Rows::new(&case.input, cols));
            matmul(&pool, &input, case.weight(), RowsMut::new(&mut output, 19), Write::Set);
            assert_eq!(output, case.compute(level, &pool), "{level:?}: {tokens} tokens of {cols}");
        }
    }
}

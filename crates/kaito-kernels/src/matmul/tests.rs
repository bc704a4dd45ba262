use std::num::NonZeroUsize;

use proptest::prelude::*;

use super::*;
use crate::amx::Unit;
use crate::{DType, Rows, narrow, simd::Level};

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

/// All kernels of this machine for weights of a type. Tiles are emulated where it has none.
fn forms(dtype: DType) -> Vec<Form> {
    let vectors = Level::available().iter().map(|&level| Form::Vectors(level));
    if dtype == DType::F32 {
        return vectors.collect();
    }
    let rounded = Level::available().iter().map(|&level| Form::RoundedVectors(level));
    let tiles = [false, true].map(|split| Form::Tiles { unit: hardware().unwrap_or(Unit::Emulated), split });
    vectors.chain(rounded).chain(tiles).chain(pairs().filter(|_| dtype == DType::Bf16)).collect()
}

/// Pairs of bf16, where the processor has them.
fn pairs() -> Option<Form> {
    #[cfg(target_arch = "x86_64")]
    return crate::simd::has_bf16_pairs().then_some(Form::Pairs);
    #[cfg(not(target_arch = "x86_64"))]
    None
}

fn is_pairs(form: Form) -> bool {
    pairs() == Some(form)
}

fn hardware() -> Option<Unit> {
    #[cfg(target_arch = "x86_64")]
    return crate::amx::Hardware::new().map(Unit::Hardware);
    #[cfg(not(target_arch = "x86_64"))]
    None
}

/// Whether activations are rounded to bf16.
fn rounds(form: Form) -> bool {
    matches!(form, Form::RoundedVectors(_) | Form::Tiles { split: false, .. }) || is_pairs(form)
}

fn rounded(x: f32) -> f32 {
    half::bf16::from_f32(x).to_f32()
}

fn matmul_on(
    form: Form,
    pool: &ThreadPool,
    tokens: usize,
    input: Rows,
    weight: MatrixRef,
    output: RowsMut,
    mode: Write,
) {
    let mut tiled = TiledInput::new();
    tiled.tile(pool, InputForm(form), tokens, weight.cols(), input);
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

    fn compute(&self, form: Form, pool: &ThreadPool) -> Vec<f32> {
        let mut output = vec![f32::NAN; self.tokens * self.rows];
        let (input, out) = (Rows::new(&self.input, self.cols), RowsMut::new(&mut output, self.rows));
        matmul_on(form, pool, self.tokens, input, self.weight(), out, Write::Set);
        output
    }

    /// Each output in f64, and the sum of its terms' magnitudes.
    fn expected(&self, form: Form) -> Vec<(f64, f64)> {
        let mut weight = vec![0.0; self.rows * self.cols];
        crate::widen(self.dtype, &self.bytes[1..], &mut weight);
        let mut expected = Vec::new();
        for t in 0..self.tokens {
            for r in 0..self.rows {
                let x = self.input[t * self.cols..][..self.cols].iter();
                let x = x.map(|&x| f64::from(if rounds(form) { rounded(x) } else { x }));
                let w = &weight[r * self.cols..][..self.cols];
                let terms = x.zip(w).map(|(x, w)| x * f64::from(*w));
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
    fn any_shape_is_near_the_f64_result_in_every_form(
        rows in 1usize..70,
        cols in prop_oneof![1usize..80, 1000usize..1060, 2040usize..2080],
        tokens in 1usize..40,
        seed: u64,
        threads in 1usize..4,
    ) {
        let pool = pool(threads);
        for dtype in DTYPES {
            let case = case(dtype, rows, cols, tokens, seed);
            for form in forms(dtype) {
                let context = format!("{form:?} {dtype} {rows} x {cols}, {tokens} tokens");
                assert_close(&context, &case.compute(form, &pool), &case.expected(form));
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
            for form in forms(dtype) {
                if cols == 2048 && matches!(form, Form::Tiles { unit: Unit::Emulated, .. }) {
                    continue;
                }
                let expected = all.compute(form, &together);
                for tokens in [1, 2, 3, 4, 5, 6, 7, 8, 11, 15, 16, 17, 31, 64, 257] {
                    for first in [0, TOKENS - tokens] {
                        let part = Case {
                            tokens,
                            input: all.input[first * cols..(first + tokens) * cols].to_vec(),
                            bytes: all.bytes.clone(),
                            ..all
                        };
                        let actual = part.compute(form, &alone);
                        let expected = &expected[first * 77..(first + tokens) * 77];
                        let same = actual.iter().zip(expected).all(|(a, b)| a.to_bits() == b.to_bits());
                        assert!(same, "{form:?} {dtype} {cols} columns: tokens {first}.. {tokens} of {TOKENS}");
                    }
                }
                for rows in [1, 3, 8, 76] {
                    let first = 77 - rows;
                    let mut output = vec![0.0; TOKENS * rows];
                    let out = RowsMut::new(&mut output, rows);
                    let weight = all.weight().slice_rows(first, rows);
                    matmul_on(form, &alone, TOKENS, Rows::new(&all.input, cols), weight, out, Write::Set);
                    for (t, row) in output.chunks(rows).enumerate() {
                        assert_eq!(row, &expected[t * 77 + first..][..rows], "{form:?} {dtype} {rows} rows");
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
                let form = Form::Vectors(level);
                let (actual, expected) = (stored.compute(form, &pool), copy.compute(form, &pool));
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
        for form in forms(DType::Bf16) {
            let expected = case.compute(form, &pool);
            let mut input = vec![f32::NAN; tokens * 50];
            for t in 0..tokens {
                input[t * 50 + 7..][..37].copy_from_slice(&case.input[t * 37..][..37]);
            }
            let mut output = vec![1.5; tokens * 30];
            let rows = Rows { data: &input, stride: 50, offset: 7 };
            let out = RowsMut { data: &mut output, stride: 30, offset: 11 };
            matmul_on(form, &pool, tokens, rows, case.weight(), out, Write::Set);
            let out = RowsMut { data: &mut output, stride: 30, offset: 11 };
            matmul_on(form, &pool, tokens, rows, case.weight(), out, Write::Add);
            for (i, &y) in output.iter().enumerate() {
                let (t, r) = (i / 30, (i % 30).wrapping_sub(11));
                let expected = if r < 19 { 2.0 * expected[t * 19 + r] } else { 1.5 };
                assert_eq!(y, expected, "{form:?}: element {i}");
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
                    for form in forms(dtype) {
                        let tiles = matches!(form, Form::Tiles { .. });
                        let expected = match name {
                            "denormal input" if rounds(form) || tiles => 0.0,
                            // The largest f32 rounds to infinity, and a part of the weight is zero.
                            "infinity" | "overflow" if rounds(form) && tiles && dtype == DType::F16 => f32::NAN,
                            _ => expected,
                        };
                        for y in case.compute(form, &pool) {
                            let same = y.to_bits() == expected.to_bits() || (y.is_nan() && expected.is_nan());
                            assert!(same, "{name}: {form:?} {dtype} {cols} columns, {tokens} tokens: {y}");
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
        for form in forms(dtype) {
            let mut y = [0.0];
            let (x, out) = ([4.0; 33], RowsMut::new(&mut y, 1));
            matmul_on(form, &pool(1), 1, Rows::new(&x, 33), weight, out, Write::Set);
            // Tile registers have no denormal numbers; the least f16 is none in bf16.
            let counts = dtype == DType::F16 || !matches!(form, Form::Tiles { .. });
            assert_eq!(y[0], if counts { 132.0 * smallest } else { 0.0 }, "{form:?} {dtype}");
        }
    }
}

#[test]
fn empty_sums_are_zero() {
    let weight = MatrixRef::new(DType::F32, 3, 0, &[]).unwrap();
    let mut y = [1.0, 2.0, 3.0];
    matmul_on(
        Form::Vectors(Level::chosen()),
        &pool(1),
        1,
        Rows::new(&[], 0),
        weight,
        RowsMut::new(&mut y, 3),
        Write::Add,
    );
    assert_eq!(y, [1.0, 2.0, 3.0]);
    matmul_on(
        Form::Vectors(Level::chosen()),
        &pool(1),
        1,
        Rows::new(&[], 0),
        weight,
        RowsMut::new(&mut y, 3),
        Write::Set,
    );
    assert_eq!(y, [0.0; 3]);
}

#[test]
#[should_panic(expected = "input: 2 rows of 4 with stride 4 and offset 0 do not fit in 7 elements")]
fn a_short_input_is_refused() {
    TiledInput::new().tile(&pool(1), InputForm::of(Compute::Exact, DType::F32), 2, 4, Rows::new(&[0.0; 7], 4));
}

#[test]
#[should_panic(expected = "input and weight have different numbers of columns")]
fn an_input_of_other_columns_is_refused() {
    let bytes = [0; 16];
    let weight = MatrixRef::new(DType::F32, 1, 4, &bytes).unwrap();
    let mut input = TiledInput::new();
    input.tile(&pool(1), InputForm::of(Compute::Exact, DType::F32), 1, 3, Rows::new(&[0.0; 3], 3));
    matmul(&pool(1), &input, weight, RowsMut::new(&mut [0.0; 1], 1), Write::Set);
}

/// A step of few tokens follows one of many: what those left behind is none of its values.
#[test]
fn memory_that_is_used_again_gives_the_same_bits() {
    let pool = pool(2);
    let mut input = TiledInput::new();
    for (tokens, cols) in [(40, 1037), (3, 37), (17, 1037), (1, 5)] {
        let case = case(DType::Bf16, 19, cols, tokens, 3);
        for form in forms(DType::Bf16) {
            let mut output = vec![f32::NAN; tokens * 19];
            input.tile(&pool, InputForm(form), tokens, cols, Rows::new(&case.input, cols));
            matmul(&pool, &input, case.weight(), RowsMut::new(&mut output, 19), Write::Set);
            assert_eq!(output, case.compute(form, &pool), "{form:?}: {tokens} tokens of {cols}");
        }
    }
}

/// The definition of sums by tiles, in plain arithmetic.
#[test]
fn tiles_sum_up_as_defined() {
    let flushed = |x: f32| if x.is_subnormal() { 0f32.copysign(x) } else { x };
    let add = |sum: f32, x: &[f32], w: &[f32]| {
        let chain = |first: usize| {
            let pairs = x.iter().zip(w).skip(first).step_by(2);
            pairs.fold(0.0, |sum, (&x, &w)| flushed(flushed(x).mul_add(flushed(w), sum)))
        };
        flushed(sum + flushed(chain(0) + chain(1)))
    };
    let truncated = |x: f32| f32::from_bits(x.to_bits() & 0xffff_0000);
    let pool = pool(2);
    for dtype in [DType::Bf16, DType::F16] {
        for (rows, cols, tokens) in
            [(33, 40, 3), (16, 2080, 17), (70, 1037, 40), (64, 1024, 33), (48, 4128, 1), (35, 1056, 257)]
        {
            let case = case(dtype, rows, cols, tokens, 21);
            let mut weight = vec![0.0; rows * cols];
            crate::widen(dtype, &case.bytes[1..], &mut weight);
            let high: Vec<f32> = weight.iter().map(|&w| truncated(w)).collect();
            let low: Vec<f32> = weight.iter().zip(&high).map(|(w, high)| w - high).collect();
            let weights = if dtype == DType::F16 { vec![&high, &low] } else { vec![&high] };
            for split in [false, true] {
                let mut expected = Vec::new();
                for (x, w) in (0..tokens).flat_map(|t| (0..rows).map(move |r| (t * cols, r * cols))) {
                    let x = &case.input[x..][..cols];
                    let parts: Vec<Vec<f32>> = if split {
                        let first: Vec<f32> = x.iter().map(|&x| truncated(x)).collect();
                        let second: Vec<f32> = x.iter().zip(&first).map(|(x, a)| truncated(x - a)).collect();
                        let third = x.iter().zip(&first).zip(&second).map(|((x, a), b)| x - a - b).collect();
                        vec![first, second, third]
                    } else {
                        vec![x.iter().map(|&x| rounded(x)).collect()]
                    };
                    let (mut y, mut first, mut others) = (0.0, 0.0, 0.0);
                    for step in (0..cols).step_by(32) {
                        let range = step..cols.min(step + 32);
                        for weight in &weights {
                            let w = &weight[w..][range.clone()];
                            for (i, part) in parts.iter().enumerate() {
                                let is_first = i == 0 && (std::ptr::eq(*weight, &high) || !split);
                                let sum = if is_first { &mut first } else { &mut others };
                                *sum = add(*sum, &part[range.clone()], w);
                            }
                        }
                        if split && (range.end % 1024 == 0 || range.end == cols) {
                            y += first + others;
                            (first, others) = (0.0, 0.0);
                        }
                    }
                    expected.push(if split { y } else { first });
                }
                for unit in hardware().into_iter().chain([Unit::Emulated]) {
                    let actual = case.compute(Form::Tiles { unit, split }, &pool);
                    let same = actual.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{unit:?} {dtype} split {split}: {rows} x {cols}, {tokens} tokens");
                }
            }
        }
    }
}

/// Exact products by tiles are as near to the result as those by vectors: the root of the mean square of their errors is not larger.
#[test]
fn split_activations_lose_no_precision() {
    let pool = pool(2);
    for dtype in [DType::Bf16, DType::F16] {
        for cols in [512, 2048, 5632] {
            let case = case(dtype, 64, cols, 20, 31);
            let error = |form: Form| {
                let expected = case.expected(form);
                let actual = case.compute(form, &pool);
                let squares = actual.iter().zip(&expected).map(|(&y, (value, _))| (f64::from(y) - value).powi(2));
                squares.sum::<f64>().sqrt()
            };
            let vectors = error(Form::Vectors(Level::available()[0]));
            let split = error(Form::Tiles { unit: hardware().unwrap_or(Unit::Emulated), split: true });
            assert!(split <= vectors, "{dtype} {cols} columns: {split:e} is more than {vectors:e}");
        }
    }
}

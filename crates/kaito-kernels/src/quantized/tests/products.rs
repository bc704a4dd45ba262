//! Products, against their definition.

use proptest::prelude::*;

use super::*;

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

//! Quantising activations.

use super::*;

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

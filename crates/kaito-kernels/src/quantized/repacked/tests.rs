use super::*;
use crate::{
    Rows, RowsMut, Write,
    blocks::{
        self,
        tests::{fixture, matrix},
    },
    matmul::tests::numbers,
    quantized::{
        Grouping, QuantizedInput, QuantizedRef,
        dot::DotLevel,
        product::quantized_matmul_on,
        tests::{assert_same_bits, pool},
    },
    simd::Level,
};

fn f16(bits: [u8; 2]) -> f32 {
    half::f16::from_le_bytes(bits).to_f32()
}

/// A weight of a row: its integer, its scale and its minimum.
type Element = (i8, f32, f32);

/// The weights that blocks hold, and columns that share a scale.
fn elements(format: BlockFormat, blocks: &[u8], count: usize) -> (Vec<Element>, usize) {
    let columns = Repacking::of(format).sides.columns();
    let mut integers = vec![0; count];
    let mut scales = Vec::new();
    format.integers(blocks, &mut integers, |_, sides| {
        let groups = format.block_weights() / columns;
        let factor = |factors: &[i8], group: usize| f32::from(factors[group]);
        scales.extend((0..groups).map(|group| {
            let minimum = f16(sides.minimum) * factor(&sides.minimum_factors, group);
            (f16(sides.scale) * factor(&sides.factors, group), minimum)
        }));
    });
    let elements = integers.into_iter().enumerate();
    (elements.map(|(i, integer)| (integer, scales[i / columns].0, scales[i / columns].1)).collect(), columns)
}

/// The numbers are those of the Python package `gguf`: see [`fixture`].
#[test]
fn integers_scales_and_minima_make_the_numbers_of_the_reference() {
    for format in BlockFormat::all() {
        let (blocks, expected) = fixture(format);
        let (elements, _) = elements(format, &blocks, expected.len());
        for (i, ((integer, scale, minimum), expected)) in elements.into_iter().zip(&expected).enumerate() {
            let weight = if Repacking::of(format).sides.has_minima() {
                scale * f32::from(integer) + minimum
            } else {
                scale * f32::from(integer)
            };
            assert!(weight == *expected || weight.is_nan() && expected.is_nan(), "{format} {i}: {weight}, {expected}");
        }
    }
}

struct Case {
    format: BlockFormat,
    rows: usize,
    cols: usize,
    blocks: Vec<u8>,
    repacked: Vec<u8>,
}

impl Case {
    fn new(format: BlockFormat, rows: usize, cols: usize, blocks: Vec<u8>) -> Self {
        let mut repacked = vec![0xaa; QuantizedFormat::from(format).bytes(rows, cols).unwrap()];
        repack(&pool(2), BlocksRef::new(format, rows, cols, &blocks).unwrap(), &mut repacked);
        Self { format, rows, cols, blocks, repacked }
    }

    fn input(&self, level: Level, input: &[f32]) -> QuantizedInput {
        let mut quantized = QuantizedInput::new(Grouping::Subgroups);
        quantized.quantize_on(level, &pool(2), input.len() / self.cols, self.cols, Rows::new(input, self.cols));
        quantized
    }

    fn compute(&self, level: DotLevel, threads: usize, input: &QuantizedInput) -> Vec<f32> {
        let mut output = vec![f32::NAN; input.tokens * self.rows];
        let weight = QuantizedRef::new(self.format, self.rows, self.cols, &self.repacked).unwrap();
        quantized_matmul_on(level, &pool(threads), input, weight, RowsMut::new(&mut output, self.rows), Write::Set);
        output
    }

    /// Each output by the definition: sums of integers, times both scales, and the minimum times the sum of activations.
    fn expected(&self, input: &QuantizedInput) -> Vec<f32> {
        let row_bytes = self.format.bytes(self.cols).unwrap();
        let mut outputs = Vec::new();
        for token in 0..input.tokens {
            for row in 0..self.rows {
                let (elements, columns) =
                    elements(self.format, &self.blocks[row * row_bytes..][..row_bytes], self.cols);
                let mut y = 0.0f32;
                for (part, elements) in elements.chunks(columns).enumerate() {
                    let (numbers, scales) = input.group(token, part * columns / GROUP);
                    let numbers = &numbers[part * columns % GROUP..][..columns];
                    let input_scale = scales[part * columns % GROUP / SUBGROUP * input.width()];
                    let (_, scale, minimum) = elements[0];
                    let products = elements.iter().zip(numbers).map(|(e, x)| i32::from(e.0) * i32::from(*x));
                    y = (products.sum::<i32>() as f32).mul_add(scale * input_scale, y);
                    if Repacking::of(self.format).sides.has_minima() {
                        let sum: i32 = numbers.iter().map(|x| i32::from(*x)).sum();
                        y = minimum.mul_add(sum as f32 * input_scale, y);
                    }
                }
                outputs.push(y);
            }
        }
        outputs
    }
}

/// Shapes with rows and columns that fill no block of rows and no group, where the format allows it.
fn shapes(format: BlockFormat) -> Vec<(usize, usize)> {
    let block = format.block_weights();
    vec![(1, block), (17, 3 * block), (70, 256), (33, 5 * block + 512)]
}

#[test]
fn products_have_the_bits_of_the_definition_on_every_level() {
    let mut next = numbers(5);
    for format in BlockFormat::all() {
        for (rows, cols) in shapes(format) {
            let case = Case::new(format, rows, cols, matrix(format, rows, cols));
            for tokens in [1, 2, 3, 8, 19] {
                let input: Vec<f32> = (0..tokens * cols).map(|_| 3.0 * next()).collect();
                let expected = case.expected(&case.input(Level::Portable, &input));
                let input = case.input(Level::chosen(), &input);
                for &level in DotLevel::available() {
                    let context = format!("{format} {rows} x {cols}, {tokens} tokens, {level:?}");
                    assert_same_bits(&context, &case.compute(level, 2, &input), &expected);
                }
            }
        }
    }
}

/// Blocks of any bits, whose scales are infinite, not numbers, or as small as there are.
#[test]
fn any_bits_have_the_product_of_the_definition_on_every_level() {
    let mut next = numbers(6);
    for format in BlockFormat::all() {
        let (blocks, values) = fixture(format);
        let cols = format.block_weights();
        let case = Case::new(format, values.len() / cols, cols, blocks);
        let input: Vec<f32> = (0..3 * cols).map(|_| next()).collect();
        let input = case.input(Level::chosen(), &input);
        let expected = case.expected(&input);
        for &level in DotLevel::available() {
            assert_same_bits(&format!("{format}, {level:?}"), &case.compute(level, 1, &input), &expected);
        }
    }
}

#[test]
fn bits_do_not_depend_on_tokens_or_threads() {
    const TOKENS: usize = 150;
    let mut next = numbers(7);
    for format in BlockFormat::all() {
        let (rows, cols) = (77, 1280);
        let case = Case::new(format, rows, cols, matrix(format, rows, cols));
        let input: Vec<f32> = (0..TOKENS * cols).map(|_| next()).collect();
        for &level in DotLevel::available() {
            let all = case.compute(level, 3, &case.input(Level::chosen(), &input));
            for tokens in [1, 2, 3, 5, 7, 8, 9, 16, 17, 64] {
                for first in [0, TOKENS - tokens] {
                    let part = case.input(Level::chosen(), &input[first * cols..][..tokens * cols]);
                    let context = format!("{format} {level:?}, tokens {first}.. {tokens}");
                    assert_same_bits(&context, &case.compute(level, 1, &part), &all[first * rows..][..tokens * rows]);
                }
            }
        }
    }
}

#[test]
fn activations_are_the_same_on_every_level_and_within_half_a_step() {
    let cols = 608;
    let mut next = numbers(8);
    let mut values: Vec<f32> = (0..19 * cols).map(|_| next()).collect();
    values[5] = f32::INFINITY;
    values[cols + 40..cols + 72].fill(0.0);
    let case = Case::new(BlockFormat::Q8_0, 1, cols, matrix(BlockFormat::Q8_0, 1, cols));
    let expected = case.input(Level::Portable, &values);
    for &level in Level::available() {
        let (numbers, scales, corrections, sums) = case.input(level, &values).all_groups();
        let (others, other_scales, other_corrections, other_sums) = expected.all_groups();
        assert!(numbers == others && corrections == other_corrections, "{level:?}");
        assert_same_bits(&format!("{level:?}"), &scales, &other_scales);
        assert_same_bits(&format!("{level:?}"), &sums, &other_sums);
    }
    for token in 1..19 {
        for (i, value) in values[token * cols..][..cols].iter().enumerate() {
            let (numbers, scales) = expected.group(token, i / GROUP);
            let scale = scales[i % GROUP / SUBGROUP * expected.width()];
            let error = (f32::from(numbers[i % GROUP]) * scale - value).abs();
            assert!(error <= 0.501 * scale, "{value} is off by {error}");
        }
    }
    let (numbers, scales) = expected.group(0, 0);
    assert!(scales[0].is_nan() && numbers[..SUBGROUP] == [0; SUBGROUP] && scales[expected.width()] > 0.0);
}

#[test]
fn products_are_off_by_what_rounding_activations_costs() {
    let (rows, cols, tokens) = (64, 2048, 4);
    let mut next = numbers(9);
    let values: Vec<f32> = (0..tokens * cols).map(|_| next()).collect();
    for format in BlockFormat::all() {
        let case = Case::new(format, rows, cols, matrix(format, rows, cols));
        let mut weights = vec![0.0; rows * cols];
        blocks::dequantize(&pool(1), BlocksRef::new(format, rows, cols, &case.blocks).unwrap(), &mut weights);
        let input = case.input(Level::chosen(), &values);
        for (i, y) in case.compute(DotLevel::chosen(), 2, &input).into_iter().enumerate() {
            let (token, x, w) = (i / rows, &values[i / rows * cols..][..cols], &weights[i % rows * cols..][..cols]);
            let exact: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
            // Half a step of each activation, and what the sums in f32 round.
            let bound: f64 = (w.iter().enumerate())
                .map(|(col, w)| {
                    let scale = input.group(token, col / GROUP).1[col % GROUP / SUBGROUP * input.width()];
                    f64::from(w.abs()) * f64::from(scale) * 0.501
                })
                .sum();
            let error = (f64::from(y) - exact).abs();
            assert!(error <= bound, "{format}, output {i}: {y} is off by {error}, more than {bound}");
        }
    }
}

#[test]
#[should_panic(expected = "the input's groups, for weights in Q4_0")]
fn rotated_activations_are_refused() {
    let case = Case::new(BlockFormat::Q4_0, 1, 32, matrix(BlockFormat::Q4_0, 1, 256)[..18].to_vec());
    let mut input = QuantizedInput::new(Grouping::Rotated);
    input.quantize(&pool(1), 1, 32, Rows::new(&[1.0; 32], 32));
    case.compute(DotLevel::chosen(), 1, &input);
}

#[test]
fn as_many_bits_as_the_table_of_the_documentation_says() {
    let bits: Vec<String> = BlockFormat::all()
        .map(|format| {
            let bytes = QuantizedFormat::from(format).bytes(16, 256).unwrap();
            format!("{format} {}", bytes as f64 * 8.0 / (16.0 * 256.0))
        })
        .collect();
    let expected = [
        "Q4_0 4.5",
        "Q4_1 5",
        "Q5_0 8.5",
        "Q5_1 9",
        "Q8_0 8.5",
        "Q2_K 5.25",
        "Q3_K 4.625",
        "Q4_K 4.75",
        "Q5_K 8.75",
        "Q6_K 8.625",
    ];
    assert_eq!(bits, expected);
}

use std::ops::Range;

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
        tests::{assert_same_bits, normal, pool},
    },
    simd::Level,
};

fn f16(bits: [u8; 2]) -> f32 {
    half::f16::from_le_bytes(bits).to_f32()
}

/// A weight of a row.
struct Element {
    integer: i8,
    /// What it is multiplied by, and what is added.
    scale: f32,
    minimum: f32,
    /// The numbers of the block that these are products of, and their factors.
    of_block: [f32; 2],
    factors: [i8; 2],
}

/// The weights that blocks hold, and columns that share a scale.
fn elements(format: BlockFormat, blocks: &[u8], count: usize) -> (Vec<Element>, usize) {
    let columns = Repacking::of(format).sides.columns();
    let mut integers = vec![0; count];
    let mut all: Vec<BlockSides> = Vec::new();
    format.integers(blocks, &mut integers, |_, sides| all.push(sides));
    let element = |(i, integer): (usize, i8)| {
        let (sides, part) = (&all[i / format.block_weights()], i % format.block_weights() / columns);
        let of_block = [f16(sides.scale), f16(sides.minimum)];
        let factors = [sides.factors[part], sides.minimum_factors[part]];
        let [scale, minimum] = std::array::from_fn(|i| of_block[i] * f32::from(factors[i]));
        Element { integer, scale, minimum, of_block, factors }
    };
    (integers.into_iter().enumerate().map(element).collect(), columns)
}

/// The numbers are those of the Python package `gguf`: see [`fixture`].
#[test]
fn integers_scales_and_minima_make_the_numbers_of_the_reference() {
    for format in BlockFormat::all() {
        let (blocks, expected) = fixture(format);
        let (elements, _) = elements(format, &blocks, expected.len());
        for (i, (element, expected)) in elements.into_iter().zip(&expected).enumerate() {
            let Element { integer, scale, minimum, .. } = element;
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
        let mut quantized = QuantizedInput::new(QuantizedFormat::from(self.format).grouping());
        quantized.quantize_on(level, &pool(2), input.len() / self.cols, self.cols, Rows::new(input, self.cols));
        quantized
    }

    fn compute(&self, level: DotLevel, threads: usize, input: &QuantizedInput) -> Vec<f32> {
        let mut output = vec![f32::NAN; input.tokens * self.rows];
        let weight = QuantizedRef::new(self.format, self.rows, self.cols, &self.repacked).unwrap();
        quantized_matmul_on(level, &pool(threads), input, weight, RowsMut::new(&mut output, self.rows), Write::Set);
        output
    }

    /// Each output by the definition of formats with a scale for 32 weights: sums of integers, times both scales, and the minimum times the
    /// sum of activations.
    fn expected_of_subgroups(&self, input: &QuantizedInput) -> Vec<f32> {
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
                    let Element { scale, minimum, .. } = elements[0];
                    let products = elements.iter().zip(numbers).map(|(e, x)| i32::from(e.integer) * i32::from(*x));
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

    /// Each output by the definition of formats with factors: the integer sums of a group's parts are multiplied by factors and added, and
    /// that by scales.
    fn expected_of_groups(&self, input: &QuantizedInput) -> Vec<f32> {
        let row_bytes = self.format.bytes(self.cols).unwrap();
        let mut outputs = Vec::new();
        for token in 0..input.tokens {
            for row in 0..self.rows {
                let (elements, columns) =
                    elements(self.format, &self.blocks[row * row_bytes..][..row_bytes], self.cols);
                let mut y = 0.0f32;
                for (group, elements) in elements.chunks(GROUP).enumerate() {
                    let (numbers, scales) = input.group(token, group);
                    let (mut products, mut minima) = (0, 0);
                    for (elements, numbers) in elements.chunks(columns).zip(numbers.chunks(columns)) {
                        let each = elements.iter().zip(numbers).map(|(e, x)| i32::from(e.integer) * i32::from(*x));
                        products += each.sum::<i32>() * i32::from(elements[0].factors[0]);
                        let sum: i32 = numbers.iter().map(|x| i32::from(*x)).sum();
                        minima += i32::from(elements[0].factors[1]) * sum;
                    }
                    let [scale, minimum] = elements[0].of_block;
                    let mut of_group = products as f32 * scale;
                    if Repacking::of(self.format).sides.has_minima() {
                        of_group = (minima as f32).mul_add(minimum, of_group);
                    }
                    y = of_group.mul_add(scales[0], y);
                }
                outputs.push(y);
            }
        }
        outputs
    }

    fn expected(&self, input: &QuantizedInput) -> Vec<f32> {
        match QuantizedFormat::from(self.format).grouping() {
            Grouping::Unrotated => self.expected_of_groups(input),
            _ => self.expected_of_subgroups(input),
        }
    }
}

/// The scale of an activation.
fn input_scale(grouping: Grouping, input: &QuantizedInput, token: usize, col: usize) -> f32 {
    let scales = input.group(token, col / GROUP).1;
    match grouping {
        Grouping::Unrotated => scales[0],
        _ => scales[col % GROUP / SUBGROUP * input.width()],
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

/// Tiles multiply weights by the factors of their parts as two signed bytes, and the sum of a group has to fit in 32 bits.
#[test]
fn the_largest_weights_and_factors_have_the_product_of_the_definition() {
    const ONE: [u8; 2] = [0x00, 0x3c];
    // What the bytes of a block are, where its scales are, which become 1, and what the bytes of Q6_K's factors are.
    let blocks: [(BlockFormat, u8, Range<usize>, u8); 8] = [
        (BlockFormat::Q4_K, 0xff, 0..4, 0),
        (BlockFormat::Q5_K, 0xff, 0..4, 0),
        (BlockFormat::Q2_K, 0xff, 80..84, 0),
        (BlockFormat::Q3_K, 0xff, 108..110, 0),
        (BlockFormat::Q3_K, 0x00, 108..110, 0),
        (BlockFormat::Q6_K, 0x00, 208..210, 0x80),
        (BlockFormat::Q6_K, 0x00, 208..210, 0x7f),
        (BlockFormat::Q6_K, 0xff, 208..210, 0x80),
    ];
    for (format, all, scales, factor) in blocks {
        let (rows, cols) = (3, format.block_weights());
        let mut block = vec![all; format.bytes(cols).unwrap()];
        if format == BlockFormat::Q6_K {
            block[192..208].fill(factor);
        }
        block[scales].as_chunks_mut().0.fill(ONE);
        let case = Case::new(format, rows, cols, block.repeat(rows));
        let input: Vec<f32> = (0..20 * cols).map(|i| if i / cols % 2 == 0 { 1.0 } else { -1.0 }).collect();
        let input = case.input(Level::chosen(), &input);
        let expected = case.expected(&input);
        for &level in DotLevel::available() {
            assert_same_bits(&format!("{format} {all}, {level:?}"), &case.compute(level, 1, &input), &expected);
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
    for format in [BlockFormat::Q8_0, BlockFormat::Q4_K] {
        let (cols, grouping) = (608, QuantizedFormat::from(format).grouping());
        let mut next = numbers(8);
        let mut values: Vec<f32> = (0..19 * cols).map(|_| next()).collect();
        values[5] = f32::INFINITY;
        values[cols + 128..cols + 256].fill(0.0);
        values[cols + 296..cols + 328].fill(0.0);
        let quantized = |level| {
            let mut input = QuantizedInput::new(grouping);
            input.quantize_on(level, &pool(2), 19, cols, Rows::new(&values, cols));
            input
        };
        let expected = quantized(Level::Portable);
        let (numbers, scales, corrections, sums, pairs) = expected.all_groups();
        for &level in Level::available() {
            let (others, other_scales, other_corrections, other_sums, other_pairs) = quantized(level).all_groups();
            assert!(numbers == others && corrections == other_corrections && pairs == other_pairs, "{level:?}");
            assert_same_bits(&format!("{level:?}"), &scales, &other_scales);
            assert_same_bits(&format!("{level:?}"), &sums, &other_sums);
        }
        for token in 1..19 {
            for (i, value) in values[token * cols..][..cols].iter().enumerate() {
                let (numbers, scale) = (expected.group(token, i / GROUP).0, input_scale(grouping, &expected, token, i));
                let error = (f32::from(numbers[i % GROUP]) * scale - value).abs();
                assert!(error <= 0.501 * scale, "{value} is off by {error}");
            }
        }
        // An infinity spoils what it shares a scale with.
        let shared = if grouping == Grouping::Subgroups { SUBGROUP } else { GROUP };
        assert!(input_scale(grouping, &expected, 0, 0).is_nan() && input_scale(grouping, &expected, 0, shared) > 0.0);
        assert!(expected.group(0, 0).0[..shared].iter().all(|&number| number == 0));
    }
}

/// The sums of a group that is not rotated, against those of its numbers.
#[test]
fn sums_are_those_of_subgroups_and_of_their_halves() {
    let mut next = numbers(10);
    let values: Vec<f32> = (0..3 * 256).map(|_| next()).collect();
    for &level in Level::available() {
        let mut input = QuantizedInput::new(Grouping::Unrotated);
        input.quantize_on(level, &pool(1), 3, 256, Rows::new(&values, 256));
        let (_, _, corrections, sums, pairs) = input.all_groups();
        assert!(sums.is_empty());
        for (token, group) in (0..3).flat_map(|token| [(token, 0), (token, 1)]) {
            let sum = |numbers: &[i8]| numbers.iter().map(|&number| i32::from(number)).sum::<i32>();
            let numbers = input.group(token, group).0;
            let parts = numbers.chunks(SUBGROUP).chain(numbers.chunks(SUBGROUP / 2)).map(sum).collect::<Vec<_>>();
            for (i, &part) in parts.iter().enumerate() {
                let at = |of_group: usize, i: usize| (group * of_group + i) * input.width() + token;
                assert_eq!(corrections[at(12, i)], -128 * part, "{level:?} {token} {group} {i}");
                assert_eq!(i32::from(pairs[at(6, i / 2)][i % 2]), part, "{level:?} {token} {group} {i}");
            }
        }
    }
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
                    let scale = input_scale(input.grouping(), &input, token, col);
                    f64::from(w.abs()) * f64::from(scale) * 0.501
                })
                .sum();
            let error = (f64::from(y) - exact).abs();
            assert!(error <= bound, "{format}, output {i}: {y} is off by {error}, more than {bound}");
        }
    }
}

/// What rounding costs when a group's activations share a scale, next to one for each 32 columns and, as llama.cpp has it for formats with
/// factors, to one for each 256: the error of activations as a part of their size, which is that of products with weights that know nothing
/// of it. What products have beside it does not show.
#[test]
fn one_scale_for_a_group_is_more_exact_than_one_for_256_columns() {
    let (rows, cols, tokens) = (64, 4096, 8);
    println!("activations       scale for 32  for 128 (ours)  for 256");
    // Of a token's components language models have a few that are far larger than the others, in the same columns.
    for (name, every, size) in [("normal", 1, 1.0), ("one in 512 of 20", 512, 20.0), ("one in 128 of 20", 128, 20.0)] {
        let mut next = normal(11);
        let large = |i: usize| if i % every == 77 % every { size } else { 1.0 };
        let values: Vec<f32> = (0..tokens * cols).map(|i| large(i) * next()).collect();
        let exact: Vec<f64> = values.iter().map(|&x| f64::from(x)).collect();
        let rounded = |columns: usize| -> Vec<f64> {
            let rounded = exact.chunks(columns).flat_map(|values| {
                let scale = values.iter().fold(0.0, |m: f64, x| m.max(x.abs())) / 127.0;
                values.iter().map(move |x| (x / scale).round() * scale)
            });
            rounded.collect()
        };
        let error = |values: &[f64], exact: &[f64]| {
            let squares = values.iter().zip(exact).map(|(value, exact)| (value - exact).powi(2)).sum::<f64>();
            (squares / exact.iter().map(|exact| exact.powi(2)).sum::<f64>()).sqrt()
        };
        let [finest, ours, coarsest] = [32, 128, 256].map(|columns| error(&rounded(columns), &exact));
        println!("{name:16}  {finest:.5}       {ours:.5}         {coarsest:.5}");
        assert!(ours < coarsest, "{name}: {ours}, {coarsest}");
        for format in [BlockFormat::Q4_K, BlockFormat::Q6_K] {
            let case = Case::new(format, rows, cols, matrix(format, rows, cols));
            let mut weights = vec![0.0; rows * cols];
            blocks::dequantize(&pool(1), BlocksRef::new(format, rows, cols, &case.blocks).unwrap(), &mut weights);
            let products = |values: &[f64]| -> Vec<f64> {
                let product = |i: usize| -> f64 {
                    let (x, w) = (&values[i / rows * cols..][..cols], &weights[i % rows * cols..][..cols]);
                    x.iter().zip(w).map(|(x, w)| x * f64::from(*w)).sum()
                };
                (0..tokens * rows).map(product).collect()
            };
            let outputs = case.compute(DotLevel::chosen(), 2, &case.input(Level::chosen(), &values));
            let outputs: Vec<f64> = outputs.into_iter().map(f64::from).collect();
            let of_sums = error(&outputs, &products(&rounded(128)));
            assert!(of_sums < 0.02 * ours, "{format}, {name}: {of_sums}");
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
        "Q5_0 6.5",
        "Q5_1 7",
        "Q8_0 8.5",
        "Q2_K 5.25",
        "Q3_K 4.625",
        "Q4_K 4.75",
        "Q5_K 6.75",
        "Q6_K 6.625",
    ];
    assert_eq!(bits, expected);
}

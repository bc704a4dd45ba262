use std::num::NonZeroUsize;

use half::bf16;
use proptest::prelude::*;

use super::*;
use crate::{kv::fits_tiles, matmul::tests::numbers};

/// Sequences whose tokens lie in shuffled pages, beside garbage.
#[derive(Clone)]
struct Case {
    form: KvForm,
    heads: usize,
    kv_heads: usize,
    dim: usize,
    page_size: usize,
    window: Option<usize>,
    soft_cap: Option<f32>,
    slopes: Vec<f32>,
    /// Of each sequence, its tokens' `[kv head][dim]`.
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
    /// Of each sequence, the queries of all its tokens, `[head][dim]`.
    queries: Vec<Vec<f32>>,
}

const SCALE: f32 = 0.3;

/// Vectors of each instruction set; for tile registers those that are used beside them.
fn levels(form: KvForm) -> &'static [Level] {
    if rounds(form) { &[Level::Portable] } else { Level::available() }
}

/// Whether queries and exponentials of scores are rounded to bf16.
fn rounds(form: KvForm) -> bool {
    matches!(form.0, Form::Tiles(_))
}

impl Case {
    fn new(
        heads: usize,
        kv_heads: usize,
        dim: usize,
        page_size: usize,
        window: Option<usize>,
        contexts: &[usize],
    ) -> Self {
        let mut next = numbers((heads * 1000 + dim) as u64);
        let mut make = |width: usize| -> Vec<Vec<f32>> {
            contexts.iter().map(|context| (0..context * width).map(|_| 4.0 * next()).collect()).collect()
        };
        let (keys, values, queries) = (make(kv_heads * dim), make(kv_heads * dim), make(heads * dim));
        let (soft_cap, slopes) = (None, Vec::new());
        Self {
            form: KvDType::F32.into(),
            heads,
            kv_heads,
            dim,
            page_size,
            window,
            soft_cap,
            slopes,
            keys,
            values,
            queries,
        }
    }

    /// The same, with a soft cap of the scores.
    fn with_soft_cap(self, cap: f32) -> Self {
        Self { soft_cap: Some(cap), ..self }
    }

    /// The same, with positions as attention biases.
    fn with_alibi(self) -> Self {
        Self { slopes: alibi_slopes(self.heads), ..self }
    }

    /// The same, with keys and values as they are after they were stored.
    fn stored_as(mut self, form: impl Into<KvForm>) -> Self {
        self.form = form.into();
        for source in self.keys.iter_mut().chain(&mut self.values) {
            for head in source.chunks_mut(self.dim) {
                let mut buffer = KvBuffer::values(self.form.dtype(), 1, self.dim).unwrap();
                buffer.write(0, head);
                head.copy_from_slice(&buffer.read(0));
            }
        }
        self
    }

    fn context(&self, sequence: usize) -> usize {
        self.queries[sequence].len() / (self.heads * self.dim)
    }

    /// Computes the last `rows` queries of each of `chosen`, which come as `(sequence, context, rows)`.
    fn compute(&self, level: Level, threads: usize, chosen: &[(usize, usize, usize)]) -> Vec<Vec<f32>> {
        let pool = ThreadPool::new(NonZeroUsize::new(threads).unwrap());
        let used: Vec<usize> = chosen.iter().map(|&(_, context, _)| context.div_ceil(self.page_size)).collect();
        let total: usize = used.iter().sum::<usize>() + 2;
        // Page `i` of all goes to `(i * 7919 + 1) % total`, a permutation unless 7919 divides the total.
        let mut pages = (0..total).map(|i| ((i * 7919 + 1) % total) as u32);
        let tables: Vec<Vec<u32>> = used.iter().map(|&count| pages.by_ref().take(count).collect()).collect();
        let layout = KvLayout { num_kv_heads: self.kv_heads, pages: total, page_size: self.page_size };
        let slots = layout.slots().unwrap();
        let keys = KvBuffer::keys(self.form, slots, self.dim, self.page_size).unwrap();
        let mut pools = [keys, KvBuffer::values(self.form, slots, self.dim).unwrap()];
        for pool in &mut pools {
            (0..slots).for_each(|slot| pool.write(slot, &vec![f32::NAN; self.dim]));
        }
        let width = self.heads * (self.dim + 3);
        let mut queries = Vec::new();
        let mut sequences = Vec::new();
        for (&(sequence, context, rows), table) in chosen.iter().zip(&tables) {
            let [keys, values] = &mut pools;
            for t in 0..context {
                for head in 0..self.kv_heads {
                    let slot = layout.slot(head, table[t / self.page_size]) + t % self.page_size;
                    let head = (t * self.kv_heads + head) * self.dim..(t * self.kv_heads + head + 1) * self.dim;
                    let value = &self.values[sequence][head.clone()];
                    keys.write_key(slot, &self.keys[sequence][head], value);
                    values.write(slot, value);
                }
            }
            // Row 0 belongs to no sequence.
            sequences.push(AttentionSequence { first_row: 1 + queries.len() / width, rows, context, pages: table });
            for t in context - rows..context {
                let source = &self.queries[sequence][t * self.heads * self.dim..];
                for head in 0..self.heads {
                    queries.extend_from_slice(&source[head * self.dim..][..self.dim]);
                    queries.extend([f32::NAN; 3]);
                }
            }
        }
        let rows = 1 + queries.len() / width;
        queries.splice(0..0, vec![f32::NAN; width]);
        let out_width = self.heads * self.dim;
        let mut output = vec![7.0; rows * out_width];
        let offsets: Vec<usize> = (0..self.heads).map(|head| head * (self.dim + 3)).collect();
        let shape = AttentionShape {
            query_offsets: &offsets,
            layout,
            head_dim: self.dim,
            scale: SCALE,
            soft_cap: self.soft_cap,
            window: self.window,
            alibi_slopes: &self.slopes,
        };
        let out = RowsMut::new(&mut output, out_width);
        let [keys, values] = &pools;
        paged_attention_on(level, &pool, &shape, Rows::new(&queries, width), keys, values, &sequences, out);
        assert!(output[..out_width].iter().all(|&y| y == 7.0), "the row of no sequence was written");
        let parts = sequences.iter().map(|s| output[s.first_row * out_width..][..s.rows * out_width].to_vec());
        parts.collect()
    }

    /// Attention by its definition, in f64: outputs, and the sums of the magnitudes of what is added up for each. Exponentials of scores are exact.
    fn expected(&self, sequence: usize, position: usize, head: usize) -> Vec<(f64, f64)> {
        let round = |x: &f32| f64::from(if rounds(self.form) { bf16::from_f32(*x).to_f32() } else { *x });
        let query = &self.queries[sequence][(position * self.heads + head) * self.dim..][..self.dim];
        let kv = head / (self.heads / self.kv_heads);
        let first = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
        let row = |source: &[Vec<f32>], j: usize| {
            source[sequence][(j * self.kv_heads + kv) * self.dim..][..self.dim].to_vec()
        };
        let scores: Vec<f64> = (first..=position)
            .map(|j| {
                let products = query.iter().zip(row(&self.keys, j)).map(|(q, k)| round(q) * f64::from(k));
                let score = products.sum::<f64>() * f64::from(SCALE);
                let capped = |cap: f32| f64::from(cap) * (score / f64::from(cap)).tanh();
                let bias = self.slopes.get(head).map_or(0.0, |slope| alibi_bias(*slope, j));
                self.soft_cap.map_or(score, capped) + f64::from(bias) * f64::from(SCALE)
            })
            .collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mut out = vec![(0.0, 0.0); self.dim];
        for (j, weight) in (first..=position).zip(weights) {
            for ((y, magnitude), v) in out.iter_mut().zip(row(&self.values, j)) {
                let product = weight / total * f64::from(v);
                *y += product;
                *magnitude += product.abs();
            }
        }
        out
    }

    /// Where heads are whole operands, with tile registers too.
    fn check(&self) {
        self.check_form();
        if fits_tiles(self.dim) {
            self.clone().stored_as(KvForm::tiles()).check_form();
        }
    }

    fn check_form(&self) {
        let chosen: Vec<_> = (0..self.queries.len()).map(|i| (i, self.context(i), self.context(i))).collect();
        for &level in levels(self.form) {
            for (sequence, output) in self.compute(level, 2, &chosen).iter().enumerate() {
                for (i, y) in output.chunks(self.dim).enumerate() {
                    let (position, head) = (i / self.heads, i % self.heads);
                    let expected = self.expected(sequence, position, head);
                    for (y, (expected, magnitude)) in y.iter().zip(expected) {
                        // Scores reach some hundreds: an error of 2^-24 of that in the exponent. An exponential that is rounded to bf16 is
                        // wrong by up to 2^-8 of it.
                        let bound = 2e-4 + if rounds(self.form) { magnitude * 2f64.powi(-8) } else { 0.0 };
                        let error = (f64::from(*y) - expected).abs();
                        assert!(
                            error < bound,
                            "{level:?} {:?} {} heads of {} on {}, pages of {}, window {:?}, position {position}, head {head}: {y}, not {expected}",
                            self.form,
                            self.heads,
                            self.dim,
                            self.kv_heads,
                            self.page_size,
                            self.window
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn contexts_of_several_kv_blocks_equal_attention_by_its_definition() {
    for (heads, kv_heads, dim, page_size) in [(2, 2, 64, 16), (6, 1, 40, 16), (4, 2, 128, 48), (1, 1, 8, 128)] {
        for window in [None, Some(100), Some(150), Some(300)] {
            Case::new(heads, kv_heads, dim, page_size, window, &[300, 128, 129]).check();
        }
    }
}

#[test]
fn biases_for_positions_are_added_to_the_scores_of_their_heads() {
    for (heads, kv_heads, dim, page_size) in [(2, 2, 64, 16), (6, 1, 40, 16), (5, 5, 128, 48), (12, 4, 8, 128)] {
        for (dtype, window) in [(KvDType::F32, None), (KvDType::Bf16, Some(100)), (KvDType::Int8, Some(150))] {
            Case::new(heads, kv_heads, dim, page_size, window, &[300, 1, 129]).stored_as(dtype).with_alibi().check();
        }
    }
}

/// A cap far below the scores, one amid them, one so high that it changes little; beside positions as biases, which are not capped.
#[test]
fn capped_scores_equal_attention_by_its_definition() {
    for (heads, kv_heads, dim, page_size) in [(2, 2, 64, 16), (6, 1, 40, 16), (4, 2, 128, 48), (5, 5, 8, 128)] {
        for (dtype, window, cap) in
            [(KvDType::F32, None, 50.0), (KvDType::Bf16, Some(100), 5.0), (KvDType::Int8, Some(7), 1000.0)]
        {
            let case = || {
                let case = Case::new(heads, kv_heads, dim, page_size, window, &[300, 1, 129]);
                case.stored_as(dtype).with_soft_cap(cap)
            };
            case().check();
            case().with_alibi().check();
        }
    }
}

#[test]
fn equals_attention_by_its_definition() {
    for dim in [1, 8, 20, 64, 80, 96, 128] {
        for (heads, kv_heads) in [(2, 2), (6, 2), (5, 1)] {
            for page_size in [16, 32] {
                for window in [None, Some(1), Some(7), Some(20), Some(1000)] {
                    Case::new(heads, kv_heads, dim, page_size, window, &[1, 37, 16]).check();
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]

    #[test]
    fn any_shape_equals_attention_by_its_definition(
        dim in 1usize..140,
        kv_heads in 1usize..4,
        group in 1usize..20,
        page_blocks in 1usize..8,
        window in proptest::option::of(1usize..60),
        context in 1usize..60,
    ) {
        Case::new(kv_heads * group, kv_heads, dim, page_blocks * PAGE_TOKENS, window, &[context, 5]).check();
    }
}

#[test]
fn narrowed_keys_and_values_are_attended_to_as_they_are_stored() {
    for dtype in [KvDType::Bf16, KvDType::Int8] {
        for (heads, kv_heads, dim, page_size) in
            [(2, 2, 64, 16), (6, 2, 80, 48), (5, 1, 20, 32), (4, 4, 128, 16), (2, 1, 1, 16)]
        {
            for window in [None, Some(7), Some(20)] {
                Case::new(heads, kv_heads, dim, page_size, window, &[1, 37, 16]).stored_as(dtype).check();
            }
        }
    }
}

#[test]
fn bits_do_not_depend_on_chunks_threads_or_other_sequences() {
    let forms = [KvDType::F32.into(), KvDType::Bf16.into(), KvDType::Int8.into(), KvForm::tiles()];
    let shapes = [(4, 4, 64), (6, 2, 160), (8, 2, 80), (3, 1, 17)];
    for (form, (heads, kv_heads, dim)) in forms.into_iter().flat_map(|form| shapes.map(|shape| (form, shape))) {
        if rounds(form) && !fits_tiles(dim) {
            continue;
        }
        for (window, alibi, cap) in
            [(None, false, None), (Some(23), false, None), (Some(140), false, Some(30.0)), (Some(140), true, None)]
        {
            let case = Case::new(heads, kv_heads, dim, 16, window, &[300, 61]).stored_as(form);
            let case = if alibi { case.with_alibi() } else { case };
            let case = Case { soft_cap: cap, ..case };
            for &level in levels(case.form) {
                let together = case.compute(level, 3, &[(0, 300, 300), (1, 61, 61)]);
                for chunk in [1, 2, 13, 16, 50] {
                    let mut alone = Vec::new();
                    let mut context = 0;
                    while context < 300 {
                        let rows = chunk.min(300 - context);
                        context += rows;
                        alone.extend(case.compute(level, 1, &[(0, context, rows)]).remove(0));
                    }
                    let same = alone.iter().zip(&together[0]).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{level:?} {form:?} {heads} heads of {dim}, window {window:?}, chunks of {chunk}");
                }
            }
        }
    }
}

/// The product of a zero and such a value is not a number: as an operand it meets queries that do not see it.
#[test]
fn a_value_that_is_not_finite_reaches_no_query_that_does_not_see_it() {
    for window in [None, Some(40)] {
        let mut case = Case::new(2, 1, 32, 16, window, &[200]).stored_as(KvForm::tiles());
        let compute = |case: &Case| case.compute(Level::Portable, 1, &[(0, 200, 200)]).remove(0);
        let expected = compute(&case);
        // The last one is finite, and infinite in bf16.
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
            case.values[0][70 * 32 + 3] = bad;
            for (i, (y, expected)) in compute(&case).iter().zip(&expected).enumerate() {
                let position = i / 64;
                if position < 70 || window.is_some_and(|window| position >= 70 + window) {
                    assert_eq!(y.to_bits(), expected.to_bits(), "{bad}, window {window:?}, position {position}");
                } else {
                    assert!(y.is_nan(), "{bad}, window {window:?}, position {position}: {y}");
                }
            }
        }
    }
}

/// Attention of 4 query heads of 4 elements to sequences of zeros, in 2 pages.
fn attend_to_zeros(kv_heads: usize, sequences: &[AttentionSequence]) {
    let layout = KvLayout { num_kv_heads: kv_heads, pages: 2, page_size: 16 };
    let offsets = [0, 4, 8, 12];
    let shape = AttentionShape {
        query_offsets: &offsets,
        layout,
        head_dim: 4,
        scale: 1.0,
        soft_cap: None,
        window: None,
        alibi_slopes: &[],
    };
    let slots = layout.slots().unwrap();
    let keys = KvBuffer::keys(KvDType::F32, slots, 4, 16).unwrap();
    let values = KvBuffer::values(KvDType::F32, slots, 4).unwrap();
    let mut out = [1.0; 3 * 16];
    let (queries, rows) = (Rows::new(&[0.0; 3 * 16], 16), RowsMut::new(&mut out, 16));
    paged_attention(&ThreadPool::new(NonZeroUsize::MIN), &shape, queries, &keys, &values, sequences, rows);
    for sequence in sequences {
        assert_eq!(
            out[sequence.first_row * 16..(sequence.first_row + sequence.rows) * 16],
            vec![0.0; 16 * sequence.rows]
        );
    }
}

#[test]
#[should_panic(expected = "page 9 is not one of 2")]
fn a_page_outside_of_the_pool_is_refused() {
    attend_to_zeros(2, &[AttentionSequence { first_row: 0, rows: 1, context: 17, pages: &[1, 9] }]);
}

#[test]
#[should_panic(expected = "4 query heads are not divisible by 3 KV heads")]
fn query_heads_that_kv_heads_do_not_divide_are_refused() {
    attend_to_zeros(3, &[]);
}

#[test]
fn rows_between_sequences_may_belong_to_none() {
    let sequence = |first_row| AttentionSequence { first_row, rows: 1, context: 1, pages: &[1] };
    attend_to_zeros(2, &[sequence(0), sequence(2)]);
}

/// Two threads would write to the same outputs.
#[test]
#[should_panic(expected = "a sequence begins at row 1, before the end of the last one's rows, 2")]
fn sequences_of_the_same_rows_are_refused() {
    let sequence = |first_row| AttentionSequence { first_row, rows: 2, context: 2, pages: &[1] };
    attend_to_zeros(2, &[sequence(0), sequence(1)]);
}

/// The error of attention to narrowed keys and values, as a part of its size. Steps of bf16 are a 256th of a number or
/// finer, in 8 bits a 127th of the largest of a head: root mean square errors of about 0.0016 and 0.006 in each key and value. Values'
/// errors average out as the values do; scores of a standard deviation near 1 move by the keys' errors.
#[test]
fn relative_errors_of_narrowed_keys_and_values() {
    let context = 300;
    let chosen = [(0, context, context)];
    let case = || {
        let mut case = Case::new(8, 2, 128, 16, None, &[context]);
        // Scores with a standard deviation near 1: 128 products of numbers of 4 / sqrt(3), times the scale.
        case.queries.iter_mut().flatten().for_each(|x| *x *= 0.05);
        case
    };
    let level = Level::chosen();
    let exact = case().compute(level, 2, &chosen);
    for (dtype, bound) in [(KvDType::F32, 0.0), (KvDType::Bf16, 0.004), (KvDType::Int8, 0.012)] {
        let other = case().stored_as(dtype).compute(level, 2, &chosen);
        let squares = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| f64::from(x - y).powi(2)).sum::<f64>();
        let error = (squares(&exact[0], &other[0]) / squares(&exact[0], &vec![0.0; exact[0].len()])).sqrt();
        println!("{dtype}: {error:.5}");
        assert!(error <= bound, "{dtype}: {error} is above {bound}");
    }
}

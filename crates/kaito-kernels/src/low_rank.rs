//! What adapters (LoRA) add to a product: `y += scale * B (A x)`, with `A` of `rank x inputs` and `B` of `outputs x rank`.
//!
//! These products are so small that starting them would cost as much as computing them. So all of a linear map's are computed together,
//! those of other adapters for other rows too, in two passes of all threads: `A x`, and what `B` makes of it.
//!
//! Sums are in one order, whatever the shape of the call. In `A x` it is the order of [`crate::matmul`]; of the products with `B`, a row's
//! are added up from the first to the last.

use std::{array, iter, mem, ops::Range};

use crate::{
    MatrixRef, Rows, RowsMut, ThreadPool,
    matmul::{
        BLOCK_COLUMNS,
        element::{Element, with_element},
    },
    partition::{PartMut, Partition},
    simd::{Kernel, Level, MAX_LANES, Simd, dispatch},
};

/// Outputs whose elements of `B` lie together.
pub const LOW_RANK_PANEL: usize = MAX_LANES;

/// Rows of `A`, or of the input, whose sums are held in registers together.
const SIDE: usize = 4;

/// Rows of the input that a thread takes at a time.
const PIECE_ROWS: usize = 32;

/// Outputs that a thread takes at a time: whole panels of a product that begins at such a place.
const PIECE_OUTPUTS: Range<usize> = 256..2048;

/// The elements of `B` in the order in which products read them: `[panel of outputs][rank][output of the panel]`. Outputs that the last
/// panel lacks are zeros.
///
/// # Panics
/// If `up` has no whole rows of `rank`.
pub fn low_rank_panels(up: &[f32], rank: usize) -> Vec<f32> {
    assert!(rank > 0 && up.len().is_multiple_of(rank), "{} elements in rows of {rank}", up.len());
    let mut panels = vec![0.0; (up.len() / rank).next_multiple_of(LOW_RANK_PANEL) * rank];
    for (output, row) in up.chunks_exact(rank).enumerate() {
        let panel = output / LOW_RANK_PANEL * LOW_RANK_PANEL * rank;
        for (r, value) in row.iter().enumerate() {
            panels[panel + r * LOW_RANK_PANEL + output % LOW_RANK_PANEL] = *value;
        }
    }
    panels
}

/// A product of two matrices of one rank, and the rows of a step that it is computed for.
#[derive(Debug, Clone, Copy)]
pub struct LowRankRows<'a> {
    /// Rows of the input and of the output, each once.
    pub rows: &'a [usize],
    /// `A`: `rank x inputs`.
    pub down: MatrixRef<'a>,
    /// `B`, as [`low_rank_panels`] orders it: a row for each panel and rank.
    pub up: MatrixRef<'a>,
    /// Factor of the product.
    pub scale: f32,
    /// Outputs that are added to.
    pub outputs: usize,
    /// The first of them.
    pub output_offset: usize,
}

impl<'a> LowRankRows<'a> {
    fn rank(&self) -> usize {
        self.down.rows()
    }

    /// The rows, as threads take them.
    fn pieces(&self) -> impl Iterator<Item = &'a [usize]> + use<'a> {
        self.rows.chunks(PIECE_ROWS)
    }

    /// How much room [`add_low_rank`] needs for what lies between the two matrices.
    pub fn between(&self) -> usize {
        self.rank() * self.rows.len()
    }

    fn check(&self, tokens: usize, inputs: usize, outputs: usize) {
        let (rank, panels) = (self.rank(), self.outputs.div_ceil(LOW_RANK_PANEL));
        assert_eq!(self.down.cols(), inputs, "columns of A, and inputs");
        assert_eq!((self.up.rows(), self.up.cols()), (panels * rank, LOW_RANK_PANEL), "B of {} outputs", self.outputs);
        assert!(
            self.outputs <= outputs && self.output_offset <= outputs - self.outputs,
            "{} outputs from {} on, of {outputs}",
            self.outputs,
            self.output_offset
        );
        assert!(self.rows.iter().all(|&row| row < tokens), "rows {:?} of {tokens}", self.rows);
    }
}

/// Adds each product to the outputs of its rows. A row may have several, which are added in their order.
///
/// Of `tokens` rows, an input has `inputs` elements and an output `outputs`. `between` is room for [`LowRankRows::between`] of all
/// products together. The bits of a row depend on its own input, its own products and its former output alone.
///
/// # Panics
/// If the shapes do not fit each other or their data.
pub fn add_low_rank(
    pool: &ThreadPool,
    products: &[LowRankRows],
    (tokens, inputs, outputs): (usize, usize, usize),
    input: Rows,
    between: &mut [f32],
    output: RowsMut,
) {
    add_low_rank_on(Level::chosen(), pool, products, (tokens, inputs, outputs), input, between, output);
}

fn add_low_rank_on(
    level: Level,
    pool: &ThreadPool,
    products: &[LowRankRows],
    (tokens, inputs, outputs): (usize, usize, usize),
    input: Rows,
    between: &mut [f32],
    output: RowsMut,
) {
    input.check("input", tokens, inputs);
    products.iter().for_each(|product| product.check(tokens, inputs, outputs));
    let mut rest = &mut between[..products.iter().map(LowRankRows::between).sum()];
    let blocks = |product: &LowRankRows| product.rank().div_ceil(SIDE) * product.pieces().count();
    let count = products.iter().map(blocks).sum();
    let mut blocks = products.iter().flat_map(|product| {
        let ranks = move |rows| (0..product.rank()).step_by(SIDE).map(move |rank| (product, rows, rank));
        product.pieces().flat_map(ranks)
    });
    let blocks = iter::from_fn(|| {
        let (product, rows, rank) = blocks.next()?;
        let down = product.down.slice_rows(rank, SIDE.min(product.rank() - rank));
        let (sums, others) = mem::take(&mut rest).split_at_mut(down.rows() * rows.len());
        rest = others;
        Some(Down { rows, input, down, scale: product.scale, sums })
    });
    pool.for_each_item(count, blocks, |block| dispatch(level, block));

    let between = &*between;
    let part = (outputs / (4 * pool.threads())).clamp(PIECE_OUTPUTS.start, PIECE_OUTPUTS.end);
    let partition = Partition::fixed(tokens, tokens.max(1), outputs, part.next_multiple_of(LOW_RANK_PANEL));
    output.for_each_part("output", pool, partition, |part, mut output| {
        let mut rest = between;
        for product in products {
            let first = product.output_offset;
            let begin = part.columns.start.max(first);
            let columns = begin - first..part.columns.end.min(first + product.outputs).max(begin) - first;
            for rows in product.pieces() {
                let (sums, others) = rest.split_at(product.rank() * rows.len());
                rest = others;
                if !columns.is_empty() {
                    dispatch(level, Up { rows, product, sums, columns: columns.clone(), output: &mut output });
                }
            }
        }
    });
}

/// `sums[r][t] = scale * A[r] x[rows[t]]`.
struct Down<'a> {
    rows: &'a [usize],
    input: Rows<'a>,
    down: MatrixRef<'a>,
    scale: f32,
    sums: &'a mut [f32],
}

impl Kernel for Down<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        with_element!(self.down.dtype(), |E| self.run_typed::<S, E>(simd));
    }
}

impl Down<'_> {
    #[inline(always)]
    fn run_typed<S: Simd, E: Element>(mut self, simd: S) {
        let (ranks, tokens) = (self.down.rows(), self.rows.len());
        let mut rank = 0;
        while rank < ranks {
            let many_ranks = rank + SIDE <= ranks;
            let mut token = 0;
            while token < tokens {
                let many_tokens = token + SIDE <= tokens;
                match (many_ranks, many_tokens) {
                    (true, true) => self.block::<S, E, SIDE, SIDE>(simd, rank, token),
                    (true, false) => self.block::<S, E, SIDE, 1>(simd, rank, token),
                    (false, true) => self.block::<S, E, 1, SIDE>(simd, rank, token),
                    (false, false) => self.block::<S, E, 1, 1>(simd, rank, token),
                }
                token += if many_tokens { SIDE } else { 1 };
            }
            rank += if many_ranks { SIDE } else { 1 };
        }
    }

    /// `R` rows of the matrix and `T` of the input.
    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // Iterators take closures.
    fn block<S: Simd, E: Element, const R: usize, const T: usize>(&mut self, simd: S, rank: usize, token: usize) {
        let (cols, tokens) = (self.down.cols(), self.rows.len());
        let weights: [&[u8]; R] = array::from_fn(|r| self.down.slice_rows(rank + r, 1).data());
        let inputs: [&[f32]; T] = array::from_fn(|t| self.input.row(self.rows[token + t], cols));
        let mut totals = [[0.0; T]; R];
        for column in (0..cols).step_by(BLOCK_COLUMNS) {
            let end = cols.min(column + BLOCK_COLUMNS);
            let mut sums = [[simd.splat(0.0); T]; R];
            let mut c = column;
            while c + S::LANES <= end {
                let mut x = [simd.splat(0.0); T];
                for t in 0..T {
                    x[t] = simd.load_slice(&inputs[t][c..]);
                }
                for r in 0..R {
                    let w = E::load_slice(simd, &weights[r][c * E::SIZE..]);
                    for t in 0..T {
                        sums[r][t] = simd.mul_add(x[t], w, sums[r][t]);
                    }
                }
                c += S::LANES;
            }
            if c < end {
                for r in 0..R {
                    let w = E::load_rest(simd, &weights[r][c * E::SIZE..end * E::SIZE]);
                    for t in 0..T {
                        sums[r][t] = simd.mul_add(simd.load_partial(&inputs[t][c..end]), w, sums[r][t]);
                    }
                }
            }
            for r in 0..R {
                for t in 0..T {
                    totals[r][t] += simd.sum(sums[r][t]);
                }
            }
        }
        for r in 0..R {
            for t in 0..T {
                self.sums[(rank + r) * tokens + token + t] = self.scale * totals[r][t];
            }
        }
    }
}

/// `output[rows[t]][c] += sum of B[c][r] * sums[r][t]`, for some of the product's columns.
struct Up<'a, 'p> {
    rows: &'a [usize],
    product: &'a LowRankRows<'a>,
    sums: &'a [f32],
    columns: Range<usize>,
    output: &'a mut PartMut<'p>,
}

impl Kernel for Up<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        with_element!(self.product.up.dtype(), |E| self.run_typed::<S, E>(simd));
    }
}

impl Up<'_, '_> {
    #[inline(always)]
    fn run_typed<S: Simd, E: Element>(mut self, simd: S) {
        let (rank, tokens) = (self.product.rank(), self.rows.len());
        for first in (0..self.columns.end).step_by(LOW_RANK_PANEL).skip(self.columns.start / LOW_RANK_PANEL) {
            let panel = self.product.up.slice_rows(first / LOW_RANK_PANEL * rank, rank).data();
            let mut token = 0;
            while token + SIDE <= tokens {
                self.block::<S, E, SIDE>(simd, panel, first, token);
                token += SIDE;
            }
            while token < tokens {
                self.block::<S, E, 1>(simd, panel, first, token);
                token += 1;
            }
        }
    }

    /// The columns of a panel, which begins at `first`, of `T` rows.
    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // Iterators take closures.
    fn block<S: Simd, E: Element, const T: usize>(&mut self, simd: S, panel: &[u8], first: usize, token: usize) {
        const { assert!(LOW_RANK_PANEL.is_multiple_of(S::LANES)) };
        let mut totals = [[0.0; LOW_RANK_PANEL]; T];
        for lane in (0..LOW_RANK_PANEL).step_by(S::LANES) {
            let mut sums = [simd.splat(0.0); T];
            let ranks = panel.chunks_exact(LOW_RANK_PANEL * E::SIZE).zip(self.sums.chunks_exact(self.rows.len()));
            for (weights, factors) in ranks {
                let w = E::load_slice(simd, &weights[lane * E::SIZE..]);
                let factors = &factors[token..token + T];
                for t in 0..T {
                    sums[t] = simd.mul_add(simd.splat(factors[t]), w, sums[t]);
                }
            }
            for t in 0..T {
                simd.store_slice(&mut totals[t][lane..], sums[t]);
            }
        }
        let columns = self.columns.start.max(first)..self.columns.end.min(first + LOW_RANK_PANEL);
        let offset = self.product.output_offset;
        for t in 0..T {
            let output = self.output.slice(self.rows[token + t], offset + columns.start..offset + columns.end);
            let totals = &totals[t][columns.start - first..columns.end - first];
            output.iter_mut().zip(totals).for_each(|(output, total)| *output += total);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;
    use crate::{DType, matmul::tests::numbers, narrow};

    /// A product's matrices, with numbers that every element type has.
    struct Matrices {
        down: Vec<f32>,
        up: Vec<f32>,
        rank: usize,
        outputs: usize,
    }

    impl Matrices {
        fn new(seed: u64, inputs: usize, rank: usize, outputs: usize) -> Self {
            let mut next = numbers(seed);
            let mut some = |count: usize| (0..count).map(|_| (64.0 * next()).round() / 64.0).collect::<Vec<f32>>();
            Self { down: some(rank * inputs), up: some(outputs * rank), rank, outputs }
        }

        fn stored(&self, dtype: DType) -> (Vec<u8>, Vec<u8>) {
            let bytes = |values: &[f32]| {
                let mut bytes = vec![0; values.len() * dtype.size()];
                narrow(values, dtype, &mut bytes);
                bytes
            };
            (bytes(&self.down), bytes(&low_rank_panels(&self.up, self.rank)))
        }
    }

    fn product<'a>(
        matrices: &Matrices,
        (down, up): &'a (Vec<u8>, Vec<u8>),
        rows: &'a [usize],
        output_offset: usize,
    ) -> LowRankRows<'a> {
        let &Matrices { rank, outputs, .. } = matrices;
        let dtype = if down.len() == 4 * matrices.down.len() { DType::F32 } else { DType::Bf16 };
        let panels = outputs.div_ceil(LOW_RANK_PANEL) * rank;
        LowRankRows {
            rows,
            down: MatrixRef::new(dtype, rank, down.len() / dtype.size() / rank, down).unwrap(),
            up: MatrixRef::new(dtype, panels, LOW_RANK_PANEL, up).unwrap(),
            scale: 0.75,
            outputs,
            output_offset,
        }
    }

    /// Rows of 40 tokens among three products, two of which the same rows have, and what they are added to.
    #[test]
    fn what_is_added_is_near_its_definition_and_its_bits_depend_on_nothing_else() {
        const TOKENS: usize = 77;
        for (inputs, rank, outputs) in [(1, 1, 1), (17, 3, 40), (64, 8, 16), (1100, 16, 300), (33, 21, 1030)] {
            let width = outputs + 5;
            let mut next = numbers(rank as u64);
            let input: Vec<f32> = (0..TOKENS * inputs).map(|_| next()).collect();
            let before: Vec<f32> = (0..TOKENS * width).map(|_| next()).collect();
            let all = [
                Matrices::new(1, inputs, rank, outputs),
                Matrices::new(2, inputs, 2 * rank, outputs.div_ceil(2)),
                Matrices::new(3, inputs, rank, outputs),
            ];
            let rows: Vec<Vec<usize>> = vec![
                (0..TOKENS).filter(|row| row % 2 == 0).collect(),
                (0..TOKENS).filter(|row| row % 2 == 0).collect(),
                (0..TOKENS).filter(|row| row % 8 == 3).collect(),
            ];
            let offsets = [5, 3, 0];
            let mut expected: Vec<f64> = before.iter().map(|&y| f64::from(y)).collect();
            for ((matrices, rows), offset) in all.iter().zip(&rows).zip(offsets) {
                for &row in rows {
                    for (r, down) in matrices.down.chunks_exact(inputs).enumerate() {
                        let x = &input[row * inputs..(row + 1) * inputs];
                        let sum: f64 = down.iter().zip(x).map(|(&a, &x)| f64::from(a) * f64::from(x)).sum();
                        for output in 0..matrices.outputs {
                            let factor = f64::from(matrices.up[output * matrices.rank + r]);
                            expected[row * width + offset + output] += 0.75 * factor * sum;
                        }
                    }
                }
            }
            for &level in Level::available() {
                let compute = |dtype: DType, threads: usize, tokens: Range<usize>| {
                    let stored: Vec<_> = all.iter().map(|matrices| matrices.stored(dtype)).collect();
                    let rows: Vec<Vec<usize>> = rows
                        .iter()
                        .map(|rows| rows.iter().copied().filter(|row| tokens.contains(row)).collect())
                        .collect();
                    let products: Vec<LowRankRows> =
                        (0..3).map(|i| product(&all[i], &stored[i], &rows[i], offsets[i])).collect();
                    let mut between = vec![f32::NAN; products.iter().map(LowRankRows::between).sum()];
                    let mut output = before.clone();
                    let pool = ThreadPool::new(NonZeroUsize::new(threads).unwrap());
                    add_low_rank_on(
                        level,
                        &pool,
                        &products,
                        (TOKENS, inputs, width),
                        Rows::new(&input, inputs),
                        &mut between,
                        RowsMut::new(&mut output, width),
                    );
                    output
                };
                let found = compute(DType::F32, 1, 0..TOKENS);
                let most = expected.iter().fold(0.0_f64, |most, y| most.max(y.abs()));
                for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                    let error = (f64::from(*found) - expected).abs();
                    assert!(error <= 3e-6 * most, "{level:?}, {rank}, element {i}: {found}, not {expected}");
                }
                assert!(found == compute(DType::Bf16, 3, 0..TOKENS), "{level:?}, {rank}: in 16 bits, by 3 threads");
                for some in [0..1, 3..4, 10..16, 4..77] {
                    let few = compute(DType::F32, 2, some.clone());
                    for row in 0..TOKENS {
                        let of = |all: &[f32]| all[row * width..(row + 1) * width].to_vec();
                        let expected = if some.contains(&row) { of(&found) } else { of(&before) };
                        assert!(of(&few) == expected, "{level:?}, {rank}: row {row} of {some:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn panels_have_every_element_of_their_outputs_and_zeros() {
        let up: Vec<f32> = (0..18 * 2).map(|i| i as f32 + 1.0).collect();
        let panels = low_rank_panels(&up, 2);
        assert_eq!(panels.len(), 2 * 2 * LOW_RANK_PANEL);
        assert_eq!(panels[..3], [1.0, 3.0, 5.0]);
        assert_eq!(panels[LOW_RANK_PANEL..LOW_RANK_PANEL + 2], [2.0, 4.0]);
        assert_eq!(panels[2 * LOW_RANK_PANEL..2 * LOW_RANK_PANEL + 3], [33.0, 35.0, 0.0]);
        assert_eq!(panels[3 * LOW_RANK_PANEL..3 * LOW_RANK_PANEL + 3], [34.0, 36.0, 0.0]);
    }

    #[test]
    #[should_panic(expected = "rows [0, 2] of 2")]
    fn a_row_that_is_not_there_is_refused() {
        let matrices = Matrices::new(1, 2, 1, 1);
        let stored = matrices.stored(DType::F32);
        let products = [product(&matrices, &stored, &[0, 2], 0)];
        let (pool, mut output) = (ThreadPool::new(NonZeroUsize::MIN), [0.0; 2]);
        let output = RowsMut::new(&mut output, 1);
        add_low_rank(&pool, &products, (2, 2, 1), Rows::new(&[0.0; 4], 2), &mut [0.0; 2], output);
    }
}

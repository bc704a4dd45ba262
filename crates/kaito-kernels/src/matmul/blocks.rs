//! The product of activations with weights in blocks.

use super::{
    BLOCK_COLUMNS, PART_SIZES, SEGMENT_VECTORS, TiledInput, Write,
    compute::Form,
    element::F32,
    tile::{MAX_SEGMENT_TOKENS, Product},
    weight_rows::WeightRows,
};
use crate::{
    RowsMut, ThreadPool,
    blocks::{BlocksRef, Dequantize},
    partition::{Part, PartMut, Partition},
    simd::{Kernel, Simd, dispatch},
};

/// Rows that are dequantised before they are multiplied: for few tokens, and for more, which use each weight more often. Their block of
/// columns stays in the first and in the second level cache.
const FEW_ROWS: usize = 8;
const MANY_ROWS: usize = 32;

/// `y[t][r] = sum_c x[t][c] * w[r][c]`, or `+=`, with the numbers that the blocks of `weight` stand for: the bits of `y` are those of
/// [`super::matmul`] with these numbers in f32. `input` was made for weights in f32.
///
/// # Panics
/// If the output does not fit in its data, or the input was made for weights of another type or of another number of columns.
pub fn block_matmul(pool: &ThreadPool, input: &TiledInput, weight: BlocksRef, mut output: RowsMut, mode: Write) {
    assert_eq!(input.cols, weight.cols(), "input and weight have different numbers of columns");
    let level = match input.form.0 {
        Form::Vectors(level) => Some(level),
        _ => None,
    };
    assert!(level.is_some(), "the input is {:?}, which does not fit weights in {}", input.form, weight.format());
    let (tokens, rows, cols) = (input.tokens(), weight.rows(), weight.cols());
    output.check("output", tokens, rows);
    if tokens == 0 || rows == 0 || cols == 0 {
        if mode == Write::Set {
            output.set_to_zero(tokens, rows);
        }
        return;
    }
    let Some(level) = level else { return };
    let partition = Partition::of_product(pool.threads(), tokens, rows, cols, &PART_SIZES);
    output.for_each_part("output", pool, partition, |part, output| {
        dispatch(level, BlockProduct { input, weight, output, mode, part });
    });
}

/// The product of some tokens with some weight rows, which are `part`'s columns of the output.
struct BlockProduct<'a> {
    input: &'a TiledInput,
    weight: BlocksRef<'a>,
    output: PartMut<'a>,
    mode: Write,
    part: Part,
}

impl Kernel for BlockProduct<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match self.input.tokens() {
            1 => self.run_strips::<S, FEW_ROWS>(simd, BLOCK_COLUMNS, &mut [0.0; FEW_ROWS * BLOCK_COLUMNS]),
            2..=MAX_SEGMENT_TOKENS => {
                self.run_strips::<S, FEW_ROWS>(simd, SEGMENT_VECTORS * S::LANES, &mut [0.0; FEW_ROWS * BLOCK_COLUMNS]);
            }
            _ => self.run_strips::<S, MANY_ROWS>(simd, BLOCK_COLUMNS, &mut [0.0; MANY_ROWS * BLOCK_COLUMNS]),
        }
    }
}

impl BlockProduct<'_> {
    /// `room` is for `ROWS` rows of a block of columns.
    #[inline(always)]
    fn run_strips<S: Simd, const ROWS: usize>(mut self, simd: S, segment: usize, room: &mut [f32]) {
        let (rows, cols) = (self.part.columns.clone(), self.weight.cols());
        for first_row in rows.clone().step_by(ROWS) {
            let count = ROWS.min(rows.end - first_row);
            for column in (0..cols).step_by(BLOCK_COLUMNS) {
                let columns = column..cols.min(column + BLOCK_COLUMNS);
                for (row, weights) in room.chunks_exact_mut(BLOCK_COLUMNS).take(count).enumerate() {
                    simd.call(Dequantize {
                        format: self.weight.format(),
                        blocks: self.weight.blocks(first_row + row, column, columns.len()),
                        weights: &mut weights[..columns.len()],
                    });
                }
                simd.call(Product::<F32> {
                    weight: WeightRows::of_values(room, count, columns),
                    input: self.input,
                    tiles: self.part.tiles.clone(),
                    output: &mut self.output,
                    first_row,
                    apart: 1,
                    add: column > 0 || self.mode == Write::Add,
                    segment,
                    next: std::ptr::null(),
                });
            }
        }
    }
}

//! The product of activations with a weight matrix.
//!
//! Every output is summed up in one order, whatever the shape of the call: columns are cut into blocks of
//! [`BLOCK_COLUMNS`]; within a block, lane `l` of one vector sums the columns `l`, `l + LANES`, ..; the lanes are
//! added in a fixed tree; the sums of the blocks are added in order. Tiles of several rows and tokens only decide which
//! of these sums are computed side by side.

pub(crate) mod element;
pub(crate) mod tile;

use std::marker::PhantomData;

use self::{
    element::{Bf16, Element, F16, F32},
    tile::{Product, Sums, Tokens, WeightRows, strip_rows},
};
use crate::{
    DType, MatrixRef, Rows, RowsMut, ThreadPool,
    matrix::SharedRows,
    simd::{Kernel, Level, Simd, dispatch},
};

/// What becomes of the values that an output held before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// They are replaced.
    Set,
    /// The results are added to them.
    Add,
}

/// Columns that are summed up before their lanes are added. A tile's rows of this length stay in the first level cache.
const BLOCK_COLUMNS: usize = 1024;

/// `y[t][r] = sum_c x[t][c] * w[r][c]`, or `+=`: `input` has `tokens` rows of `weight.cols`, `output` of `weight.rows`.
///
/// The bits of `y[t][r]` depend on `x[t]`, `w[r]` and, with [`Write::Add`], its former value alone.
///
/// # Panics
/// If a shape does not fit its data.
pub fn matmul(pool: &ThreadPool, tokens: usize, input: Rows, weight: MatrixRef, output: RowsMut, mode: Write) {
    matmul_on(Level::best(), pool, tokens, input, weight, output, mode);
}

pub(crate) fn matmul_on(
    level: Level,
    pool: &ThreadPool,
    tokens: usize,
    input: Rows,
    weight: MatrixRef,
    output: RowsMut,
    mode: Write,
) {
    weight.check("weight");
    input.check("input", tokens, weight.cols);
    let output = output.share("output", tokens, weight.rows);
    if tokens == 0 || weight.rows == 0 || weight.cols == 0 {
        if mode == Write::Set {
            // SAFETY: nobody else has the output.
            (0..tokens).for_each(|t| unsafe { output.slice(t, 0, weight.rows) }.fill(0.0));
        }
        return;
    }
    let cut = Cut::new(pool.threads(), tokens, &weight);
    pool.for_each(cut.pieces(), &|piece| {
        dispatch(level, Piece { input, weight, output, mode, part: cut.part(piece) });
    });
}

/// Up to so many tokens, a few weight rows go from end to end against all of them: reading weights takes longest, and
/// it is done in long runs. For more, a block of columns of many rows stays in the cache while the tokens pass.
const RUN_TOKENS: usize = 16;

/// How the outputs are shared out.
struct Cut {
    rows: usize,
    tokens: usize,
    part_rows: usize,
    part_tokens: usize,
}

/// A rectangle of the outputs.
#[derive(Clone, Copy)]
struct Part {
    first_row: usize,
    rows: usize,
    first_token: usize,
    tokens: usize,
}

impl Cut {
    /// Parts are small enough that threads end at nearly the same time, and large enough that taking one costs nothing
    /// next to it and that what it reads is used often.
    fn new(threads: usize, tokens: usize, weight: &MatrixRef) -> Self {
        const PARTS_OF_A_THREAD: usize = 8;
        const LEAST_PRODUCTS: usize = 64 * 1024;
        const MOST_ROWS: usize = 64;
        const MOST_TOKENS: usize = 256;
        let part_tokens = tokens.div_ceil(tokens.div_ceil(MOST_TOKENS));
        let even = weight.rows * tokens.div_ceil(part_tokens) / (threads * PARTS_OF_A_THREAD);
        let least = LEAST_PRODUCTS / (weight.cols * part_tokens).max(1);
        let part_rows = even.max(least).clamp(8, MOST_ROWS).next_multiple_of(8);
        Self { rows: weight.rows, tokens, part_rows, part_tokens }
    }

    fn pieces(&self) -> usize {
        self.rows.div_ceil(self.part_rows) * self.tokens.div_ceil(self.part_tokens)
    }

    fn part(&self, piece: usize) -> Part {
        let row_parts = self.rows.div_ceil(self.part_rows);
        let first_row = piece % row_parts * self.part_rows;
        let first_token = piece / row_parts * self.part_tokens;
        Part {
            first_row,
            rows: self.part_rows.min(self.rows - first_row),
            first_token,
            tokens: self.part_tokens.min(self.tokens - first_token),
        }
    }
}

struct Piece<'a> {
    input: Rows<'a>,
    weight: MatrixRef<'a>,
    output: SharedRows<'a>,
    mode: Write,
    part: Part,
}

impl Kernel for Piece<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match self.weight.dtype {
            DType::F32 => self.run_typed::<S, F32>(simd),
            DType::Bf16 => self.run_typed::<S, Bf16>(simd),
            DType::F16 => self.run_typed::<S, F16>(simd),
        }
    }
}

impl Piece<'_> {
    /// While a strip of rows and one block of their columns is multiplied, the next one is brought nearer.
    #[inline(always)]
    fn run_typed<S: Simd, E: Element>(&self, simd: S) {
        let Part { rows, tokens, .. } = self.part;
        let strip = if tokens <= RUN_TOKENS { strip_rows::<S>(tokens) } else { rows };
        for r in (0..rows).step_by(strip) {
            for column in (0..self.weight.cols).step_by(BLOCK_COLUMNS) {
                let next = if column + BLOCK_COLUMNS < self.weight.cols {
                    self.weight_rows::<E>(r, column + BLOCK_COLUMNS).start
                } else if r + strip < rows {
                    self.weight_rows::<E>(r + strip, 0).start
                } else {
                    std::ptr::null()
                };
                let product = self.product::<E>(r, strip.min(rows - r), column, next);
                // SAFETY: rows and columns of the part.
                simd.call(unsafe { product.promise() });
            }
        }
    }

    /// The part's rows from `r` on, and their columns from `column` on.
    #[inline(always)]
    fn weight_rows<E: Element>(&self, r: usize, column: usize) -> WeightRows<E> {
        let first = (self.part.first_row + r) * self.weight.cols + column;
        let start = self.weight.data[first * E::SIZE..].as_ptr();
        WeightRows { start, stride: self.weight.cols * E::SIZE, element: PhantomData }
    }

    /// The product of `rows` of the part's rows from `r` on with the part's tokens, for the block of columns that
    /// begins at `column`.
    #[inline(always)]
    fn product<E: Element>(&self, r: usize, rows: usize, column: usize, next: *const u8) -> Product<E> {
        let Part { first_row, first_token, tokens, .. } = self.part;
        let input = &self.input.data[first_token * self.input.stride + self.input.offset + column..];
        Product {
            weight: self.weight_rows(r, column),
            input: Tokens { start: input.as_ptr(), stride: self.input.stride },
            output: Sums {
                start: self.output.at(first_token, first_row + r),
                stride: self.output.stride(),
                add: column > 0 || self.mode == Write::Add,
            },
            rows,
            tokens,
            columns: BLOCK_COLUMNS.min(self.weight.cols - column),
            next,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;

//! The product of activations with a weight matrix.
//!
//! Every output is summed up in one order, whatever the shape of the call: columns are cut into blocks of
//! [`BLOCK_COLUMNS`]; within a block, lane `l` of one vector sums the columns `l`, `l + LANES`, ..; the lanes are
//! added in a fixed tree; the sums of the blocks are added in order. Tiles of several rows and tokens only decide which
//! of these sums are computed side by side.

pub(crate) mod element;
mod input;
pub(crate) mod tile;

use std::{marker::PhantomData, ops::Range};

pub use self::input::TiledInput;
use self::{
    element::{Bf16, Element, F16, F32},
    input::MAX_TILE_TOKENS,
    tile::{MAX_SPAN_TOKENS, Product, WeightRows, strip_rows},
};
use crate::{
    DType, MatrixRef, RowsMut, ThreadPool,
    matrix::SharedRows,
    simd::{AHEAD, Kernel, Simd, dispatch},
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

/// Vectors of columns after which the next of a few tiles has its turn: all tokens' columns of a span stay in the first
/// level cache.
const SPAN_VECTORS: usize = 32;

/// `y[t][r] = sum_c x[t][c] * w[r][c]`, or `+=`: `input` has `weight.cols` columns, `output` as many rows as it has tokens, of
/// `weight.rows`.
///
/// The bits of `y[t][r]` depend on `x[t]`, `w[r]` and, with [`Write::Add`], its former value alone.
///
/// # Panics
/// If a shape does not fit its data, or the input has another number of columns than the weight.
pub fn matmul(pool: &ThreadPool, input: &TiledInput, weight: MatrixRef, output: RowsMut, mode: Write) {
    weight.check("weight");
    assert_eq!(input.cols, weight.cols, "input and weight have different numbers of columns");
    let tokens = input.tokens;
    let output = output.share("output", tokens, weight.rows);
    if tokens == 0 || weight.rows == 0 || weight.cols == 0 {
        if mode == Write::Set {
            // SAFETY: nobody else has the output.
            (0..tokens).for_each(|t| unsafe { output.slice(t, 0, weight.rows) }.fill(0.0));
        }
        return;
    }
    let cut = Cut::new(pool.threads(), input, &weight);
    pool.for_each(cut.pieces(), &|piece| {
        dispatch(input.level, Piece { input, weight, output, mode, part: cut.part(piece) });
    });
}

/// How the outputs are shared out.
struct Cut {
    rows: usize,
    tiles: usize,
    part_rows: usize,
    part_tiles: usize,
}

/// A rectangle of the outputs.
struct Part {
    rows: Range<usize>,
    tiles: Range<usize>,
}

impl Cut {
    /// Parts are small enough that threads end at nearly the same time, and large enough that taking one costs nothing
    /// next to it and that what it reads is used often.
    fn new(threads: usize, input: &TiledInput, weight: &MatrixRef) -> Self {
        const PARTS_OF_A_THREAD: usize = 8;
        const LEAST_PRODUCTS: usize = 64 * 1024;
        const MOST_ROWS: usize = 64;
        const MOST_TILES: usize = 256usize.div_ceil(MAX_TILE_TOKENS);
        let tiles = input.tiles();
        let part_tiles = tiles.div_ceil(tiles.div_ceil(MOST_TILES));
        let even = weight.rows * tiles.div_ceil(part_tiles) / (threads * PARTS_OF_A_THREAD);
        let part_tokens = input.tokens.min(part_tiles * MAX_TILE_TOKENS);
        let least = LEAST_PRODUCTS / (weight.cols * part_tokens).max(1);
        let part_rows = even.max(least).clamp(8, MOST_ROWS).next_multiple_of(8);
        Self { rows: weight.rows, tiles, part_rows, part_tiles }
    }

    fn pieces(&self) -> usize {
        self.rows.div_ceil(self.part_rows) * self.tiles.div_ceil(self.part_tiles)
    }

    fn part(&self, piece: usize) -> Part {
        let row_parts = self.rows.div_ceil(self.part_rows);
        let first_row = piece % row_parts * self.part_rows;
        let first_tile = piece / row_parts * self.part_tiles;
        Part {
            rows: first_row..self.rows.min(first_row + self.part_rows),
            tiles: first_tile..self.tiles.min(first_tile + self.part_tiles),
        }
    }
}

struct Piece<'a> {
    input: &'a TiledInput,
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

impl<'a> Piece<'a> {
    /// While a strip of rows and one block of their columns is multiplied, the next one is brought nearer.
    ///
    /// For few tokens, a few weight rows go from end to end against all of them: reading weights takes longest, and it is
    /// done in long runs. For more, a block of columns of many rows stays in the cache while the tokens pass.
    #[inline(always)]
    fn run_typed<S: Simd, E: Element>(&self, simd: S) {
        let Part { rows, .. } = &self.part;
        let few = self.input.tokens <= MAX_SPAN_TOKENS;
        let strip = if few { strip_rows::<S>(self.input.least_tile()) } else { rows.len() };
        // A single token's sums are few for the columns they take: keeping them would cost more than it saves.
        let span = if few && self.input.tokens > 1 { SPAN_VECTORS * S::LANES } else { BLOCK_COLUMNS };
        // Each row of a strip is a stream of its own (see `STREAMS`), which goes on where the strip before has left it.
        let strips = rows.len() / strip;
        for i in 0..=strips {
            let (r, count, apart) = if i < strips {
                (rows.start + i, strip, strips)
            } else {
                (rows.start + strips * strip, rows.len() - strips * strip, 1)
            };
            if count == 0 {
                break;
            }
            for column in (0..self.weight.cols).step_by(BLOCK_COLUMNS) {
                let start = self.weight_at::<E>(r, column);
                let next = if self.input.tokens == 1 {
                    start.wrapping_add(AHEAD)
                } else if column + BLOCK_COLUMNS < self.weight.cols {
                    self.weight_at::<E>(r, column + BLOCK_COLUMNS)
                } else if i + 1 < strips {
                    self.weight_at::<E>(r + 1, 0)
                } else {
                    std::ptr::null()
                };
                let stride = apart * self.weight.cols * E::SIZE;
                let product = Product::<E> {
                    weight: WeightRows { start, stride, element: PhantomData },
                    input: self.input,
                    tiles: self.part.tiles.clone(),
                    first_column: column,
                    output: self.output,
                    first_row: r,
                    apart,
                    add: column > 0 || self.mode == Write::Add,
                    rows: count,
                    columns: BLOCK_COLUMNS.min(self.weight.cols - column),
                    span,
                    next,
                };
                // SAFETY: rows and columns of the part, which is this thread's, on the input's level.
                simd.call(unsafe { product.promise() });
            }
        }
    }

    #[inline(always)]
    fn weight_at<E: Element>(&self, row: usize, column: usize) -> *const u8 {
        self.weight.data[(row * self.weight.cols + column) * E::SIZE..].as_ptr()
    }
}

#[cfg(test)]
pub(crate) mod tests;

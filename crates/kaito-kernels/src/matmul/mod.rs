//! The product of activations with a weight matrix.
//!
//! Every output is summed up in one order, whatever the shape of the call: columns are cut into blocks of
//! [`BLOCK_COLUMNS`]; within a block, lane `l` of one vector sums the columns `l`, `l + LANES`, ..; the lanes are
//! added in a fixed tree; the sums of the blocks are added in order. Register blocking, in tiles of several rows and tokens, only
//! decides which of these sums are computed side by side.

pub(crate) mod element;
mod input;
mod tile;
mod weight_rows;

pub use self::input::TiledInput;
use self::{
    element::{Bf16, Element, F16, F32},
    input::MAX_TILE_TOKENS,
    tile::{MAX_SEGMENT_TOKENS, Product, strip_rows},
    weight_rows::WeightRows,
};
use crate::{
    DType, MatrixRef, RowsMut, ThreadPool,
    partition::{Part, PartMut, PartSizes, Partition},
    simd::{Kernel, PREFETCH_DISTANCE, Simd, dispatch},
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

/// Vectors of a segment of columns. Where there are a few tiles, each is multiplied by one segment before any by the next: all
/// tokens' columns of a segment stay in the first level cache.
const SEGMENT_VECTORS: usize = 32;

const PART_SIZES: PartSizes = PartSizes {
    tile_tokens: MAX_TILE_TOKENS,
    most_tiles: 256usize.div_ceil(MAX_TILE_TOKENS),
    block_rows: 1,
    least_blocks: 8,
    most_blocks: 64,
    least_products: 64 * 1024,
};

/// `y[t][r] = sum_c x[t][c] * w[r][c]`, or `+=`: `input` has `weight.cols()` columns, `output` as many rows as it has tokens, of
/// `weight.rows()`.
///
/// The bits of `y[t][r]` depend on `x[t]`, `w[r]` and, with [`Write::Add`], its former value alone.
///
/// # Panics
/// If the output does not fit in its data, or the input has another number of columns than the weight.
pub fn matmul(pool: &ThreadPool, input: &TiledInput, weight: MatrixRef, mut output: RowsMut, mode: Write) {
    assert_eq!(input.cols, weight.cols(), "input and weight have different numbers of columns");
    let (tokens, rows, cols) = (input.tokens(), weight.rows(), weight.cols());
    output.check("output", tokens, rows);
    if tokens == 0 || rows == 0 || cols == 0 {
        if mode == Write::Set {
            output.set_to_zero(tokens, rows);
        }
        return;
    }
    let partition = Partition::of_product(pool.threads(), tokens, rows, cols, &PART_SIZES);
    output.for_each_part("output", pool, partition, |part, output| {
        dispatch(input.level, PartProduct { input, weight, output, mode, part });
    });
}

/// The product of some tokens with some weight rows, which are `part`'s columns of the output.
struct PartProduct<'a> {
    input: &'a TiledInput,
    weight: MatrixRef<'a>,
    output: PartMut<'a>,
    mode: Write,
    part: Part,
}

impl Kernel for PartProduct<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match self.weight.dtype() {
            DType::F32 => self.run_typed::<S, F32>(simd),
            DType::Bf16 => self.run_typed::<S, Bf16>(simd),
            DType::F16 => self.run_typed::<S, F16>(simd),
        }
    }
}

impl PartProduct<'_> {
    /// While a strip of rows and one block of their columns is multiplied, the next one is prefetched.
    ///
    /// For few tokens, a few weight rows go from end to end against all of them: reading weights takes longest, and it is
    /// done in long sequential reads. For more, a block of columns of many rows stays in the cache while the tokens pass.
    #[inline(always)]
    fn run_typed<S: Simd, E: Element>(mut self, simd: S) {
        let (rows, cols) = (self.part.columns.clone(), self.weight.cols());
        let few = self.input.tokens() <= MAX_SEGMENT_TOKENS;
        let strip = if few { strip_rows::<S>(self.input.least_tile()) } else { rows.len() };
        // A single token's sums are few for the columns they take: keeping them would cost more than it saves.
        let segment = if few && self.input.tokens() > 1 { SEGMENT_VECTORS * S::LANES } else { BLOCK_COLUMNS };
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
            for column in (0..cols).step_by(BLOCK_COLUMNS) {
                let columns = column..cols.min(column + BLOCK_COLUMNS);
                let next = if self.input.tokens() == 1 {
                    self.address::<E>(r, column).wrapping_add(PREFETCH_DISTANCE)
                } else if column + BLOCK_COLUMNS < cols {
                    self.address::<E>(r, column + BLOCK_COLUMNS)
                } else if i + 1 < strips {
                    self.address::<E>(r + 1, 0)
                } else {
                    std::ptr::null()
                };
                simd.call(Product::<E> {
                    weight: WeightRows::new(&self.weight, r, apart, count, columns),
                    input: self.input,
                    tiles: self.part.tiles.clone(),
                    output: &mut self.output,
                    first_row: r,
                    apart,
                    add: column > 0 || self.mode == Write::Add,
                    segment,
                    next,
                });
            }
        }
    }

    /// Where an element of the weight lies.
    #[inline(always)]
    fn address<E: Element>(&self, row: usize, column: usize) -> *const u8 {
        self.weight.data()[(row * self.weight.cols() + column) * E::SIZE..].as_ptr()
    }
}

#[cfg(test)]
pub(crate) mod tests;

//! The product of activations with a weight matrix.
//!
//! Every output is summed up in one order, whatever the shape of the call: columns are cut into blocks of
//! [`BLOCK_COLUMNS`]; within a block, lane `l` of one vector sums the columns `l`, `l + LANES`, ..; the lanes are
//! added in a fixed tree; the sums of the blocks are added in order. Register blocking, in tiles of several rows and tokens, only
//! decides which of these sums are computed side by side. That is so for vectors; products by tile registers have an order of their
//! own, which does not depend on the shape of the call either.

mod blocks;
mod compute;
pub(crate) mod element;
mod input;
mod tile;
#[cfg(any(target_arch = "x86_64", test))]
mod tiles;
mod weight_rows;

use std::mem::MaybeUninit;

pub use self::{
    blocks::block_matmul,
    compute::{Compute, InputForm, UnknownCompute},
    input::TiledInput,
};
use self::{
    compute::{Form, widening_competes},
    element::{Element, F32, with_element},
    input::MAX_TILE_TOKENS,
    tile::{MAX_SEGMENT_TOKENS, Product, strip_rows},
    weight_rows::WeightRows,
};
#[cfg(target_arch = "x86_64")]
use crate::simd::dispatch_bf16_pairs;
use crate::{
    MatrixRef, RowsMut, ThreadPool,
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
pub(crate) const BLOCK_COLUMNS: usize = 1024;

/// Vectors of a segment of columns. Where there are a few tiles, each is multiplied by one segment before any by the next: all
/// tokens' columns of a segment stay in the first level cache.
const SEGMENT_VECTORS: usize = 32;

/// From so many tokens on, widening a weight once is worth writing and reading the copy.
const WIDEN_TOKENS: usize = 48;

const PART_SIZES: PartSizes = PartSizes {
    tile_tokens: MAX_TILE_TOKENS,
    most_tiles: 256usize.div_ceil(MAX_TILE_TOKENS),
    block_rows: 1,
    least_blocks: 8,
    most_blocks: 64,
    least_products: 64 * 1024,
};

/// The same of few tokens: whole strips of 4, 6 or 8 rows.
const FEW_PART_SIZES: PartSizes = PartSizes { least_blocks: 24, most_blocks: 96, ..PART_SIZES };

/// `y[t][r] = sum_c x[t][c] * w[r][c]`, or `+=`: `input` has `weight.cols()` columns, `output` as many rows as it has tokens, of
/// `weight.rows()`.
///
/// The bits of `y[t][r]` depend on `x[t]`, `w[r]` and, with [`Write::Add`], its former value alone.
///
/// # Panics
/// If the output does not fit in its data, or the input was made for other weights: of another number of columns, or of a type that its
/// form does not fit.
pub fn matmul(pool: &ThreadPool, input: &TiledInput, weight: MatrixRef, mut output: RowsMut, mode: Write) {
    assert_eq!(input.cols, weight.cols(), "input and weight have different numbers of columns");
    assert!(
        input.form.fits(weight.dtype()),
        "the input is {:?}, which does not fit weights in {}",
        input.form,
        weight.dtype()
    );
    let (tokens, rows, cols) = (input.tokens(), weight.rows(), weight.cols());
    output.check("output", tokens, rows);
    if tokens == 0 || rows == 0 || cols == 0 {
        if mode == Write::Set {
            output.set_to_zero(tokens, rows);
        }
        return;
    }
    let sizes = if tokens <= MAX_SEGMENT_TOKENS { &FEW_PART_SIZES } else { &PART_SIZES };
    let partition = |sizes| Partition::of_product(pool.threads(), tokens, rows, cols, sizes);
    let level = match input.form.0 {
        Form::Vectors(level) | Form::RoundedVectors(level) => level,
        #[cfg(target_arch = "x86_64")]
        Form::Pairs => {
            // A pair is as large as an f32, and is read like one.
            let pairs = weight.as_pairs();
            output.for_each_part("output", pool, partition(sizes), |part, output| {
                dispatch_bf16_pairs(PairProduct(PartProduct { input, weight: pairs, output, mode, part }));
            });
            return;
        }
        #[cfg(any(target_arch = "x86_64", test))]
        Form::Tiles { unit, .. } => {
            let sizes = tiles::part_sizes(tokens, weight.dtype(), input.packed.is_split());
            output.for_each_part("output", pool, partition(sizes), |part, output| {
                unit.compute(&input.packed, weight, output, mode, part);
            });
            return;
        }
    };
    output.for_each_part("output", pool, partition(sizes), |part, output| {
        dispatch(level, PartProduct { input, weight, output, mode, part });
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
        with_element!(self.weight.dtype(), |E| self.run_typed::<S, E>(simd));
    }
}

/// The same where each lane of weights and activations is a pair of bf16.
#[cfg(target_arch = "x86_64")]
struct PairProduct<'a>(PartProduct<'a>);

#[cfg(target_arch = "x86_64")]
impl Kernel for PairProduct<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        self.0.run_typed::<S, F32>(simd);
    }
}

impl PartProduct<'_> {
    /// While a strip of rows and one block of their columns is multiplied, the next one is prefetched.
    ///
    /// For few tokens, a few weight rows go from end to end against all of them: reading weights takes longest, and it is
    /// done in long sequential reads. For more, a block of columns of many rows stays in the cache while the tokens pass.
    #[inline(always)]
    fn run_typed<S: Simd, E: Element>(mut self, simd: S) {
        let may_widen = const { S::MANY_REGISTERS && E::SIZE < F32::SIZE };
        if may_widen && self.part.tokens.len() >= WIDEN_TOKENS && widening_competes() {
            self.run_widened::<S, E>(simd);
            return;
        }
        let (rows, cols) = (self.part.columns.clone(), self.weight.cols());
        let few = self.input.tokens() <= MAX_SEGMENT_TOKENS;
        let (least, most) = self.input.tile_sizes();
        let strip = if few { strip_rows::<S>(least, most) } else { rows.len() };
        // A single token's sums are few for the columns they take: keeping them would cost more than it saves. So it does where registers
        // hold the sums of more rows, for which the tokens' columns are read from the second level cache less often.
        let segments = few && self.input.tokens() > 1 && !S::MANY_REGISTERS;
        let segment = if segments { SEGMENT_VECTORS * S::LANES } else { BLOCK_COLUMNS };
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
                } else if few && S::MANY_REGISTERS {
                    // A whole strip ahead: what is computed meanwhile takes longer than memory does.
                    if i + 1 < strips { self.address::<E>(r + 1, column) } else { std::ptr::null() }
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

    /// Many tokens multiply each weight many times: where widening takes the same units as multiplying, it is done once for all of them.
    #[inline(always)]
    fn run_widened<S: Simd, E: Element>(mut self, simd: S) {
        let (rows, cols) = (self.part.columns.clone(), self.weight.cols());
        let mut room = [const { MaybeUninit::uninit() }; PART_SIZES.most_blocks * BLOCK_COLUMNS];
        for column in (0..cols).step_by(BLOCK_COLUMNS) {
            let columns = column..cols.min(column + BLOCK_COLUMNS);
            let stored = WeightRows::<E>::new(&self.weight, rows.start, 1, rows.len(), columns);
            simd.call(Product::<F32> {
                weight: stored.widen(simd, &mut room),
                input: self.input,
                tiles: self.part.tiles.clone(),
                output: &mut self.output,
                first_row: rows.start,
                apart: 1,
                add: column > 0 || self.mode == Write::Add,
                segment: BLOCK_COLUMNS,
                next: std::ptr::null(),
            });
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

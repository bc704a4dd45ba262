//! Weights in the block formats of GGUF files, used as they lie there.
//!
//! A block holds a few dozen neighbouring weights of one row, each in a few bits, with what they have in common: a scale, say. It
//! stands for exact numbers in f32, which [`BlockFormat::dequantize`] gives. Products compute with these numbers (see
//! [`crate::block_matmul`]), so their bits are those of products with a copy of the weights in f32.

mod formats;

use std::fmt;

use self::formats::{Block, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
pub(crate) use self::formats::{BlockSides, MOST_FACTORS};
use crate::{
    RowsMut, ThreadPool,
    simd::{Kernel, Level, Simd, dispatch},
};

/// Weights that a thread dequantises at a time.
const PART: usize = 256 * 1024;

/// How a block holds its weights, by the name that GGUF has for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, non_camel_case_types)] // The names are the documentation: see the table.
pub enum BlockFormat {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
}

/// What a format is.
struct Layout {
    format: BlockFormat,
    name: &'static str,
    /// Weights of a block.
    weights: usize,
    /// Bytes of a block.
    bytes: usize,
}

impl Layout {
    const fn of<B: Block>(format: BlockFormat, name: &'static str) -> Self {
        Self { format, name, weights: B::WEIGHTS, bytes: B::BYTES }
    }
}

/// Every format, in the order of [`BlockFormat`].
const LAYOUTS: [Layout; 10] = [
    Layout::of::<Q4_0>(BlockFormat::Q4_0, "Q4_0"),
    Layout::of::<Q4_1>(BlockFormat::Q4_1, "Q4_1"),
    Layout::of::<Q5_0>(BlockFormat::Q5_0, "Q5_0"),
    Layout::of::<Q5_1>(BlockFormat::Q5_1, "Q5_1"),
    Layout::of::<Q8_0>(BlockFormat::Q8_0, "Q8_0"),
    Layout::of::<Q2K>(BlockFormat::Q2_K, "Q2_K"),
    Layout::of::<Q3K>(BlockFormat::Q3_K, "Q3_K"),
    Layout::of::<Q4K>(BlockFormat::Q4_K, "Q4_K"),
    Layout::of::<Q5K>(BlockFormat::Q5_K, "Q5_K"),
    Layout::of::<Q6K>(BlockFormat::Q6_K, "Q6_K"),
];

impl BlockFormat {
    /// Every format.
    pub fn all() -> impl Iterator<Item = Self> {
        LAYOUTS.iter().map(|layout| layout.format)
    }

    fn layout(self) -> &'static Layout {
        &LAYOUTS[self as usize]
    }

    /// Its name in GGUF.
    pub fn name(self) -> &'static str {
        self.layout().name
    }

    /// Weights of a block.
    pub fn block_weights(self) -> usize {
        self.layout().weights
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        self.layout().bytes
    }

    /// Bytes of so many weights; `None` unless they are whole blocks, or if the number overflows.
    pub fn bytes(self, weights: usize) -> Option<usize> {
        let Layout { weights: of_block, bytes, .. } = self.layout();
        weights.is_multiple_of(*of_block).then(|| (weights / of_block).checked_mul(*bytes)).flatten()
    }

    /// The numbers that whole blocks stand for, exactly.
    ///
    /// # Panics
    /// Unless `blocks` has the bytes of as many weights as `weights`.
    pub fn dequantize(self, blocks: &[u8], weights: &mut [f32]) {
        let bytes = self.bytes(weights.len());
        assert_eq!(bytes, Some(blocks.len()), "bytes of {} weights in {self}", weights.len());
        dispatch(Level::chosen(), Dequantize { format: self, blocks, weights });
    }

    /// The integers that whole blocks hold, as many as there is room for, and for each block what makes weights of them.
    pub(crate) fn integers(self, blocks: &[u8], integers: &mut [i8], sides: impl FnMut(usize, BlockSides)) {
        self.visit(Integers { blocks, integers, sides });
    }

    /// Runs what is generic over the format.
    #[inline(always)]
    fn visit<V: FormatVisitor>(self, visitor: V) {
        match self {
            BlockFormat::Q4_0 => visitor.run::<Q4_0>(),
            BlockFormat::Q4_1 => visitor.run::<Q4_1>(),
            BlockFormat::Q5_0 => visitor.run::<Q5_0>(),
            BlockFormat::Q5_1 => visitor.run::<Q5_1>(),
            BlockFormat::Q8_0 => visitor.run::<Q8_0>(),
            BlockFormat::Q2_K => visitor.run::<Q2K>(),
            BlockFormat::Q3_K => visitor.run::<Q3K>(),
            BlockFormat::Q4_K => visitor.run::<Q4K>(),
            BlockFormat::Q5_K => visitor.run::<Q5K>(),
            BlockFormat::Q6_K => visitor.run::<Q6K>(),
        }
    }
}

/// A function and its arguments, generic over the format.
trait FormatVisitor {
    /// Implementations are `#[inline(always)]` where what they call is compiled for an instruction set.
    fn run<B: Block>(self);
}

/// Reads the integers of whole blocks, and for each block what makes weights of them.
struct Integers<'a, F> {
    blocks: &'a [u8],
    integers: &'a mut [i8],
    sides: F,
}

impl<F: FnMut(usize, BlockSides)> FormatVisitor for Integers<'_, F> {
    fn run<B: Block>(mut self) {
        let blocks = self.blocks.chunks_exact(B::BYTES).zip(self.integers.chunks_exact_mut(B::WEIGHTS));
        for (i, (block, integers)) in blocks.enumerate() {
            (self.sides)(i, B::integers(block, integers));
        }
    }
}

impl fmt::Display for BlockFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Dequantises whole blocks.
pub(crate) struct Dequantize<'a> {
    pub format: BlockFormat,
    pub blocks: &'a [u8],
    pub weights: &'a mut [f32],
}

impl Kernel for Dequantize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Self { format, blocks, weights } = self;
        format.visit(Numbers { blocks, weights });
    }
}

/// Writes the numbers of whole blocks.
struct Numbers<'a> {
    blocks: &'a [u8],
    weights: &'a mut [f32],
}

impl FormatVisitor for Numbers<'_> {
    #[inline(always)]
    fn run<B: Block>(self) {
        // A closure would be a function of its own.
        for (block, weights) in self.blocks.chunks_exact(B::BYTES).zip(self.weights.chunks_exact_mut(B::WEIGHTS)) {
            B::dequantize(block, weights);
        }
    }
}

/// A matrix of blocks, row by row. It has the bytes of its shape, since [`BlocksRef::new`] alone makes one.
#[derive(Debug, Clone, Copy)]
pub struct BlocksRef<'a> {
    format: BlockFormat,
    rows: usize,
    cols: usize,
    data: &'a [u8],
}

/// The bytes of a matrix of blocks are not as many as its shape needs, or its rows are no whole blocks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a matrix of {rows} x {cols} in {format} does not have {actual} bytes")]
pub struct BlocksLengthError {
    /// How it is stored.
    pub format: BlockFormat,
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// Bytes that were given.
    pub actual: usize,
}

impl<'a> BlocksRef<'a> {
    /// A view of `data` as a matrix of `rows` x `cols`. Any bytes are numbers, so only their count can be wrong.
    ///
    /// # Errors
    /// If `data` has not just the bytes of these rows, or a row is no number of whole blocks.
    pub fn new(format: BlockFormat, rows: usize, cols: usize, data: &'a [u8]) -> Result<Self, BlocksLengthError> {
        let bytes = format.bytes(cols).and_then(|row| row.checked_mul(rows));
        if bytes == Some(data.len()) {
            Ok(Self { format, rows, cols, data })
        } else {
            Err(BlocksLengthError { format, rows, cols, actual: data.len() })
        }
    }

    /// How it is stored.
    pub fn format(&self) -> BlockFormat {
        self.format
    }

    /// Number of rows (outputs).
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns (inputs).
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The blocks of columns `first..first + count` of a row; both are whole blocks.
    pub(crate) fn blocks(&self, row: usize, first: usize, count: usize) -> &'a [u8] {
        let Layout { weights, bytes, .. } = self.format.layout();
        debug_assert!(first.is_multiple_of(*weights) && count.is_multiple_of(*weights) && first + count <= self.cols);
        let start = (row * (self.cols / weights) + first / weights) * bytes;
        &self.data[start..start + count / weights * bytes]
    }
}

/// The numbers that a matrix of blocks stands for, row by row.
///
/// # Panics
/// Unless `weights` has one element for each of the matrix.
pub fn dequantize(pool: &ThreadPool, matrix: BlocksRef, weights: &mut [f32]) {
    let (rows, cols) = (matrix.rows, matrix.cols);
    assert_eq!(weights.len(), rows * cols, "weights of a matrix of {rows} x {cols}");
    if weights.is_empty() {
        return;
    }
    let part_rows = (PART / cols).max(1);
    let parts = weights.chunks_mut(part_rows * cols).enumerate();
    pool.for_each_item(rows.div_ceil(part_rows), parts, |(part, weights)| {
        for (row, weights) in weights.chunks_mut(cols).enumerate() {
            matrix.format.dequantize(matrix.blocks(part * part_rows + row, 0, cols), weights);
        }
    });
}

/// Row `i` of `out` becomes row `ids[i]` of `table`, dequantised.
///
/// # Panics
/// If an id is not less than `table.rows()`, or the rows do not fit in `out`.
pub fn gather_block_rows(ids: &[u32], table: BlocksRef, mut out: RowsMut) {
    out.check("out", ids.len(), table.cols());
    for (i, &id) in ids.iter().enumerate() {
        assert!((id as usize) < table.rows(), "token id {id} is not in a table of {} rows", table.rows());
        table.format.dequantize(table.blocks(id as usize, 0, table.cols), out.row(i, table.cols));
    }
}

#[cfg(test)]
pub(crate) mod tests;

//! Weights of 8 or 4 bits, and the product of activations with them.
//!
//! A quantisation group is [`GROUP`] columns of one row; it has one scale. Weights and activations of a group are rotated before
//! they are quantised (see [`rotation`]), which leaves their products what they are. Activations are quantised to 8 bits once for
//! each token and group, and a weight without its scale is an integer of at most 127, so that a group's products are integers and
//! their sum is exact; the sums of groups, times both scales, are added in f32 in the order of the columns. Nothing of this depends
//! on the instruction set, on the other tokens and rows of a call or on the number of threads: the bits of a result are the
//! same everywhere.
//!
//! In memory, [`BLOCK_ROWS`] rows are interleaved: a block. Four columns of each of them, a quad, are 64 bytes, which one
//! `vpdpbusd` multiplies by the same four columns of a token:
//!
//! ```text
//! quants: [block of rows][group][quad of columns][row of the block][column of the quad]
//! sides:  [block of rows][group] with the scales, [row of the block] bf16, and for 4 bits the multipliers (see `int4`)
//! ```
//!
//! An 8-bit weight `q` from -127 to 127 is stored as the byte `q + 128`. With 4 bits two quads share 64 bytes, the even one in the
//! lower halves of the bytes. Rows and columns that the matrix lacks are zeros before they are rotated.
//!
//! Matrices in the block formats of GGUF can be repacked into the same order and multiplied by the same instructions: see
//! [`repacked`]. Nothing of them is rotated, and they have scales of their own.

mod dot;
mod format;
mod group;
mod input;
#[cfg(target_arch = "x86_64")]
mod input_avx512;
mod input_groups;
mod int4;
mod peak;
mod product;
mod repacked;
mod rotation;
mod source;
mod strip;
#[cfg(any(target_arch = "x86_64", test))]
mod tiled;
mod weights;

pub use self::{
    format::{Quantization, QuantizedFormat},
    input::{Grouping, QuantizedInput},
    product::quantized_matmul,
    repacked::repack,
    weights::quantize,
};
pub(crate) use self::{
    peak::dot_products,
    weights::{ROUND, TINY},
};

/// Columns of a quantisation group: 128 weights with one scale.
pub(crate) const GROUP: usize = 128;
/// Rows of a block, which lie interleaved.
pub(crate) const BLOCK_ROWS: usize = 16;
/// Columns of a quad, which one instruction multiplies at once.
const QUAD: usize = 4;
/// Bytes of the scales of a group in a block of rows, a bf16 for each row.
const SCALE_BYTES: usize = BLOCK_ROWS * 2;

/// A quantised matrix, as [`quantize`] or [`repack`] writes it. It has the bytes of its shape, since [`QuantizedRef::new`] alone makes one.
#[derive(Debug, Clone, Copy)]
pub struct QuantizedRef<'a> {
    format: QuantizedFormat,
    rows: usize,
    cols: usize,
    data: &'a [u8],
}

/// The bytes of a quantised matrix are not as many as its shape needs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a matrix of {rows} x {cols} in {format} does not have {actual} bytes")]
pub struct QuantizedLengthError {
    /// How it is quantised.
    pub format: QuantizedFormat,
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// Bytes that were given.
    pub actual: usize,
}

impl<'a> QuantizedRef<'a> {
    /// A view of `data` as a matrix of `rows` x `cols`. Any bytes are numbers, so only their count can be wrong.
    ///
    /// # Errors
    /// If `data` does not have [`QuantizedFormat::bytes`] bytes.
    pub fn new(
        format: impl Into<QuantizedFormat>,
        rows: usize,
        cols: usize,
        data: &'a [u8],
    ) -> Result<Self, QuantizedLengthError> {
        let format = format.into();
        if format.bytes(rows, cols) == Some(data.len()) {
            Ok(Self { format, rows, cols, data })
        } else {
            Err(QuantizedLengthError { format, rows, cols, actual: data.len() })
        }
    }

    /// How it is quantised.
    pub fn format(&self) -> QuantizedFormat {
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

    fn groups(&self) -> usize {
        self.cols.div_ceil(GROUP)
    }

    /// The weights of `count` groups from `group` on, of a block of rows.
    fn quants(&self, block: usize, group: usize, count: usize) -> &'a [u8] {
        let (first, bytes) = (block * self.groups() + group, self.format.group_bytes());
        &self.data[first * bytes..(first + count) * bytes]
    }

    /// Their scales, and what else there is for them together.
    fn sides(&self, block: usize, group: usize, count: usize) -> &'a [u8] {
        let all = self.rows.div_ceil(BLOCK_ROWS) * self.groups() * self.format.group_bytes();
        let (first, bytes) = (block * self.groups() + group, self.format.side_bytes());
        &self.data[all + first * bytes..all + (first + count) * bytes]
    }
}

#[cfg(test)]
mod tests;

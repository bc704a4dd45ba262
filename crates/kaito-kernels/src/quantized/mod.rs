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

mod dot;
mod input;
#[cfg(target_arch = "x86_64")]
mod input_avx512;
mod int4;
mod peak;
mod product;
mod rotation;
mod source;
mod strip;
#[cfg(any(target_arch = "x86_64", test))]
mod tiled;
mod weights;

use std::fmt;

pub use self::{input::QuantizedInput, product::quantized_matmul, weights::quantize};
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

/// How a weight matrix is quantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Quantization {
    /// 8 bits a weight and a bf16 scale for each 128: 8.125 bits.
    Int8,
    /// 4 bits a weight, 3 bits for each 16 and a bf16 scale for each 128: 4.3125 bits.
    Int4,
}

impl Quantization {
    /// Bytes of a matrix; `None` if the number overflows.
    pub fn bytes(self, rows: usize, cols: usize) -> Option<usize> {
        let groups = rows.div_ceil(BLOCK_ROWS).checked_mul(cols.div_ceil(GROUP))?;
        groups.checked_mul(self.group_bytes() + self.side_bytes())
    }

    /// Bytes of the weights of a group in a block of rows.
    fn group_bytes(self) -> usize {
        match self {
            Quantization::Int8 => BLOCK_ROWS * GROUP,
            Quantization::Int4 => int4::NIBBLE_BYTES,
        }
    }

    /// Bytes of the scales of a group in a block of rows, and of what else there is for its weights together.
    fn side_bytes(self) -> usize {
        match self {
            Quantization::Int8 => SCALE_BYTES,
            Quantization::Int4 => int4::SIDE_BYTES,
        }
    }
}

impl fmt::Display for Quantization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Quantization::Int8 => "int8",
            Quantization::Int4 => "int4",
        })
    }
}

/// A quantised matrix, as [`quantize`] writes it. It has the bytes of its shape, since [`QuantizedRef::new`] alone makes one.
#[derive(Debug, Clone, Copy)]
pub struct QuantizedRef<'a> {
    quantization: Quantization,
    rows: usize,
    cols: usize,
    data: &'a [u8],
}

/// The bytes of a quantised matrix are not as many as its shape needs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an {quantization} matrix of {rows} x {cols} does not have {actual} bytes")]
pub struct QuantizedLengthError {
    /// How it is quantised.
    pub quantization: Quantization,
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
    /// If `data` does not have [`Quantization::bytes`] bytes.
    pub fn new(
        quantization: Quantization,
        rows: usize,
        cols: usize,
        data: &'a [u8],
    ) -> Result<Self, QuantizedLengthError> {
        if quantization.bytes(rows, cols) == Some(data.len()) {
            Ok(Self { quantization, rows, cols, data })
        } else {
            Err(QuantizedLengthError { quantization, rows, cols, actual: data.len() })
        }
    }

    /// How it is quantised.
    pub fn quantization(&self) -> Quantization {
        self.quantization
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
        let (first, bytes) = (block * self.groups() + group, self.quantization.group_bytes());
        &self.data[first * bytes..(first + count) * bytes]
    }

    /// Their scales, and what else there is for them together.
    fn sides(&self, block: usize, group: usize, count: usize) -> &'a [u8] {
        let all = self.rows.div_ceil(BLOCK_ROWS) * self.groups() * self.quantization.group_bytes();
        let (first, bytes) = (block * self.groups() + group, self.quantization.side_bytes());
        &self.data[all + first * bytes..all + (first + count) * bytes]
    }
}

#[cfg(test)]
mod tests;

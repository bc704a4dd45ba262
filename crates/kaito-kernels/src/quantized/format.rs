use std::fmt;

use super::{
    BLOCK_ROWS, GROUP, Grouping, SCALE_BYTES,
    int4::SIDE_BYTES,
    repacked::{Repacking, SideLayout},
};
use crate::BlockFormat;

/// How a model's weights are quantised where that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Quantization {
    /// 8 bits a weight and a bf16 scale for each 128: 8.125 bits.
    Int8,
    /// 4 bits a weight, 3 bits for each 16 and a bf16 scale for each 128: 4.3125 bits.
    Int4,
}

/// How the weights of a matrix for products of integers are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QuantizedFormat {
    /// As [`quantize`](super::quantize) writes them.
    Quantized(Quantization),
    /// In a block format of GGUF, as [`repack`](super::repack) writes it.
    Repacked(BlockFormat),
}

impl From<Quantization> for QuantizedFormat {
    fn from(quantization: Quantization) -> Self {
        Self::Quantized(quantization)
    }
}

impl From<BlockFormat> for QuantizedFormat {
    fn from(format: BlockFormat) -> Self {
        Self::Repacked(format)
    }
}

impl QuantizedFormat {
    /// Bytes of a matrix; `None` if the number overflows.
    pub fn bytes(self, rows: usize, cols: usize) -> Option<usize> {
        let groups = rows.div_ceil(BLOCK_ROWS).checked_mul(cols.div_ceil(GROUP))?;
        groups.checked_mul(self.group_bytes() + self.side_bytes())
    }

    /// How activations are quantised for products with it.
    pub fn grouping(self) -> Grouping {
        match self {
            Self::Quantized(_) => Grouping::Rotated,
            Self::Repacked(format) => match Repacking::of(format).sides() {
                SideLayout::Halves { .. } => Grouping::Subgroups,
                SideLayout::Factors { .. } => Grouping::Unrotated,
            },
        }
    }

    /// Bits of a weight, without what it has in common with others.
    pub(super) fn bits(self) -> usize {
        match self {
            Self::Quantized(Quantization::Int8) => 8,
            Self::Quantized(Quantization::Int4) => 4,
            Self::Repacked(format) => Repacking::of(format).bits(),
        }
    }

    /// Whether weights share bytes.
    pub(super) fn is_packed(self) -> bool {
        self.bits() < 8
    }

    /// Bytes of the weights of a group in a block of rows.
    pub(super) fn group_bytes(self) -> usize {
        BLOCK_ROWS * GROUP * self.bits() / 8
    }

    /// Bytes of the scales of a group in a block of rows, and of what else there is for its weights together.
    pub(super) fn side_bytes(self) -> usize {
        match self {
            Self::Quantized(Quantization::Int8) => SCALE_BYTES,
            Self::Quantized(Quantization::Int4) => SIDE_BYTES,
            Self::Repacked(format) => Repacking::of(format).side_bytes(),
        }
    }
}

impl Quantization {
    /// Bytes of a matrix; `None` if the number overflows.
    pub fn bytes(self, rows: usize, cols: usize) -> Option<usize> {
        QuantizedFormat::from(self).bytes(rows, cols)
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

impl fmt::Display for QuantizedFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Quantized(quantization) => quantization.fmt(f),
            Self::Repacked(format) => format.fmt(f),
        }
    }
}

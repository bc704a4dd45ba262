//! Published weight files as named, memory-mapped tensors.

use std::sync::Arc;

use kaito_kernels::{DType, MappedFile};

/// A tensor in row-major order: a range of a mapped file, or memory of its own where a dtype change forced a copy.
#[derive(Debug, Clone)]
pub struct Tensor {
    name: Arc<str>,
    dtype: DType,
    shape: Vec<usize>,
    data: TensorData,
}

#[derive(Debug, Clone)]
enum TensorData {
    Mapped { file: Arc<MappedFile>, offset: usize, len: usize },
    Owned(Arc<[u8]>),
}

impl Tensor {
    /// The tensor's name in the checkpoint.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements, little-endian; not necessarily aligned.
    pub fn bytes(&self) -> &[u8] {
        match &self.data {
            TensorData::Mapped { file, offset, len } => &file.bytes()[*offset..offset + len],
            TensorData::Owned(bytes) => bytes,
        }
    }
}

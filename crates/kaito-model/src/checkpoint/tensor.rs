use std::{fmt, ops::Range, sync::Arc};

use kaito_kernels::{self as kernels, DType, MappedFile, ThreadPool};

use super::SharedBytes;

/// A tensor in row-major order: a range of a mapped file, or memory of its own where a dtype change forced a copy.
#[derive(Clone)]
pub struct Tensor {
    name: Arc<str>,
    dtype: DType,
    shape: Vec<usize>,
    data: SharedBytes,
}

impl Tensor {
    /// A tensor with memory of its own. `None` unless `bytes` holds just the elements of `shape`.
    pub fn from_bytes(name: &str, dtype: DType, shape: Vec<usize>, bytes: Vec<u8>) -> Option<Self> {
        (byte_len(&shape, dtype.size()) == Some(bytes.len())).then(|| Self {
            name: name.into(),
            dtype,
            shape,
            data: SharedBytes::owned(bytes),
        })
    }

    /// A view of `file`. `None` unless `range` lies in the file and holds just the elements of `shape`.
    pub(crate) fn from_file(
        name: &str,
        dtype: DType,
        shape: Vec<usize>,
        file: Arc<MappedFile>,
        range: Range<usize>,
    ) -> Option<Self> {
        let data = SharedBytes::mapped(file, range)?;
        (byte_len(&shape, dtype.size()) == Some(data.len())).then(|| Self { name: name.into(), dtype, shape, data })
    }

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

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.data.len() / self.dtype.size()
    }

    /// The elements, little-endian; not necessarily aligned.
    pub fn bytes(&self) -> &[u8] {
        self.data.bytes()
    }

    /// Whether the elements lie in the published file, not in memory of their own.
    pub fn is_mapped(&self) -> bool {
        self.data.file().is_some()
    }

    /// Brings a mapped tensor into memory with all threads of `pool`, so that its first use waits for nothing.
    pub fn populate(&self, pool: &ThreadPool) {
        self.data.populate(pool);
    }

    /// Takes a mapped tensor that nobody will use soon out of this process's memory.
    pub fn release(&self) {
        self.data.release();
    }

    /// The elements, in the file or in memory.
    pub(crate) fn data(&self) -> &SharedBytes {
        &self.data
    }

    /// The published file that the elements lie in.
    pub fn file(&self) -> Option<&Arc<MappedFile>> {
        self.data.file()
    }

    /// The entries `range` of the outermost dimension, sharing the memory. `None` if they are not all there.
    pub fn rows(&self, range: Range<usize>) -> Option<Self> {
        let count = *self.shape.first()?;
        if range.start > range.end || range.end > count {
            return None;
        }
        let row = self.data.len().checked_div(count).unwrap_or(0);
        let mut shape = self.shape.clone();
        *shape.first_mut()? = range.len();
        let data = self.data.slice(range.start * row..range.end * row);
        Some(Self { name: self.name.clone(), dtype: self.dtype, shape, data })
    }

    /// The elements widened to f32, which is exact for every [`DType`].
    pub fn to_f32(&self) -> Vec<f32> {
        let mut elements = vec![0.0; self.elements()];
        kernels::widen(self.dtype, self.bytes(), &mut elements);
        elements
    }

    /// The tensor with elements of type `dtype`, rounded to nearest-even where it is narrower. Shares the memory if
    /// that is the type already, else copies.
    pub fn cast(&self, dtype: DType, pool: &ThreadPool) -> Self {
        if dtype == self.dtype {
            return self.clone();
        }
        let mut bytes = vec![0; self.elements() * dtype.size()];
        kernels::convert(pool, self.dtype, self.bytes(), dtype, &mut bytes);
        Self { name: self.name.clone(), dtype, shape: self.shape.clone(), data: SharedBytes::owned(bytes) }
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({} {} {:?})", self.name, self.dtype, self.shape)
    }
}

/// Bytes of a tensor of `shape`, unless that overflows.
pub(crate) fn byte_len(shape: &[usize], element_size: usize) -> Option<usize> {
    shape.iter().try_fold(element_size, |len, &dim| len.checked_mul(dim))
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;

    fn matrix() -> Tensor {
        let bytes: Vec<u8> = (0..6).flat_map(|i| (i as f32 + 0.5).to_le_bytes()).collect();
        Tensor::from_bytes("m", DType::F32, vec![3, 2], bytes).unwrap()
    }

    #[test]
    fn rows_share_memory_and_stay_in_bounds() {
        let tensor = matrix();
        let rows = tensor.rows(1..3).unwrap();
        assert_eq!(rows.shape(), [2, 2]);
        assert_eq!(rows.to_f32(), [2.5, 3.5, 4.5, 5.5]);
        assert_eq!(rows.bytes().as_ptr(), tensor.bytes()[8..].as_ptr());
        assert_eq!(rows.rows(1..2).unwrap().to_f32(), [4.5, 5.5]);
        assert_eq!(tensor.rows(3..3).unwrap().to_f32(), [0.0; 0]);
        assert!(tensor.rows(2..4).is_none());
        #[expect(clippy::reversed_empty_ranges)]
        let reversed = tensor.rows(2..1);
        assert!(reversed.is_none());
    }

    #[test]
    fn bytes_must_fit_the_shape() {
        assert!(Tensor::from_bytes("t", DType::F16, vec![2, 2], vec![0; 8]).is_some());
        assert!(Tensor::from_bytes("t", DType::F16, vec![2, 2], vec![0; 9]).is_none());
        assert!(Tensor::from_bytes("t", DType::F16, vec![usize::MAX, 2], vec![0; 9]).is_none());
    }

    #[test]
    fn casts_round_to_nearest_even_and_widen_exactly() {
        // 1 + 2^-8 lies halfway between two bf16 numbers, 1 + 2^-11 between two f16 numbers: both round to 1.
        // 1 + 3 * 2^-8 and 1 + 3 * 2^-11 lie halfway too and round up, to the even significand.
        let cases = [
            (DType::Bf16, 1.0 + 2f32.powi(-8), 1.0),
            (DType::Bf16, 1.0 + 3.0 * 2f32.powi(-8), 1.0 + 2f32.powi(-6)),
            (DType::F16, 1.0 + 2f32.powi(-11), 1.0),
            (DType::F16, 1.0 + 3.0 * 2f32.powi(-11), 1.0 + 2f32.powi(-9)),
            (DType::F16, 1e6, f32::INFINITY),
            (DType::F16, -2f32.powi(-24), -2f32.powi(-24)),
        ];
        let pool = ThreadPool::new(NonZeroUsize::MIN);
        for (dtype, value, expected) in cases {
            let bytes = value.to_le_bytes().to_vec();
            let tensor = Tensor::from_bytes("t", DType::F32, vec![1], bytes).unwrap();
            let cast = tensor.cast(dtype, &pool);
            assert_eq!((cast.dtype(), cast.to_f32()), (dtype, vec![expected]), "{value} as {dtype}");
            assert_eq!(cast.cast(DType::F32, &pool).to_f32(), [expected]);
        }
    }
}

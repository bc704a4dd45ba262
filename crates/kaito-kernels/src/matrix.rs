use std::marker::PhantomData;

use crate::DType;

/// Rows of `f32` to read: row `t` begins at `data[t * stride + offset]`. Its length is the kernel's business.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    /// The elements.
    pub data: &'a [f32],
    /// Elements from the beginning of one row to the beginning of the next.
    pub stride: usize,
    /// Elements before the first row.
    pub offset: usize,
}

impl<'a> Rows<'a> {
    /// Rows that lie back to back.
    pub fn new(data: &'a [f32], width: usize) -> Self {
        Self { data, stride: width, offset: 0 }
    }

    /// The first `width` elements of row `t`.
    pub fn row(&self, t: usize, width: usize) -> &'a [f32] {
        let start = t * self.stride + self.offset;
        &self.data[start..start + width]
    }

    pub(crate) fn check(&self, what: &str, count: usize, width: usize) {
        check(what, self.data.len(), self.stride, self.offset, count, width);
    }
}

/// Rows of `f32` to write: row `t` begins at `data[t * stride + offset]`.
#[derive(Debug)]
pub struct RowsMut<'a> {
    /// The elements.
    pub data: &'a mut [f32],
    /// Elements from the beginning of one row to the beginning of the next.
    pub stride: usize,
    /// Elements before the first row.
    pub offset: usize,
}

impl<'a> RowsMut<'a> {
    /// Rows that lie back to back.
    pub fn new(data: &'a mut [f32], width: usize) -> Self {
        Self { data, stride: width, offset: 0 }
    }

    /// The same rows, borrowed for a shorter time.
    pub fn reborrow(&mut self) -> RowsMut<'_> {
        RowsMut { data: self.data, stride: self.stride, offset: self.offset }
    }

    /// Checks that `count` disjoint rows of `width` elements lie within, and shares them among threads.
    pub(crate) fn share(self, what: &str, count: usize, width: usize) -> SharedRows<'a> {
        check(what, self.data.len(), self.stride, self.offset, count, width);
        assert!(count <= 1 || self.stride >= width, "{what}: rows of {width} overlap at a stride of {}", self.stride);
        SharedRows {
            start: self.data.as_mut_ptr().wrapping_add(self.offset),
            stride: self.stride,
            count,
            width,
            lifetime: PhantomData,
        }
    }
}

fn check(what: &str, len: usize, stride: usize, offset: usize, count: usize, width: usize) {
    let end = count.checked_sub(1).and_then(|last| last.checked_mul(stride)?.checked_add(offset)?.checked_add(width));
    let fits = count == 0 || end.is_some_and(|end| end <= len);
    assert!(
        fits,
        "{what}: {count} rows of {width} with stride {stride} and offset {offset} do not fit in {len} elements"
    );
}

/// Disjoint rows that several threads write at once, each its own part.
#[derive(Clone, Copy)]
pub(crate) struct SharedRows<'a> {
    start: *mut f32,
    stride: usize,
    count: usize,
    width: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: the pointer stands for an exclusive borrow of `f32`s; the methods that use it demand that threads do not
// touch the same elements at the same time.
unsafe impl Send for SharedRows<'_> {}
// SAFETY: as above.
unsafe impl Sync for SharedRows<'_> {}

impl<'a> SharedRows<'a> {
    /// Where element `column` of row `t` lies.
    pub(crate) fn at(&self, t: usize, column: usize) -> *mut f32 {
        assert!(t < self.count && column <= self.width);
        self.start.wrapping_add(t * self.stride + column)
    }

    /// Elements `column..column + len` of row `t`.
    ///
    /// # Safety
    /// While the slice lives nobody else uses these elements.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn slice(&self, t: usize, column: usize, len: usize) -> &'a mut [f32] {
        assert!(column + len <= self.width);
        // SAFETY: row `t < count` (checked by `at`) has `width` elements, which `share` checked; exclusive by contract.
        unsafe { std::slice::from_raw_parts_mut(self.at(t, column), len) }
    }
}

/// A matrix as it lies in a weight file: row-major, little-endian, at any alignment.
#[derive(Debug, Clone, Copy)]
pub struct MatrixRef<'a> {
    /// Element type.
    pub dtype: DType,
    /// Number of rows (outputs, for a projection).
    pub rows: usize,
    /// Number of columns (inputs, for a projection).
    pub cols: usize,
    /// `rows * cols` elements.
    pub data: &'a [u8],
}

/// The bytes of a matrix are not as many as its shape needs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a {dtype} matrix of {rows} x {cols} needs rows * cols * {} bytes, not {actual}", dtype.size())]
pub struct MatrixLengthError {
    /// Element type.
    pub dtype: DType,
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// Bytes that were given.
    pub actual: usize,
}

impl<'a> MatrixRef<'a> {
    /// A view of `data` as `rows` x `cols` elements.
    pub fn new(dtype: DType, rows: usize, cols: usize, data: &'a [u8]) -> Result<Self, MatrixLengthError> {
        let matrix = Self { dtype, rows, cols, data };
        if matrix.is_complete() { Ok(matrix) } else { Err(MatrixLengthError { dtype, rows, cols, actual: data.len() }) }
    }

    /// Rows `start..start + count`.
    pub fn slice_rows(&self, start: usize, count: usize) -> MatrixRef<'a> {
        let row = self.row_bytes();
        MatrixRef { rows: count, data: &self.data[start * row..(start + count) * row], ..*self }
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.cols * self.dtype.size()
    }

    pub(crate) fn check(&self, what: &str) {
        assert!(
            self.is_complete(),
            "{what}: {} bytes are not a {} matrix of {} x {}",
            self.data.len(),
            self.dtype,
            self.rows,
            self.cols
        );
    }

    fn is_complete(&self) -> bool {
        let bytes = self.rows.checked_mul(self.cols).and_then(|count| count.checked_mul(self.dtype.size()));
        bytes == Some(self.data.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_has_the_bytes_of_its_shape() {
        let bytes = [0u8; 24];
        assert!(MatrixRef::new(DType::Bf16, 3, 4, &bytes).is_ok());
        assert!(MatrixRef::new(DType::F32, 3, 2, &bytes).is_ok());
        let error = MatrixRef::new(DType::F16, 3, 5, &bytes).unwrap_err();
        assert_eq!(error.to_string(), "a f16 matrix of 3 x 5 needs rows * cols * 2 bytes, not 24");
        assert!(MatrixRef::new(DType::F32, usize::MAX, 2, &bytes).is_err());
    }

    #[test]
    #[should_panic(expected = "output: 3 rows of 4 with stride 4 and offset 1 do not fit in 12 elements")]
    fn rows_that_do_not_fit_are_refused() {
        RowsMut { data: &mut [0.0; 12], stride: 4, offset: 1 }.share("output", 3, 4);
    }

    #[test]
    #[should_panic(expected = "overlap")]
    fn overlapping_rows_are_not_shared() {
        RowsMut { data: &mut [0.0; 12], stride: 3, offset: 0 }.share("output", 2, 4);
    }
}

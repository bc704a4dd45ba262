use crate::DType;

/// Rows of `f32` to read: row `t` begins at `data[t * stride + offset]`. How many elements it has, each kernel says.
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

    /// The first `width` elements of row `t`.
    pub(crate) fn row(&mut self, t: usize, width: usize) -> &mut [f32] {
        let start = t * self.stride + self.offset;
        &mut self.data[start..start + width]
    }

    /// Sets the first `width` elements of `count` rows to zero.
    pub(crate) fn set_to_zero(&mut self, count: usize, width: usize) {
        (0..count).for_each(|t| self.row(t, width).fill(0.0));
    }

    /// Checks that `count` rows of `width` elements lie within the data and do not overlap.
    pub(crate) fn check(&self, what: &str, count: usize, width: usize) {
        check(what, self.data.len(), self.stride, self.offset, count, width);
        assert!(count <= 1 || self.stride >= width, "{what}: rows of {width} overlap at a stride of {}", self.stride);
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

/// A matrix as it lies in a weight file: row-major, little-endian, at any alignment. It has the bytes of its shape, since
/// [`MatrixRef::new`] alone makes one.
#[derive(Debug, Clone, Copy)]
pub struct MatrixRef<'a> {
    dtype: DType,
    rows: usize,
    cols: usize,
    data: &'a [u8],
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
    ///
    /// # Errors
    /// If `data` has not just the bytes of these elements.
    pub fn new(dtype: DType, rows: usize, cols: usize, data: &'a [u8]) -> Result<Self, MatrixLengthError> {
        let bytes = rows.checked_mul(cols).and_then(|count| count.checked_mul(dtype.size()));
        if bytes == Some(data.len()) {
            Ok(Self { dtype, rows, cols, data })
        } else {
            Err(MatrixLengthError { dtype, rows, cols, actual: data.len() })
        }
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Number of rows (outputs, for a projection).
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns (inputs, for a projection).
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// `rows * cols` elements.
    pub fn data(&self) -> &'a [u8] {
        self.data
    }

    /// Pairs of columns of 16 bits as columns of 32 bits; their number is even.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn as_pairs(&self) -> MatrixRef<'a> {
        assert!(self.dtype.size() == 2 && self.cols.is_multiple_of(2), "{} columns of {}", self.cols, self.dtype);
        MatrixRef { dtype: DType::F32, cols: self.cols / 2, ..*self }
    }

    /// Rows `start..start + count`.
    ///
    /// # Panics
    /// If the matrix does not have them.
    pub fn slice_rows(&self, start: usize, count: usize) -> MatrixRef<'a> {
        let row = self.cols * self.dtype.size();
        MatrixRef { rows: count, data: &self.data[start * row..(start + count) * row], ..*self }
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
        RowsMut { data: &mut [0.0; 12], stride: 4, offset: 1 }.check("output", 3, 4);
    }

    #[test]
    #[should_panic(expected = "overlap")]
    fn overlapping_rows_are_refused() {
        RowsMut { data: &mut [0.0; 12], stride: 3, offset: 0 }.check("output", 2, 4);
    }
}

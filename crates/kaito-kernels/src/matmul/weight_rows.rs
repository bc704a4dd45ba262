//! The weights that a product reads.

use std::{marker::PhantomData, ops::Range};

use super::element::Element;
use crate::MatrixRef;

/// One block of the columns of some weight rows, all of which the matrix has: [`WeightRows::new`] checks it.
pub(super) struct WeightRows<'a, E> {
    start: *const u8,
    stride: usize,
    rows: usize,
    columns: Range<usize>,
    elements: PhantomData<&'a [E]>,
}

impl<'a, E: Element> WeightRows<'a, E> {
    /// Columns `columns` of `rows` rows, `apart` from each other, from `first_row` on.
    ///
    /// # Panics
    /// If the matrix does not have them.
    #[inline(always)]
    pub(super) fn new(
        matrix: &MatrixRef<'a>,
        first_row: usize,
        apart: usize,
        rows: usize,
        columns: Range<usize>,
    ) -> Self {
        assert_eq!(matrix.dtype().size(), E::SIZE);
        assert!(rows > 0 && first_row + (rows - 1) * apart < matrix.rows());
        assert!(columns.start <= columns.end && columns.end <= matrix.cols());
        let row = matrix.cols() * E::SIZE;
        let start = matrix.data()[first_row * row + columns.start * E::SIZE..].as_ptr();
        Self { start, stride: apart * row, rows, columns, elements: PhantomData }
    }

    /// The first element of the first row.
    #[inline(always)]
    pub(super) fn start(&self) -> *const u8 {
        self.start
    }

    /// Bytes from one row to the next.
    #[inline(always)]
    pub(super) fn stride(&self) -> usize {
        self.stride
    }

    /// Number of rows.
    #[inline(always)]
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// The columns, counted from the matrix's first one.
    #[inline(always)]
    pub(super) fn columns(&self) -> Range<usize> {
        self.columns.clone()
    }
}

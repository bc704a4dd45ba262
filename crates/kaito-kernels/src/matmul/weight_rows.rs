//! The weights that a product reads.

use std::{marker::PhantomData, mem::MaybeUninit, ops::Range};

use super::{
    BLOCK_COLUMNS,
    element::{Element, F32},
};
use crate::{MatrixRef, simd::Simd};

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

    /// A copy in `f32`, at [`BLOCK_COLUMNS`] elements from one row to the next.
    ///
    /// # Panics
    /// If there is no room for it.
    #[inline(always)]
    pub(super) fn widen<'b, S: Simd>(&self, simd: S, room: &'b mut [MaybeUninit<f32>]) -> WeightRows<'b, F32> {
        let count = self.columns.len();
        assert!(count <= BLOCK_COLUMNS && self.rows * BLOCK_COLUMNS <= room.len());
        const { assert!(BLOCK_COLUMNS.is_multiple_of(S::LANES)) };
        let target = room.as_mut_ptr().cast::<f32>();
        for r in 0..self.rows {
            let source = self.start.wrapping_add(r * self.stride);
            let mut c = 0;
            // SAFETY: the matrix has `count` columns of this row, of which `LANES` from `c` on, or those that are left; the room has whole vectors
            // of each row.
            unsafe {
                while c + S::LANES <= count {
                    simd.store(target.add(r * BLOCK_COLUMNS + c), E::load(simd, source.add(c * E::SIZE)));
                    c += S::LANES;
                }
                if c < count {
                    let rest = E::load_partial(simd, source.add(c * E::SIZE), count - c);
                    simd.store(target.add(r * BLOCK_COLUMNS + c), rest);
                }
            }
        }
        WeightRows {
            start: target.cast_const().cast(),
            stride: BLOCK_COLUMNS * F32::SIZE,
            rows: self.rows,
            columns: self.columns.clone(),
            elements: PhantomData,
        }
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

impl<'a> WeightRows<'a, F32> {
    /// Columns `columns` of `rows` rows that were dequantised into `values`, at [`BLOCK_COLUMNS`] elements from one row to the next.
    ///
    /// # Panics
    /// If they are not there.
    #[inline(always)]
    pub(super) fn of_values(values: &'a [f32], rows: usize, columns: Range<usize>) -> Self {
        assert!(rows > 0 && columns.start <= columns.end && columns.len() <= BLOCK_COLUMNS);
        assert!(rows * BLOCK_COLUMNS <= values.len());
        let start = values.as_ptr().cast();
        Self { start, stride: BLOCK_COLUMNS * F32::SIZE, rows, columns, elements: PhantomData }
    }
}

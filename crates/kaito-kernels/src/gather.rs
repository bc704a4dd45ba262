//! Embedding: rows of a table by token id.

use crate::{MatrixRef, RowsMut, convert::widen};

/// Row `i` of `out` becomes row `ids[i]` of `table`, widened to f32.
///
/// # Panics
/// If an id is not less than `table.rows()`, or the rows do not fit in `out`.
pub fn gather_rows(ids: &[u32], table: MatrixRef, mut out: RowsMut) {
    out.check("out", ids.len(), table.cols());
    for (i, &id) in ids.iter().enumerate() {
        assert!((id as usize) < table.rows(), "token id {id} is not in a table of {} rows", table.rows());
        let row = table.slice_rows(id as usize, 1);
        widen(table.dtype(), row.data(), out.row(i, table.cols()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, narrow};

    #[test]
    fn rows_come_in_the_order_of_the_ids_and_repeat() {
        let values: Vec<f32> = (0..15).map(|i| i as f32 - 7.5).collect();
        for dtype in [DType::F32, DType::Bf16, DType::F16] {
            let mut bytes = vec![0; 1 + 15 * dtype.size()];
            narrow(&values, dtype, &mut bytes[1..]);
            let table = MatrixRef::new(dtype, 5, 3, &bytes[1..]).unwrap();
            let mut out = [1.0; 12];
            gather_rows(&[4, 0, 4], table, RowsMut { data: &mut out, stride: 4, offset: 1 });
            assert_eq!(out, [1.0, 4.5, 5.5, 6.5, 1.0, -7.5, -6.5, -5.5, 1.0, 4.5, 5.5, 6.5], "{dtype}");
        }
    }

    #[test]
    #[should_panic(expected = "token id 5 is not in a table of 5 rows")]
    fn an_id_outside_of_the_table_is_refused() {
        let table = MatrixRef::new(DType::F32, 5, 1, &[0; 20]).unwrap();
        gather_rows(&[5], table, RowsMut::new(&mut [0.0], 1));
    }
}

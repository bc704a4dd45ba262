//! Embedding: rows of a table by token id.

use crate::{MatrixRef, RowsMut, convert::widen};

/// Row `i` of `out` becomes row `ids[i]` of `table`, widened.
///
/// # Panics
/// If an id is not less than `table.rows`, or a shape does not fit its data.
pub fn gather_rows(ids: &[u32], table: MatrixRef, out: RowsMut) {
    table.check("table");
    let out = out.share("out", ids.len(), table.cols);
    for (i, &id) in ids.iter().enumerate() {
        assert!((id as usize) < table.rows, "token id {id} is not in a table of {} rows", table.rows);
        let row = &table.data[id as usize * table.row_bytes()..][..table.row_bytes()];
        // SAFETY: one thread, one row at a time.
        widen(table.dtype, row, unsafe { out.slice(i, 0, table.cols) });
    }
}

//! Tile registers (Intel AMX): eight matrices of up to 16 rows of 64 bytes, and instructions that multiply two of them and add the
//! product to a third one.
//!
//! A kernel is written once, generic over [`TileUnit`], and takes a [`Tiles`] from it, which holds the registers as long as it
//! lives. [`Hardware`] is the processor's unit, [`Emulated`] its definition in plain Rust for tests on any machine. The definitions
//! are those of the Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2.
//!
//! | operand | rows | bytes of a row |
//! | --- | --- | --- |
//! | `C`, `i32` or `f32` | `m` | `4 * n` |
//! | `A` | `m` | `k` |
//! | `B` | `k / 4` | `4 * n` |
//!
//! Row `i` of `B` holds, for each of the `n` columns of the product, the values that meet the bytes `4 * i .. 4 * i + 4` of a row of
//! `A`: four bytes, or two bf16.

#[cfg(test)]
mod emulated;
#[cfg(target_arch = "x86_64")]
mod hardware;

#[cfg(test)]
pub(crate) use emulated::Emulated;
#[cfg(target_arch = "x86_64")]
pub(crate) use hardware::Hardware;

/// Tile registers.
pub(crate) const TILES: usize = 8;
/// Rows of a register at most.
pub(crate) const TILE_ROWS: usize = 16;
/// Bytes of a row at most.
pub(crate) const TILE_ROW_BYTES: usize = 64;
/// Bytes of a register.
pub(crate) const TILE_BYTES: usize = TILE_ROWS * TILE_ROW_BYTES;

/// A value of this type proves that its registers are there.
pub(crate) trait TileUnit: Copy + Send + Sync {
    type Tiles: Tiles;

    /// The calling thread's registers, in these shapes and filled with zeros.
    ///
    /// # Panics
    /// If the thread has them already.
    fn configure(self, shapes: &TileShapes) -> Self::Tiles;
}

/// Which registers a kernel takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Unit {
    #[cfg(target_arch = "x86_64")]
    Hardware(Hardware),
    #[cfg(test)]
    Emulated,
}

/// The registers of one thread, until this is dropped.
///
/// Products need shapes that fit each other, as the table above says.
pub(crate) trait Tiles {
    /// Fills register `T` with zeros.
    fn zero<const T: usize>(&mut self);

    /// Loads register `T`, whose row `i` lies at `p + i * stride`.
    ///
    /// # Safety
    /// The bytes of each row of its shape can be read there.
    unsafe fn load<const T: usize>(&mut self, p: *const u8, stride: usize);

    /// Stores register `T`: row `i` at `p + i * stride`.
    ///
    /// # Safety
    /// The bytes of each row of its shape can be written there.
    unsafe fn store<const T: usize>(&mut self, p: *mut u8, stride: usize);

    /// Adds the product of bf16 in `A` and `B` to `f32` in `C` (`tdpbf16ps`).
    ///
    /// The products of the even values of a row of `A` are added one by one to a sum that begins with zero, those of the odd values to
    /// another, each rounded once (fused multiply-add); then `C = C + (even + odd)`. Denormal operands and results are zeros.
    ///
    /// # Safety
    /// The three shapes fit each other.
    unsafe fn add_bf16<const C: usize, const A: usize, const B: usize>(&mut self);

    /// Adds the product of `i8` in `A` and `u8` in `B` to `i32` in `C`, which wraps around (`tdpbsud`).
    ///
    /// # Safety
    /// The three shapes fit each other.
    unsafe fn add_i8_u8<const C: usize, const A: usize, const B: usize>(&mut self);

    /// Adds the product of `i8` in `A` and `i8` in `B` to `i32` in `C`, which wraps around (`tdpbssd`).
    ///
    /// # Safety
    /// The three shapes fit each other.
    unsafe fn add_i8_i8<const C: usize, const A: usize, const B: usize>(&mut self);
}

/// The shape of each register, as `ldtilecfg` reads it (palette 1).
#[derive(Debug, Clone)]
#[repr(C, align(64))]
pub(crate) struct TileShapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl TileShapes {
    /// Registers of so many rows and bytes of a row.
    ///
    /// # Panics
    /// If a register does not have as many.
    pub(crate) fn new(shapes: [(usize, usize); TILES]) -> Self {
        let mut this = Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        for (i, (rows, row_bytes)) in shapes.into_iter().enumerate() {
            assert!((1..=TILE_ROWS).contains(&rows), "a tile of {rows} rows");
            assert!((1..=TILE_ROW_BYTES).contains(&row_bytes), "a tile of rows of {row_bytes} bytes");
            // Both fit: just checked.
            (this.rows[i], this.row_bytes[i]) = (rows as u8, row_bytes as u16);
        }
        this
    }

    /// All registers as large as they can be.
    pub(crate) fn full() -> Self {
        Self::new([(TILE_ROWS, TILE_ROW_BYTES); TILES])
    }

    /// Rows, and bytes of a row, of a register.
    #[cfg(test)]
    pub(crate) fn of(&self, tile: usize) -> (usize, usize) {
        (usize::from(self.rows[tile]), usize::from(self.row_bytes[tile]))
    }
}

#[cfg(test)]
mod tests;

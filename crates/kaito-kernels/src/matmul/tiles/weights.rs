//! Weight rows as operands `A`, where they lie or copied.

use std::{marker::PhantomData, mem::MaybeUninit, ops::Range};

use crate::{
    MatrixRef,
    amx::{TILE_BYTES, TILE_ROW_BYTES, TILE_ROWS},
    matmul::element::{Bf16, Element, F16},
    simd::{Simd, TileRow},
};

/// Weights as sums of bf16.
pub(super) trait TileElement: Element {
    /// How many bf16 a weight is the sum of.
    const PARTS: usize;

    /// Writes row `r` of each of a slice's `PARTS` tiles.
    fn store<S: Simd>(simd: S, weights: &[u8; TILE_ROW_BYTES], tiles: &mut [TileRows], r: usize);
}

/// A tile that is written row by row.
pub(super) type TileRows = [MaybeUninit<TileRow>; TILE_ROWS];

impl TileElement for Bf16 {
    const PARTS: usize = 1;

    #[inline(always)]
    fn store<S: Simd>(_: S, weights: &[u8; TILE_ROW_BYTES], tiles: &mut [TileRows], r: usize) {
        if let [tile] = tiles {
            let pairs = weights.as_chunks().0;
            tile[r].write(TileRow(std::array::from_fn(|i| u32::from_le_bytes(pairs[i]))));
        }
    }
}

impl TileElement for F16 {
    const PARTS: usize = 2;

    #[inline(always)]
    fn store<S: Simd>(simd: S, weights: &[u8; TILE_ROW_BYTES], tiles: &mut [TileRows], r: usize) {
        let [mut high, mut low] = [TileRow([0; TILE_ROW_BYTES / 4]); 2];
        simd.split_f16(weights, &mut high, &mut low);
        if let [high_tile, low_tile] = tiles {
            high_tile[r].write(high);
            low_tile[r].write(low);
        }
    }
}

/// Some rows of a weight matrix.
pub(super) struct WeightRows<'a> {
    data: &'a [u8],
    row_bytes: usize,
    count: usize,
}

impl<'a> WeightRows<'a> {
    /// # Panics
    /// If the matrix does not have the rows, or has other elements.
    pub fn new<E: TileElement>(weight: &MatrixRef<'a>, rows: Range<usize>) -> Self {
        assert_eq!(weight.dtype().size(), E::SIZE);
        let row_bytes = weight.cols() * E::SIZE;
        Self { data: &weight.data()[rows.start * row_bytes..rows.end * row_bytes], row_bytes, count: rows.len() }
    }

    /// Number of rows.
    #[inline(always)]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Slices of the rows, of which the last one may lack columns.
    #[inline(always)]
    pub fn slices(&self) -> usize {
        self.row_bytes.div_ceil(TILE_ROW_BYTES)
    }

    /// Whether all rows fill their tiles and all columns their slices.
    pub fn fill_tiles(&self) -> bool {
        self.row_bytes.is_multiple_of(TILE_ROW_BYTES) && self.count.is_multiple_of(TILE_ROWS)
    }

    /// Slices of a tile of rows of bf16 where they lie.
    ///
    /// # Panics
    /// If not all of them are there.
    #[inline(always)]
    pub fn in_place(&self, first_row: usize, slices: Range<usize>) -> Operand<'a> {
        const { assert!(Bf16::PARTS == 1) };
        assert!(self.are_whole(first_row..first_row + TILE_ROWS, &slices));
        let (first, stride) = self.slice(first_row, slices.start);
        Operand { first, stride, slice: TILE_ROW_BYTES, part: 0, slices: slices.len(), lifetime: PhantomData }
    }

    /// The same slices, of a tile of weights of any kind, in `room`; rows and columns that the matrix lacks are zeros.
    #[inline(always)]
    pub fn copied<'b, S: Simd, E: TileElement>(
        &self,
        simd: S,
        first_row: usize,
        slices: Range<usize>,
        room: &'b mut [TileRows],
    ) -> Operand<'b> {
        let copied = &mut room[..slices.len() * E::PARTS];
        let stretch = Stretch::<TILE_ROWS>::new(self, first_row, slices.clone());
        // Rows side by side, since the processor prefetches several streams faster than one.
        stretch.copy::<S, E>(simd, 0..slices.len() * TILE_ROWS, copied);
        Operand {
            first: copied.as_ptr().cast(),
            stride: TILE_ROW_BYTES,
            slice: E::PARTS * TILE_BYTES,
            part: TILE_BYTES,
            slices: slices.len(),
            lifetime: PhantomData,
        }
    }

    /// Whether all of these slices are there and whole.
    #[inline(always)]
    fn are_whole(&self, rows: Range<usize>, slices: &Range<usize>) -> bool {
        rows.end <= self.count && slices.end * TILE_ROW_BYTES <= self.row_bytes
    }

    /// Where a slice lies, and the bytes to that of the next row.
    #[inline(always)]
    fn slice(&self, row: usize, slice: usize) -> (*const u8, usize) {
        (self.data[row * self.row_bytes + slice * TILE_ROW_BYTES..].as_ptr(), self.row_bytes)
    }

    /// A slice that is not whole: zeros for what the matrix lacks.
    #[cold]
    fn padded(&self, row: usize, slice: usize) -> [u8; TILE_ROW_BYTES] {
        let mut padded = [0; TILE_ROW_BYTES];
        if row < self.count {
            let row = &self.data[row * self.row_bytes..(row + 1) * self.row_bytes];
            let there = row.chunks(TILE_ROW_BYTES).nth(slice).unwrap_or_default();
            padded[..there.len()].copy_from_slice(there);
        }
        padded
    }
}

/// Some slices of `ROWS` rows, to be copied line by line: a line is a slice of a row.
pub(super) struct Stretch<'a, const ROWS: usize> {
    weights: &'a WeightRows<'a>,
    first_row: usize,
    slices: Range<usize>,
    /// The first line, and the bytes from a row to the next, if all lines are there and whole.
    whole: Option<(*const u8, usize)>,
}

impl<'a, const ROWS: usize> Stretch<'a, ROWS> {
    /// The matrix may lack some of the rows and columns.
    #[inline(always)]
    pub fn new(weights: &'a WeightRows<'a>, first_row: usize, slices: Range<usize>) -> Self {
        const { assert!(ROWS.is_multiple_of(TILE_ROWS)) };
        let is_whole = weights.are_whole(first_row..first_row + ROWS, &slices);
        let whole = is_whole.then(|| weights.slice(first_row, slices.start));
        Self { weights, first_row, slices, whole }
    }

    pub fn slices(&self) -> Range<usize> {
        self.slices.clone()
    }

    pub fn first_row(&self) -> usize {
        self.first_row
    }

    /// Number of lines.
    #[inline(always)]
    pub fn lines(&self) -> usize {
        ROWS * self.slices.len()
    }

    /// Where a line lies, and the bytes to that of the next row, if all lines are there and whole.
    #[inline(always)]
    fn line(&self, line: usize) -> Option<(*const u8, usize)> {
        let (first, stride) = self.whole?;
        Some((first.wrapping_add(line % ROWS * stride + line / ROWS * TILE_ROW_BYTES), stride))
    }

    /// Asks for some lines, which are in one slice, to be brought into the second level cache.
    #[inline(always)]
    pub fn prefetch<S: Simd>(&self, simd: S, lines: Range<usize>) {
        let Some((mut source, stride)) = self.line(lines.start) else { return };
        for _ in lines {
            simd.prefetch(source);
            source = source.wrapping_add(stride);
        }
    }

    /// Copies some lines, `[slice][row]`, to the `[slice][tile of rows][part]` of all.
    ///
    /// # Panics
    /// If there are no such lines, or no such tiles.
    #[inline(always)]
    pub fn copy<S: Simd, E: TileElement>(&self, simd: S, lines: Range<usize>, target: &mut [TileRows]) {
        assert!(lines.end <= self.lines() && lines.end.div_ceil(TILE_ROWS) * E::PARTS <= target.len());
        let mut line = lines.start;
        while line < lines.end {
            // As many lines as are in the same tiles.
            let r = line % TILE_ROWS;
            let count = (lines.end - line).min(TILE_ROWS - r);
            let tiles = &mut target[line / TILE_ROWS * E::PARTS..][..E::PARTS];
            if let Some((mut source, stride)) = self.line(line) {
                for r in r..r + count {
                    // SAFETY: all of the rows and slices are there, see `WeightRows::are_whole`, and a line is in them.
                    E::store(simd, unsafe { &*source.cast() }, tiles, r);
                    source = source.wrapping_add(stride);
                }
            } else {
                let (row, slice) = (self.first_row + line % ROWS, self.slices.start + line / ROWS);
                for i in 0..count {
                    let weights = self.weights.padded(row + i, slice);
                    E::store(simd, &weights, tiles, r + i);
                }
            }
            line += count;
        }
    }
}

/// Room for copies of some tiles.
#[inline(always)]
pub(super) fn room<const TILES: usize>() -> [TileRows; TILES] {
    [const { [const { MaybeUninit::uninit() }; _] }; _]
}

/// Some slices of a tile of rows, all of which can be read.
#[derive(Clone, Copy)]
pub(super) struct Operand<'a> {
    first: *const u8,
    stride: usize,
    slice: usize,
    part: usize,
    slices: usize,
    lifetime: PhantomData<&'a [u8]>,
}

impl Operand<'_> {
    /// Bytes from one row of a tile to the next.
    #[inline(always)]
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Number of slices.
    #[inline(always)]
    pub fn slices(&self) -> usize {
        self.slices
    }

    /// A part of a slice.
    #[inline(always)]
    pub fn tile(&self, slice: usize, part: usize) -> *const u8 {
        self.first.wrapping_add(slice * self.slice + part * self.part)
    }
}

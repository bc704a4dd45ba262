//! Weight rows as operands `A`, where they lie or copied.

use std::{marker::PhantomData, mem::MaybeUninit, ops::Range};

use super::SLICE_COLUMNS;
use crate::{
    MatrixRef,
    amx::{TILE_BYTES, TILE_ROW_BYTES, TILE_ROWS},
    matmul::element::{Bf16, Element, F16},
    simd::{Simd, TileRow},
};

/// Tiles of weight rows that a strip has at most.
pub(super) const STRIP_TILES: usize = 4;

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

/// Up to [`STRIP_TILES`] tiles of the weight rows of a part.
pub(super) struct Strip {
    /// The part's rows.
    rows: Range<usize>,
    first: usize,
    most: usize,
}

impl Strip {
    /// At most `most` tiles, `first`, `first + 1`, .., as far as the part has them, and it has the first.
    pub fn new(rows: Range<usize>, first: usize, most: usize) -> Self {
        assert!(first * TILE_ROWS < rows.len() && most <= STRIP_TILES);
        Self { rows, first, most }
    }

    /// Which tile of the part the `i`th one of the strip is, if it has that many.
    #[inline(always)]
    pub fn tile(&self, i: usize) -> Option<usize> {
        let tile = self.first + i;
        (i < self.most && tile * TILE_ROWS < self.rows.len()).then_some(tile)
    }

    /// The rows of a tile of the part.
    #[inline(always)]
    pub fn rows(&self, tile: usize) -> Range<usize> {
        let start = self.rows.start + tile * TILE_ROWS;
        start..self.rows.end.min(start + TILE_ROWS)
    }

    /// Slices of rows of bf16 where they lie; the part has whole tiles of rows.
    #[inline(always)]
    pub fn in_place<'a>(&self, weight: &MatrixRef<'a>, first_slice: usize, slices: usize) -> Operands<'a> {
        let stride = weight.cols() * Bf16::SIZE;
        assert!((first_slice + slices) * SLICE_COLUMNS <= weight.cols());
        assert_eq!(weight.dtype().size(), Bf16::SIZE);
        let mut tiles = [std::ptr::null(); STRIP_TILES];
        for (i, pointer) in tiles.iter_mut().enumerate() {
            let rows = self.rows(self.tile(i).unwrap_or(self.first));
            assert_eq!(rows.len(), TILE_ROWS);
            let bytes = &weight.data()[rows.start * stride..rows.end * stride];
            *pointer = bytes[first_slice * TILE_ROW_BYTES..].as_ptr();
        }
        Operands { tiles, stride, slice: TILE_ROW_BYTES, part: 0, slices, lifetime: PhantomData }
    }

    /// The rows of each tile, to be copied.
    #[inline(always)]
    pub fn sources<'a, E: TileElement>(&self, weight: &MatrixRef<'a>) -> [Source<'a>; STRIP_TILES] {
        assert_eq!(weight.dtype().size(), E::SIZE);
        std::array::from_fn(|i| Source::new(weight, self.tile(i).map_or(0..0, |tile| self.rows(tile))))
    }

    /// A copy of slices of the rows of each tile; rows and columns that the matrix lacks are zeros.
    #[inline(always)]
    pub fn copy<'a, S: Simd, E: TileElement>(
        &self,
        simd: S,
        sources: &[Source; STRIP_TILES],
        first_slice: usize,
        slices: usize,
        copied: &'a mut [TileRows],
    ) -> Operands<'a> {
        let tile_count = slices * E::PARTS;
        let mut tiles = [std::ptr::null(); STRIP_TILES];
        for (i, source) in sources.iter().enumerate() {
            if self.tile(i).is_none() {
                tiles[i] = tiles[0];
                continue;
            }
            let target = &mut copied[i * tile_count..][..tile_count];
            source.copy::<S, E>(simd, first_slice, target);
            tiles[i] = target.as_ptr().cast();
        }
        Operands {
            tiles,
            stride: TILE_ROW_BYTES,
            slice: E::PARTS * TILE_BYTES,
            part: TILE_BYTES,
            slices,
            lifetime: PhantomData,
        }
    }
}

/// Rows of a tile.
pub(super) struct Source<'a> {
    /// Whole slices of a row, and the bytes after the last one.
    rows: [(&'a [[u8; TILE_ROW_BYTES]], &'a [u8]); TILE_ROWS],
    /// How many slices are whole in all rows.
    whole: usize,
}

impl<'a> Source<'a> {
    #[inline(always)]
    fn new(weight: &MatrixRef<'a>, rows: Range<usize>) -> Self {
        let row_bytes = weight.cols() * weight.dtype().size();
        let bytes = &weight.data()[rows.start * row_bytes..rows.end * row_bytes];
        let row = |r: usize| bytes.get(r * row_bytes..(r + 1) * row_bytes).unwrap_or_default().as_chunks();
        let rows: [(&[_], &[u8]); TILE_ROWS] = std::array::from_fn(row);
        Self { rows, whole: rows.iter().map(|(whole, _)| whole.len()).min().unwrap_or(0) }
    }

    /// Copies slices, which are as many as `target` has, with `PARTS` tiles each.
    #[inline(always)]
    fn copy<S: Simd, E: TileElement>(&self, simd: S, first_slice: usize, target: &mut [TileRows]) {
        let slices = target.len() / E::PARTS;
        let target = target.chunks_exact_mut(E::PARTS).zip(first_slice..);
        // Rows side by side, since the processor prefetches several streams faster than one.
        if first_slice + slices <= self.whole {
            for (tiles, slice) in target {
                for (r, (whole, _)) in self.rows.iter().enumerate() {
                    E::store(simd, &whole[slice], tiles, r);
                }
            }
        } else {
            for (tiles, slice) in target {
                for (r, (whole, rest)) in self.rows.iter().enumerate() {
                    E::store(simd, whole.get(slice).unwrap_or(&padded(rest)), tiles, r);
                }
            }
        }
    }
}

/// The columns of a row that do not fill a slice, or none, and zeros after them.
fn padded(rest: &[u8]) -> [u8; TILE_ROW_BYTES] {
    let mut slice = [0; TILE_ROW_BYTES];
    slice[..rest.len()].copy_from_slice(rest);
    slice
}

/// Room for copies of some tiles.
#[inline(always)]
pub(super) fn copied<const TILES: usize>() -> [TileRows; TILES] {
    [const { [const { MaybeUninit::uninit() }; _] }; _]
}

/// Some slices of a strip, all of whose tiles can be read: those that a strip lacks are its first one once more.
#[derive(Clone, Copy)]
pub(super) struct Operands<'a> {
    tiles: [*const u8; STRIP_TILES],
    stride: usize,
    slice: usize,
    part: usize,
    slices: usize,
    lifetime: PhantomData<&'a [u8]>,
}

impl Operands<'_> {
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

    /// The first slice of a tile.
    #[inline(always)]
    pub fn tile(&self, tile: usize) -> *const u8 {
        self.tiles[tile]
    }

    /// Bytes from one slice to the next, and from one part of a slice to the next.
    #[inline(always)]
    pub fn apart(&self) -> [usize; 2] {
        [self.slice, self.part]
    }
}

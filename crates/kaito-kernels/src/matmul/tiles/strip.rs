//! Weight rows as operands `A`, where they lie or copied.

use std::{marker::PhantomData, mem::MaybeUninit, ops::Range};

use super::{BLOCK_SLICES, SHORT_BLOCK_SLICES, SLICE_COLUMNS};
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
        for at in (0..SLICE_COLUMNS).step_by(S::LANES) {
            let w = F16::load_slice(simd, &weights[at * F16::SIZE..]);
            // 8 of the 11 bits, so that 3 are left.
            let first = simd.truncate_to_bf16(w);
            simd.store_bf16(&mut high.0[at / 2..], first);
            simd.store_bf16(&mut low.0[at / 2..], simd.difference_of_finite(w, first));
        }
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
    apart: usize,
}

impl Strip {
    /// Tiles `first`, `first + apart`, .., as far as the part has them, and it has the first.
    pub fn new(rows: Range<usize>, first: usize, apart: usize) -> Self {
        assert!(first * TILE_ROWS < rows.len());
        Self { rows, first, apart }
    }

    /// Which tile of the part the `i`th one of the strip is, if it has that many.
    #[inline(always)]
    pub fn tile(&self, i: usize) -> Option<usize> {
        let tile = self.first + i * self.apart;
        (tile * TILE_ROWS < self.rows.len()).then_some(tile)
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

    /// A copy of slices of rows; rows and columns that the matrix lacks are zeros.
    #[inline(always)]
    pub fn copy<'a, S: Simd, E: TileElement>(
        &self,
        simd: S,
        weight: &MatrixRef,
        first_slice: usize,
        slices: usize,
        copied: &'a mut Copied,
    ) -> Operands<'a> {
        assert_eq!(weight.dtype().size(), E::SIZE);
        let row_bytes = weight.cols() * E::SIZE;
        let tile_count = slices * E::PARTS;
        let mut tiles = [std::ptr::null(); STRIP_TILES];
        for i in 0..STRIP_TILES {
            let Some(tile) = self.tile(i) else {
                tiles[i] = tiles[0];
                continue;
            };
            let target = &mut copied.tiles[i * tile_count..][..tile_count];
            let rows = self.rows(tile);
            // Whole slices of a row, and the bytes after the last one.
            let sources: [(&[_], &[u8]); TILE_ROWS] = std::array::from_fn(|r| {
                let row = weight.data().get((rows.start + r) * row_bytes..).filter(|_| r < rows.len());
                let (whole, rest) = row.map_or(Default::default(), |row| row[..row_bytes].as_chunks());
                (whole.get(first_slice..).unwrap_or_default(), rest)
            });
            // Rows side by side, since the processor prefetches several streams faster than one.
            let target = target.chunks_exact_mut(E::PARTS).enumerate();
            if sources.iter().all(|(whole, _)| whole.len() >= slices) {
                let sources = sources.map(|(whole, _)| &whole[..slices]);
                for (slice, tiles) in target {
                    for (r, whole) in sources.iter().enumerate() {
                        E::store(simd, &whole[slice], tiles, r);
                    }
                }
            } else {
                for (slice, tiles) in target {
                    for (r, (whole, rest)) in sources.iter().enumerate() {
                        E::store(simd, whole.get(slice).unwrap_or(&padded(rest)), tiles, r);
                    }
                }
            }
            tiles[i] = copied.tiles[i * tile_count..].as_ptr().cast();
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

/// The columns of a row that do not fill a slice, or none, and zeros after them.
fn padded(rest: &[u8]) -> [u8; TILE_ROW_BYTES] {
    let mut slice = [0; TILE_ROW_BYTES];
    slice[..rest.len()].copy_from_slice(rest);
    slice
}

/// Tiles of a row of tiles that are copied at a time at most.
const MOST_COPIED: usize = if 2 * SHORT_BLOCK_SLICES > BLOCK_SLICES { 2 * SHORT_BLOCK_SLICES } else { BLOCK_SLICES };

/// Room for a copy of a strip.
pub(super) struct Copied {
    tiles: [TileRows; MOST_COPIED * STRIP_TILES],
}

impl Copied {
    #[inline(always)]
    pub fn new() -> Self {
        Self { tiles: [const { [const { MaybeUninit::uninit() }; _] }; _] }
    }
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

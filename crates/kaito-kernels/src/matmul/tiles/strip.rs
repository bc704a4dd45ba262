//! Weight rows as operands `A`, where they lie or copied.

use std::{marker::PhantomData, mem::MaybeUninit, ops::Range};

use super::{SHORT_BLOCK_SLICES, SLICE_COLUMNS};
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

    /// The weights of a row and slice, in `PARTS` parts.
    fn parts<S: Simd>(simd: S, weights: &[u8; TILE_ROW_BYTES]) -> [TileRow; 2];
}

const ZEROS: TileRow = TileRow([0; TILE_ROW_BYTES / 4]);

impl TileElement for Bf16 {
    const PARTS: usize = 1;

    #[inline(always)]
    fn parts<S: Simd>(_: S, weights: &[u8; TILE_ROW_BYTES]) -> [TileRow; 2] {
        let mut row = ZEROS;
        for (pair, bytes) in row.0.iter_mut().zip(weights.as_chunks().0) {
            *pair = u32::from_le_bytes(*bytes);
        }
        [row, ZEROS]
    }
}

impl TileElement for F16 {
    const PARTS: usize = 2;

    #[inline(always)]
    fn parts<S: Simd>(simd: S, weights: &[u8; TILE_ROW_BYTES]) -> [TileRow; 2] {
        let [mut high, mut low] = [ZEROS; 2];
        for at in (0..SLICE_COLUMNS).step_by(S::LANES) {
            let w = F16::load_slice(simd, &weights[at * F16::SIZE..]);
            // 8 of the 11 bits, so that 3 are left.
            let first = simd.truncate_to_bf16(w);
            simd.store_bf16(&mut high.0[at / 2..], first);
            simd.store_bf16(&mut low.0[at / 2..], simd.difference_of_finite(w, first));
        }
        [high, low]
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
        let tile_rows = slices * E::PARTS * TILE_ROWS;
        let mut tiles = [std::ptr::null(); STRIP_TILES];
        for i in 0..STRIP_TILES {
            let Some(tile) = self.tile(i) else {
                tiles[i] = tiles[0];
                continue;
            };
            let target = &mut copied.rows[i * tile_rows..][..tile_rows];
            let rows = self.rows(tile);
            for r in 0..TILE_ROWS {
                let row: &[u8] =
                    if r < rows.len() { &weight.data()[(rows.start + r) * row_bytes..][..row_bytes] } else { &[] };
                let (whole, rest) = row.as_chunks::<TILE_ROW_BYTES>();
                for slice in 0..slices {
                    let at = first_slice + slice;
                    let parts = if at < whole.len() {
                        E::parts(simd, &whole[at])
                    } else {
                        let mut padded = [0; TILE_ROW_BYTES];
                        if at == whole.len() {
                            padded[..rest.len()].copy_from_slice(rest);
                        }
                        E::parts(simd, &padded)
                    };
                    for part in 0..E::PARTS {
                        target[(slice * E::PARTS + part) * TILE_ROWS + r].write(parts[part]);
                    }
                }
            }
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

/// Room for a copy of a strip.
pub(super) struct Copied {
    rows: [MaybeUninit<TileRow>; SHORT_BLOCK_SLICES * STRIP_TILES * 2 * TILE_ROWS],
}

impl Copied {
    #[inline(always)]
    pub fn new() -> Self {
        Self { rows: [const { MaybeUninit::uninit() }; _] }
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

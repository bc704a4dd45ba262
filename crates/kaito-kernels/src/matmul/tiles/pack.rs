//! Activations as operands `B` of products by tile registers.

use std::{iter, mem, ops::Range};

use super::{SLICE_COLUMNS, TILE_TOKENS};
use crate::{
    Rows, ThreadPool,
    amx::{TILE_ROW_BYTES, TILE_ROWS, Unit},
    partition::EvenSplit,
    simd::{Kernel, Simd, TileRow},
};

/// Parts of activations that keep all their bits: three times 8 are those of an f32.
const SPLIT_PARTS: usize = 3;

/// Slices that a thread packs at a time.
const PIECE_SLICES: usize = 16;
/// Up to so many activations are packed by the calling thread: that takes less time than waking another one.
const ALONE: usize = 16 * 1024;

/// Activations of some tokens in bf16, or as sums of three bf16.
///
/// ```text
/// rows: [tile of tokens][slice][part][pair of columns][token of the tile]
/// ```
///
/// Tiles are of nearly the same size, with [`TILE_TOKENS`] columns; what they lack of tokens and of columns of activations are zeros. The tile
/// of a single token has one column, so that its rows are the activations as they are.
#[derive(Debug, Default)]
pub(in crate::matmul) struct PackedInput {
    tokens: usize,
    slices: usize,
    split: bool,
    /// What is left of earlier tokens is overwritten, never read.
    rows: Vec<TileRow>,
}

impl PackedInput {
    /// Makes room for `tokens` rows of `cols` activations.
    pub fn reserve(&mut self, split: bool, tokens: usize, cols: usize) {
        let rows = Self { tokens, slices: cols.div_ceil(SLICE_COLUMNS), split, rows: Vec::new() }.len();
        self.rows.reserve_exact(rows.saturating_sub(self.rows.len()));
    }

    /// Packs `tokens` rows of `cols` activations: rounded to bf16, or split.
    pub fn pack(&mut self, unit: Unit, pool: &ThreadPool, split: bool, [tokens, cols]: [usize; 2], input: Rows) {
        (self.tokens, self.slices, self.split) = (tokens, cols.div_ceil(SLICE_COLUMNS), split);
        let (len, slice_rows) = (self.len(), self.slice_rows());
        if self.rows.len() < len {
            self.rows.resize(len, TileRow([0; TILE_TOKENS]));
        }
        let tiles = self.tiles();
        let (tile_rows, pieces) = (self.slices * slice_rows, self.slices.div_ceil(PIECE_SLICES));
        let part_rows = self.part_rows();
        let mut rest = &mut self.rows[..len];
        let mut next = 0..tiles.count() * pieces;
        let parts = iter::from_fn(|| {
            let i = next.next()?;
            let first = i % pieces * PIECE_SLICES;
            let rows = (PIECE_SLICES * slice_rows).min(tile_rows - first * slice_rows);
            let (target, others) = mem::take(&mut rest).split_at_mut(rows);
            rest = others;
            Some(PackSlices { input, tokens: tiles.range(i / pieces), cols, first, split, part_rows, target })
        });
        let pack = |part: PackSlices| unit.run(part);
        if tokens * cols <= ALONE {
            parts.for_each(pack);
            return;
        }
        pool.for_each_item(tiles.count() * pieces, parts, pack);
    }

    /// How many [`TileRow`]s a part of a slice takes.
    fn part_rows(&self) -> usize {
        if self.is_one_token() { 1 } else { TILE_ROWS }
    }

    fn slice_rows(&self) -> usize {
        if self.split { SPLIT_PARTS * self.part_rows() } else { self.part_rows() }
    }

    /// Whether there is one token alone.
    pub fn is_one_token(&self) -> bool {
        self.tokens == 1
    }

    fn len(&self) -> usize {
        self.token_tiles() * self.slices * self.slice_rows()
    }

    fn tiles(&self) -> EvenSplit {
        EvenSplit::of_at_most(self.tokens, TILE_TOKENS)
    }

    pub fn is_split(&self) -> bool {
        self.split
    }

    pub fn tokens(&self) -> usize {
        self.tokens
    }

    fn token_tiles(&self) -> usize {
        self.tiles().count()
    }

    /// The tokens of a tile.
    #[inline(always)]
    pub fn tokens_of(&self, tile: usize) -> Range<usize> {
        self.tiles().range(tile)
    }

    /// Slices of a tile, one after the other: all parts of each can be read there.
    ///
    /// # Panics
    /// If there are no such slices.
    #[inline(always)]
    pub fn slices(&self, tile: usize, slices: Range<usize>) -> *const u8 {
        assert!(slices.start <= slices.end && slices.end <= self.slices);
        let (rows, first) = (self.slice_rows(), tile * self.slices);
        self.rows[(first + slices.start) * rows..(first + slices.end) * rows].as_ptr().cast()
    }

    /// Bytes of a row of a tile, which is a pair of columns: as many as are from one to the next.
    #[inline(always)]
    pub fn row_bytes(&self) -> usize {
        if self.is_one_token() { size_of::<u32>() } else { TILE_ROW_BYTES }
    }

    /// Bytes from one slice to the next, and from one part of a slice to the next.
    #[inline(always)]
    pub fn apart(&self) -> [usize; 2] {
        [self.slice_rows(), self.part_rows()].map(|rows| rows * size_of::<TileRow>())
    }
}

/// Some slices of a tile of tokens.
struct PackSlices<'a> {
    input: Rows<'a>,
    tokens: Range<usize>,
    cols: usize,
    first: usize,
    split: bool,
    part_rows: usize,
    target: &'a mut [TileRow],
}

impl Kernel for PackSlices<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        if self.split {
            self.pack::<S, SPLIT_PARTS>(simd);
        } else {
            self.pack::<S, 1>(simd);
        }
    }
}

impl PackSlices<'_> {
    #[inline(always)]
    fn pack<S: Simd, const PARTS: usize>(self, simd: S) {
        // A row for each token; those of tokens that the tile lacks stay zeros.
        let mut pairs = [[TileRow([0; TILE_TOKENS]); TILE_ROWS]; PARTS];
        for (i, target) in self.target.chunks_exact_mut(PARTS * self.part_rows).enumerate() {
            let first = (self.first + i) * SLICE_COLUMNS;
            let columns = first..self.cols.min(first + SLICE_COLUMNS);
            for (t, token) in self.tokens.clone().enumerate() {
                let row = &self.input.row(token, self.cols)[columns.clone()];
                for at in (0..SLICE_COLUMNS).step_by(S::LANES) {
                    let left = row.len().saturating_sub(at);
                    let mut x = if left >= S::LANES {
                        simd.load_slice(&row[at..])
                    } else {
                        simd.load_partial(&row[row.len() - left..])
                    };
                    for (part, pairs) in pairs.iter_mut().enumerate() {
                        let value = if PARTS == 1 { simd.round_to_bf16(x) } else { simd.truncate_to_bf16(x) };
                        simd.store_bf16(&mut pairs[t].0[at / 2..], value);
                        if part + 1 < PARTS {
                            x = simd.difference_of_finite(x, value);
                        }
                    }
                }
            }
            for (pairs, target) in pairs.iter().zip(target.chunks_exact_mut(self.part_rows)) {
                match target.as_chunks_mut().0.first_mut() {
                    Some(tile) => simd.transpose(pairs, tile),
                    None => target.copy_from_slice(&pairs[..target.len()]),
                }
            }
        }
    }
}

//! A thread's memory for a block of queries: operands as registers have them, and the online softmax so far.

use std::{cell::Cell, ops::Range};

use super::{BLOCK_QUERIES, BLOCK_SLICES, GROUP, MOST_GROUPS, SLICE, TOGETHER, softmax::Scaling};
use crate::{
    AttentionShape,
    amx::TILE_ROWS,
    simd::{Simd, TileRow},
};

/// Sixteen numbers of a register of sums.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct FloatRow(pub [f32; GROUP]);

const NO_PAIRS: TileRow = TileRow([0; GROUP]);
const NO_NUMBERS: FloatRow = FloatRow([0.0; GROUP]);

/// A block of queries. Nothing that one of them sums up depends on the others.
#[derive(Default)]
pub(super) struct Memory {
    count: usize,
    head_dim: usize,
    pub(super) scaling: Scaling,
    /// `[tile][slice of the head][query of the tile]`, bf16.
    queries: Vec<TileRow>,
    /// `[tile of those together][group of tokens][query of the tile]`.
    pub(super) scores: Vec<FloatRow>,
    /// `[tile of those together][slice of tokens][query of the tile]`, bf16.
    pub(super) exponentials: Vec<TileRow>,
    /// For each query the greatest score so far, in powers of two, and the sum of `2^(score - greatest)`.
    pub(super) max: Vec<f32>,
    pub(super) sum: Vec<f32>,
    /// `[tile][group of elements][query of the tile]`: the sums of `2^(score - greatest) * value`.
    weighted: Vec<FloatRow>,
    /// Values of a KV block that are not where an operand can be read.
    pub(super) copies: Vec<TileRow>,
}

thread_local! {
    /// The memory that this thread used last.
    static LAST: Cell<Memory> = Cell::default();
}

impl Memory {
    /// A block of `count` queries that has seen nothing yet.
    pub(super) fn take(count: usize, shape: &AttentionShape) -> Self {
        let mut memory = Self { count, head_dim: shape.head_dim, scaling: Scaling::of(shape), ..LAST.take() };
        let (slices, groups) = (memory.head_slices(), memory.head_groups());
        // Room for the largest block at once, so that no later one allocates. What lies there is written before it is read, or of no query.
        for (rows, len) in [
            (&mut memory.queries, BLOCK_QUERIES * slices),
            (&mut memory.exponentials, TOGETHER * BLOCK_SLICES * TILE_ROWS),
            (&mut memory.copies, BLOCK_SLICES * groups * TILE_ROWS),
        ] {
            rows.resize(rows.len().max(len), NO_PAIRS);
        }
        for (rows, len) in
            [(&mut memory.scores, TOGETHER * MOST_GROUPS * TILE_ROWS), (&mut memory.weighted, BLOCK_QUERIES * groups)]
        {
            rows.resize(rows.len().max(len), NO_NUMBERS);
        }
        let tiles = memory.tiles();
        memory.weighted[..tiles * groups * TILE_ROWS].fill(NO_NUMBERS);
        for (numbers, value) in [(&mut memory.max, f32::NEG_INFINITY), (&mut memory.sum, 0.0)] {
            numbers.clear();
            numbers.resize(BLOCK_QUERIES, value);
        }
        memory
    }

    /// Leaves the memory to the next block of this thread.
    pub(super) fn give_back(self) {
        LAST.set(self);
    }

    /// Slices of a head.
    #[inline(always)]
    pub(super) fn head_slices(&self) -> usize {
        self.head_dim / SLICE
    }

    /// Groups of a head's elements.
    #[inline(always)]
    pub(super) fn head_groups(&self) -> usize {
        self.head_dim / GROUP
    }

    /// Queries of a tile; the last one may have fewer.
    #[inline(always)]
    pub(super) fn tile_queries(&self) -> usize {
        self.count.min(TILE_ROWS)
    }

    #[inline(always)]
    pub(super) fn tiles(&self) -> usize {
        self.count.div_ceil(TILE_ROWS)
    }

    #[inline(always)]
    pub(super) fn queries_of(&self, tiles: Range<usize>) -> Range<usize> {
        tiles.start * TILE_ROWS..(tiles.end * TILE_ROWS).min(self.count)
    }

    /// Packs query `i`, rounded to nearest, ties to even.
    #[inline(always)]
    pub(super) fn set_query<S: Simd>(&mut self, simd: S, i: usize, query: &[f32]) {
        let first = i / TILE_ROWS * self.head_slices() * TILE_ROWS + i % TILE_ROWS;
        for (slice, elements) in query.as_chunks::<SLICE>().0.iter().enumerate() {
            let target = &mut self.queries[first + slice * TILE_ROWS].0;
            for at in (0..SLICE).step_by(S::LANES) {
                simd.store_bf16(&mut target[at / 2..], simd.round_to_bf16(simd.load_slice(&elements[at..])));
            }
        }
    }

    /// Where the operand of a tile of queries, and of a slice of the head, begins.
    #[inline(always)]
    pub(super) fn tile_of_queries(&self, tile: usize, slice: usize) -> *const u8 {
        self.queries[(tile * self.head_slices() + slice) * TILE_ROWS..][..TILE_ROWS].as_ptr().cast()
    }

    /// Where the scores of a query and of a group of tokens are. Those of the other queries of its tile follow.
    #[inline(always)]
    pub(super) fn score_row(query: usize, group: usize) -> usize {
        (query / TILE_ROWS % TOGETHER * MOST_GROUPS + group) * TILE_ROWS + query % TILE_ROWS
    }

    /// Where the exponentials of a query and of a slice of tokens are, likewise.
    #[inline(always)]
    pub(super) fn exponential_row(query: usize, slice: usize) -> usize {
        (query / TILE_ROWS % TOGETHER * BLOCK_SLICES + slice) * TILE_ROWS + query % TILE_ROWS
    }

    #[inline(always)]
    pub(super) fn scores_of(&mut self, tile: usize, group: usize) -> *mut u8 {
        self.scores[Self::score_row(tile * TILE_ROWS, group)..][..TILE_ROWS].as_mut_ptr().cast()
    }

    #[inline(always)]
    pub(super) fn exponentials_of(&self, tile: usize, slice: usize) -> *const u8 {
        self.exponentials[Self::exponential_row(tile * TILE_ROWS, slice)..][..TILE_ROWS].as_ptr().cast()
    }

    #[inline(always)]
    pub(super) fn weighted_of(&mut self, tile: usize, group: usize) -> *mut u8 {
        let first = (tile * self.head_groups() + group) * TILE_ROWS;
        self.weighted[first..][..TILE_ROWS].as_mut_ptr().cast()
    }

    /// Multiplies the sums of query `i`. A product that is too small becomes a zero without a sign, as a sum of zeros is.
    #[inline(always)]
    pub(super) fn rescale<S: Simd>(&mut self, simd: S, i: usize, factor: f32) {
        let groups = self.head_groups();
        let first = i / TILE_ROWS * groups * TILE_ROWS + i % TILE_ROWS;
        for group in 0..groups {
            for part in self.weighted[first + group * TILE_ROWS].0.chunks_exact_mut(S::LANES) {
                simd.store_slice(part, simd.mul_add(simd.load_slice(part), simd.splat(factor), simd.splat(0.0)));
            }
        }
    }

    /// The result of query `i`.
    #[inline(always)]
    pub(super) fn write(&self, i: usize, output: &mut [f32]) {
        let first = i / TILE_ROWS * self.head_groups() * TILE_ROWS + i % TILE_ROWS;
        for (group, output) in output.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
            let weighted = &self.weighted[first + group * TILE_ROWS].0;
            for (y, x) in output.iter_mut().zip(weighted) {
                *y = x / self.sum[i] + 0.0;
            }
        }
    }
}

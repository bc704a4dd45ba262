//! Attention by tile registers, to a KV cache in bf16 whose keys and values lie as operands of them: see [`KvForm`](crate::KvForm).
//!
//! Queries are rounded to bf16 to nearest, ties to even; the exponentials of scores to nearest, ties away from zero. Sums are in f32, as
//! [`Tiles::add_bf16`] defines them: of 32 elements of a head at a time for a score, of 32 tokens at a time for an output, which is rescaled before a
//! KV block that has a greater score than those before.
//!
//! The exponential of what a query does not see is zero, whose product with a value, which is finite in such a KV cache, changes no sum.

mod memory;
mod operands;
mod softmax;

use std::ops::Range;

use self::{memory::Memory, operands::Operands};
use super::{
    BLOCK_TOKENS, PAGE_TOKENS,
    context::{Context, Visible},
    prefetch::Prefetch,
    step::Block,
};
use crate::{
    amx::{TILE_ROW_BYTES, TILE_ROWS, TileShapes, TileUnit, Tiles},
    kv::TILE_ELEMENTS,
    simd::{Kernel, STREAMS, Simd},
};

/// Queries that go through the pages together: what they attend to is in the second level cache for all of them but the first.
pub(super) const BLOCK_QUERIES: usize = 256;

/// Tokens whose scores are a register, and elements of a value whose sums are one.
const GROUP: usize = 16;
const _: () = assert!(PAGE_TOKENS.is_multiple_of(GROUP));

/// Elements of a head, or tokens, that a register has as pairs.
const SLICE: usize = TILE_ELEMENTS;

/// Groups and slices of a KV block at most.
const MOST_GROUPS: usize = BLOCK_TOKENS / GROUP;
const BLOCK_SLICES: usize = BLOCK_TOKENS / SLICE;

/// Tiles of queries that are computed together where there are so many: each operand of keys, or of values, is loaded once for them.
const TOGETHER: usize = 2;

/// Registers of sums: of as many operands for one tile, of half of them for each of two.
const SUMS: usize = 4;
/// The register of queries, or of exponentials. A second tile has the next one; the rest are for keys, or values.
const LEFT: usize = SUMS;

/// A block of queries, by the registers of `unit`.
pub(super) struct TiledBlock<'a, U> {
    pub unit: U,
    pub block: Block<'a>,
}

impl<U: TileUnit> Kernel for TiledBlock<'_, U> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let context = Context::of(&self.block);
        let count = self.block.queries();
        let mut memory = Memory::take(count, self.block.step().shape);
        for i in 0..count {
            memory.set_query(simd, i, self.block.query(i));
        }
        let (rows, whole) = ((memory.tile_queries(), TILE_ROW_BYTES), (TILE_ROWS, TILE_ROW_BYTES));
        let shapes = TileShapes::new([rows, rows, rows, rows, rows, whole, whole, whole]);
        let mut tiles = self.unit.configure(&shapes);
        let mut first = context.first_page();
        while first < context.pages.end {
            let next = first + context.block_pages();
            let operands = Operands::of(&context, first, &mut memory.copies);
            let kv = KvBlock { operands, positions: context.positions(first), visible: context.visible };
            let mut prefetch = context.prefetch(context.pages_from(next));
            let mut tile = 0;
            while tile < memory.tiles() {
                // SAFETY: the registers have these shapes, and the operands all groups that some query of the block sees.
                unsafe {
                    if tile + TOGETHER <= memory.tiles() {
                        self.attend::<S, U::Tiles, TOGETHER>(simd, &mut tiles, &mut memory, tile, &kv, &mut prefetch);
                        tile += TOGETHER;
                    } else {
                        self.attend::<S, U::Tiles, 1>(simd, &mut tiles, &mut memory, tile, &kv, &mut prefetch);
                        tile += 1;
                    }
                }
            }
            first = next;
        }
        drop(tiles);
        for i in 0..count {
            memory.write(i, self.block.output(i));
        }
        memory.give_back();
    }
}

/// A KV block, and what queries see of it.
struct KvBlock {
    operands: Operands,
    positions: Range<usize>,
    visible: Visible,
}

impl<U: TileUnit> TiledBlock<'_, U> {
    /// Attention of `TILES` tiles of queries, from `first` on, to a KV block.
    ///
    /// # Safety
    /// Registers have the shapes of [`TiledBlock::run`], and the operands all groups that these queries see.
    #[inline(always)]
    unsafe fn attend<S: Simd, T: Tiles, const TILES: usize>(
        &self,
        simd: S,
        tiles: &mut T,
        memory: &mut Memory,
        first: usize,
        kv: &KvBlock,
        prefetch: &mut Prefetch,
    ) {
        let queries = memory.queries_of(first..first + TILES);
        // Neither end decreases from one query to the next.
        let start = kv.visible.within(queries.start, &kv.positions).start;
        let end = kv.visible.within(queries.end - 1, &kv.positions).end;
        if start >= end {
            return;
        }
        let slices = start / SLICE..end.div_ceil(SLICE);
        // SAFETY: by contract.
        unsafe {
            let groups = start / GROUP..end.div_ceil(GROUP);
            memory.scores::<S, T, TILES>(simd, tiles, first, groups, &kv.operands, prefetch);
        }
        for query in queries {
            let (seen, place) =
                (kv.visible.within(query, &kv.positions), (kv.positions.start, self.block.slope(query)));
            memory.update_softmax(simd, query, seen, slices.clone(), place);
        }
        // SAFETY: by contract.
        unsafe { memory.weigh_values::<S, T, TILES>(simd, tiles, first, slices, &kv.operands, prefetch) };
    }
}

impl Memory {
    /// The scores of `TILES` tiles of queries, from `first` on, and of some groups of tokens.
    ///
    /// # Safety
    /// Registers have the shapes of [`TiledBlock::run`], and these groups have keys.
    #[inline(always)]
    unsafe fn scores<S: Simd, T: Tiles, const TILES: usize>(
        &mut self,
        simd: S,
        tiles: &mut T,
        first: usize,
        groups: Range<usize>,
        operands: &Operands,
        prefetch: &mut Prefetch,
    ) {
        let stride = operands.key_stride;
        for keys in groups.clone().step_by(SUMS / TILES).map(|group| group..(group + SUMS / TILES).min(groups.end)) {
            tiles.zero::<0>();
            tiles.zero::<1>();
            tiles.zero::<2>();
            tiles.zero::<3>();
            for slice in 0..self.head_slices() {
                let left = [0, TILES - 1].map(|tile| self.tile_of_queries(first + tile, slice));
                let place = slice * TILE_ROWS * stride;
                let right = Right { starts: &operands.keys[keys.clone()], place, apart: 0, stride };
                // SAFETY: by contract.
                unsafe { add_products::<S, T, TILES>(simd, tiles, left, keys.len(), right, prefetch) };
            }
            let scores = |tile, group| self.scores_of(first + tile, keys.start + group);
            // SAFETY: each group has room for a register of scores.
            unsafe { store::<T, TILES>(tiles, keys.len(), scores) };
        }
    }

    /// Adds the products of the exponentials of `TILES` tiles, from `first` on, with values, of some slices of tokens.
    ///
    /// # Safety
    /// Registers have the shapes of [`TiledBlock::run`], and these slices have values.
    #[inline(always)]
    unsafe fn weigh_values<S: Simd, T: Tiles, const TILES: usize>(
        &mut self,
        simd: S,
        tiles: &mut T,
        first: usize,
        slices: Range<usize>,
        operands: &Operands,
        prefetch: &mut Prefetch,
    ) {
        for group in (0..self.head_groups()).step_by(SUMS / TILES) {
            let count = (SUMS / TILES).min(self.head_groups() - group);
            // SAFETY: each group has a register of sums.
            unsafe { load::<T, TILES>(tiles, count, |tile, i| self.weighted_of(first + tile, group + i)) };
            for slice in slices.clone() {
                let left = [0, TILES - 1].map(|tile| self.exponentials_of(first + tile, slice));
                let starts = &[operands.values[slice]; SUMS];
                let place = group * TILE_ROW_BYTES;
                let right = Right { starts, place, apart: TILE_ROW_BYTES, stride: operands.value_stride };
                // SAFETY: by contract.
                unsafe { add_products::<S, T, TILES>(simd, tiles, left, count, right, prefetch) };
            }
            // SAFETY: as above.
            unsafe { store::<T, TILES>(tiles, count, |tile, i| self.weighted_of(first + tile, group + i)) };
        }
    }
}

/// Loads the registers of sums: of each tile `count` operands, from where `place` says.
///
/// # Safety
/// The rows can be read.
#[inline(always)]
unsafe fn load<T: Tiles, const TILES: usize>(
    tiles: &mut T,
    count: usize,
    mut place: impl FnMut(usize, usize) -> *mut u8,
) {
    // SAFETY: by contract.
    unsafe {
        tiles.load::<0>(place(0, 0), TILE_ROW_BYTES);
        if count > 1 {
            tiles.load::<1>(place(0, 1), TILE_ROW_BYTES);
        }
        if TILES == 2 {
            tiles.load::<2>(place(1, 0), TILE_ROW_BYTES);
            if count > 1 {
                tiles.load::<3>(place(1, 1), TILE_ROW_BYTES);
            }
            return;
        }
        if count > 2 {
            tiles.load::<2>(place(0, 2), TILE_ROW_BYTES);
        }
        if count > 3 {
            tiles.load::<3>(place(0, 3), TILE_ROW_BYTES);
        }
    }
}

/// Stores the registers of sums, as [`load`] loads them.
///
/// # Safety
/// The rows can be written.
#[inline(always)]
unsafe fn store<T: Tiles, const TILES: usize>(
    tiles: &mut T,
    count: usize,
    mut place: impl FnMut(usize, usize) -> *mut u8,
) {
    // SAFETY: by contract.
    unsafe {
        tiles.store::<0>(place(0, 0), TILE_ROW_BYTES);
        if count > 1 {
            tiles.store::<1>(place(0, 1), TILE_ROW_BYTES);
        }
        if TILES == 2 {
            tiles.store::<2>(place(1, 0), TILE_ROW_BYTES);
            if count > 1 {
                tiles.store::<3>(place(1, 1), TILE_ROW_BYTES);
            }
            return;
        }
        if count > 2 {
            tiles.store::<2>(place(0, 2), TILE_ROW_BYTES);
        }
        if count > 3 {
            tiles.store::<3>(place(0, 3), TILE_ROW_BYTES);
        }
    }
}

/// Up to [`SUMS`] operands of keys, or of values: number `i` begins `place + i * apart` bytes after `starts[i]`.
struct Right<'a> {
    starts: &'a [*const u8],
    place: usize,
    apart: usize,
    /// Bytes from one row to the next.
    stride: usize,
}

impl Right<'_> {
    /// Loads operand `I` into register `B`, and prefetches as many bytes.
    ///
    /// # Safety
    /// It can be read.
    #[inline(always)]
    unsafe fn load<S: Simd, T: Tiles, const I: usize, const B: usize>(
        &self,
        simd: S,
        tiles: &mut T,
        prefetch: &mut Prefetch,
    ) {
        // SAFETY: by contract.
        unsafe { tiles.load::<B>(self.starts[I].wrapping_add(self.place + I * self.apart), self.stride) };
        for _ in 0..TILE_ROWS / STREAMS {
            prefetch.next(simd);
        }
    }
}

/// Adds the products of the operands `left` of `TILES` tiles and each of the first `count` operands of `right` to the registers of sums.
///
/// # Safety
/// Registers have the shapes of [`TiledBlock::run`], and all operands can be read.
#[inline(always)]
unsafe fn add_products<S: Simd, T: Tiles, const TILES: usize>(
    simd: S,
    tiles: &mut T,
    left: [*const u8; 2],
    count: usize,
    right: Right,
    prefetch: &mut Prefetch,
) {
    // SAFETY: by contract.
    unsafe {
        tiles.load::<LEFT>(left[0], TILE_ROW_BYTES);
        if TILES == 2 {
            tiles.load::<{ LEFT + 1 }>(left[1], TILE_ROW_BYTES);
            right.load::<S, T, 0, { LEFT + 2 }>(simd, tiles, prefetch);
            tiles.add_bf16::<0, LEFT, { LEFT + 2 }>();
            tiles.add_bf16::<2, { LEFT + 1 }, { LEFT + 2 }>();
            if count > 1 {
                right.load::<S, T, 1, { LEFT + 3 }>(simd, tiles, prefetch);
                tiles.add_bf16::<1, LEFT, { LEFT + 3 }>();
                tiles.add_bf16::<3, { LEFT + 1 }, { LEFT + 3 }>();
            }
            return;
        }
        right.load::<S, T, 0, { LEFT + 1 }>(simd, tiles, prefetch);
        tiles.add_bf16::<0, LEFT, { LEFT + 1 }>();
        if count > 1 {
            right.load::<S, T, 1, { LEFT + 2 }>(simd, tiles, prefetch);
            tiles.add_bf16::<1, LEFT, { LEFT + 2 }>();
        }
        if count > 2 {
            right.load::<S, T, 2, { LEFT + 3 }>(simd, tiles, prefetch);
            tiles.add_bf16::<2, LEFT, { LEFT + 3 }>();
        }
        if count > 3 {
            right.load::<S, T, 3, { LEFT + 1 }>(simd, tiles, prefetch);
            tiles.add_bf16::<3, LEFT, { LEFT + 1 }>();
        }
    }
}

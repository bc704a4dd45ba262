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
use super::{BLOCK_TOKENS, PAGE_TOKENS, context::Context, prefetch::Prefetch, step::Block};
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

/// Registers of sums.
const SUMS: usize = 4;
/// The register of queries, or of exponentials, and the first one of keys, or of values.
const LEFT: usize = SUMS;
const RIGHT: usize = SUMS + 1;

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
            let positions = context.positions(first);
            let operands = Operands::of(&context, first, &mut memory.copies);
            let mut prefetch = context.prefetch(context.pages_from(next));
            for tile in 0..memory.tiles() {
                let queries = memory.queries_of(tile);
                let mut seen = [const { 0..0 }; TILE_ROWS];
                for (seen, query) in seen.iter_mut().zip(queries.clone()) {
                    *seen = context.visible.within(query, &positions);
                }
                // Neither end decreases from one query to the next.
                let (start, end) = (seen[0].start, seen[queries.len() - 1].end);
                if start >= end {
                    continue;
                }
                let slices = start / SLICE..end.div_ceil(SLICE);
                // SAFETY: the registers have these shapes, and the operands all groups that some query of the block sees.
                unsafe {
                    memory.scores(simd, &mut tiles, tile, start / GROUP..end.div_ceil(GROUP), &operands, &mut prefetch);
                }
                for (query, seen) in queries.zip(seen) {
                    let place = (positions.start, self.block.slope(query));
                    memory.update_softmax(simd, query, seen, slices.clone(), place);
                }
                // SAFETY: as above.
                unsafe { memory.weigh_values(simd, &mut tiles, tile, slices, &operands, &mut prefetch) };
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

impl Memory {
    /// The scores of a tile of queries and of some groups of tokens.
    ///
    /// # Safety
    /// Registers have the shapes of [`TiledBlock::run`], and these groups have keys.
    #[inline(always)]
    unsafe fn scores<S: Simd, T: Tiles>(
        &mut self,
        simd: S,
        tiles: &mut T,
        tile: usize,
        groups: Range<usize>,
        operands: &Operands,
        prefetch: &mut Prefetch,
    ) {
        let stride = operands.key_stride;
        for keys in groups.clone().step_by(SUMS).map(|group| group..(group + SUMS).min(groups.end)) {
            let count = keys.len();
            tiles.zero::<0>();
            tiles.zero::<1>();
            tiles.zero::<2>();
            tiles.zero::<3>();
            for slice in 0..self.head_slices() {
                let place = slice * TILE_ROWS * stride;
                let right = Right { starts: &operands.keys[keys.clone()], place, apart: 0, stride };
                // SAFETY: by contract.
                unsafe { add_products(simd, tiles, count, self.tile_of_queries(tile, slice), right, prefetch) };
            }
            // SAFETY: each group has room for a register of scores.
            unsafe {
                tiles.store::<0>(self.scores_of(keys.start), TILE_ROW_BYTES);
                if count > 1 {
                    tiles.store::<1>(self.scores_of(keys.start + 1), TILE_ROW_BYTES);
                }
                if count > 2 {
                    tiles.store::<2>(self.scores_of(keys.start + 2), TILE_ROW_BYTES);
                }
                if count > 3 {
                    tiles.store::<3>(self.scores_of(keys.start + 3), TILE_ROW_BYTES);
                }
            }
        }
    }

    /// Adds the products of a tile's exponentials with values, of some slices of tokens.
    ///
    /// # Safety
    /// Registers have the shapes of [`TiledBlock::run`], and these slices have values.
    #[inline(always)]
    unsafe fn weigh_values<S: Simd, T: Tiles>(
        &mut self,
        simd: S,
        tiles: &mut T,
        tile: usize,
        slices: Range<usize>,
        operands: &Operands,
        prefetch: &mut Prefetch,
    ) {
        for group in (0..self.head_groups()).step_by(SUMS) {
            let count = SUMS.min(self.head_groups() - group);
            // SAFETY: each group has a register of sums.
            unsafe {
                tiles.load::<0>(self.weighted_of(tile, group), TILE_ROW_BYTES);
                if count > 1 {
                    tiles.load::<1>(self.weighted_of(tile, group + 1), TILE_ROW_BYTES);
                }
                if count > 2 {
                    tiles.load::<2>(self.weighted_of(tile, group + 2), TILE_ROW_BYTES);
                }
                if count > 3 {
                    tiles.load::<3>(self.weighted_of(tile, group + 3), TILE_ROW_BYTES);
                }
            }
            for slice in slices.clone() {
                let starts = &[operands.values[slice]; SUMS];
                let place = group * TILE_ROW_BYTES;
                let right = Right { starts, place, apart: TILE_ROW_BYTES, stride: operands.value_stride };
                // SAFETY: by contract.
                unsafe { add_products(simd, tiles, count, self.exponentials_of(slice), right, prefetch) };
            }
            // SAFETY: as above.
            unsafe {
                tiles.store::<0>(self.weighted_of(tile, group), TILE_ROW_BYTES);
                if count > 1 {
                    tiles.store::<1>(self.weighted_of(tile, group + 1), TILE_ROW_BYTES);
                }
                if count > 2 {
                    tiles.store::<2>(self.weighted_of(tile, group + 2), TILE_ROW_BYTES);
                }
                if count > 3 {
                    tiles.store::<3>(self.weighted_of(tile, group + 3), TILE_ROW_BYTES);
                }
            }
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

/// Adds the products of `left` and each of the first `count` operands of `right` to the registers of sums.
///
/// # Safety
/// Registers have the shapes of [`TiledBlock::run`], and all operands can be read.
#[inline(always)]
unsafe fn add_products<S: Simd, T: Tiles>(
    simd: S,
    tiles: &mut T,
    count: usize,
    left: *const u8,
    right: Right,
    prefetch: &mut Prefetch,
) {
    // SAFETY: by contract.
    unsafe {
        tiles.load::<LEFT>(left, TILE_ROW_BYTES);
        multiply::<S, T, 0, RIGHT>(simd, tiles, &right, prefetch);
        if count > 1 {
            multiply::<S, T, 1, { RIGHT + 1 }>(simd, tiles, &right, prefetch);
        }
        if count > 2 {
            multiply::<S, T, 2, { RIGHT + 2 }>(simd, tiles, &right, prefetch);
        }
        if count > 3 {
            multiply::<S, T, 3, RIGHT>(simd, tiles, &right, prefetch);
        }
    }
}

/// Adds the product with operand `C` to register `C`, and prefetches as many bytes as an operand has.
///
/// # Safety
/// As for [`add_products`].
#[inline(always)]
unsafe fn multiply<S: Simd, T: Tiles, const C: usize, const B: usize>(
    simd: S,
    tiles: &mut T,
    right: &Right,
    prefetch: &mut Prefetch,
) {
    // SAFETY: by contract.
    unsafe {
        tiles.load::<B>(right.starts[C].wrapping_add(right.place + C * right.apart), right.stride);
        tiles.add_bf16::<C, LEFT, B>();
    }
    for _ in 0..TILE_ROWS / STREAMS {
        prefetch.next(simd);
    }
}

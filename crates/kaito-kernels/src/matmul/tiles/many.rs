//! Products of many tokens, which arithmetic binds.
//!
//! Weights are multiplied in panels: a few slices of two tiles of rows, which stay in the first level cache while all tokens of the
//! part pass. All rows of the part pass a block of columns, whose activations stay in the second level cache meanwhile. A panel is
//! a copy that is made between the products of the panel before, so that memory is read while tiles are multiplied and no row of a tile lies
//! across two cache lines, as most do in checkpoints.

use std::{marker::PhantomData, mem::MaybeUninit, ops::Range};

use super::{
    BLOCK_SLICES, Sums, TilePart, ZEROS, add_split_sums,
    pack::PackedInput,
    weights::{Stretch, TileElement, TileRows, WeightRows, room},
};
use crate::{
    amx::{TILE_BYTES, TILE_ROW_BYTES, TILE_ROWS, TileShapes, TileUnit, Tiles},
    simd::Simd,
};

/// Tiles of weight rows of a panel.
const PANEL_TILES: usize = 2;
/// Weight rows of a panel.
const PANEL_ROWS: usize = PANEL_TILES * TILE_ROWS;
/// Slices of a panel, times the bf16 that a weight is the sum of: the activations that pass find place beside its 16 KiB in the first level cache.
const PANEL_SLICES: usize = 8;
/// Tiles of a panel at most: where activations are split, and weights the sum of two bf16.
const MOST_COPIED: usize = PANEL_TILES * BLOCK_SLICES * 2;

/// Sums of a part that wait for the next slices, in tiles.
pub(super) const MOST_SUMS: usize = 256;

/// The sums of a part, `[tile of rows][tile of tokens]`, and after them those of the tile of rows that the last panel may lack, with two tiles
/// of tokens.
type AllSums = [MaybeUninit<Sums>; MOST_SUMS + 2];

/// The panels of a part in the order in which they are multiplied: `[block of columns][tiles of rows][panel of the block]`.
#[derive(Clone)]
struct Panels<'a> {
    weights: &'a WeightRows<'a>,
    /// Slices of a panel at most.
    most: usize,
    block: Range<usize>,
    row: usize,
    slice: usize,
}

impl<'a> Panels<'a> {
    fn new(weights: &'a WeightRows<'a>, most: usize) -> Self {
        Self { weights, most, block: 0..weights.slices().min(BLOCK_SLICES), row: 0, slice: 0 }
    }
}

impl<'a> Iterator for Panels<'a> {
    type Item = Stretch<'a, PANEL_ROWS>;

    #[inline(always)]
    fn next(&mut self) -> Option<Stretch<'a, PANEL_ROWS>> {
        let (row, slices) = (self.row, self.slice..self.block.end.min(self.slice + self.most));
        if slices.is_empty() {
            return None;
        }
        self.slice = slices.end;
        if self.slice == self.block.end {
            self.row += PANEL_ROWS;
            if self.row >= self.weights.count() {
                self.row = 0;
                self.block = self.block.end..self.weights.slices().min(self.block.end + BLOCK_SLICES);
            }
            self.slice = self.block.start;
        }
        Some(Stretch::new(self.weights, row, slices))
    }
}

/// A panel on its way to where it is multiplied, if there is one.
struct Copying<'a, E> {
    source: Option<Stretch<'a, PANEL_ROWS>>,
    /// The panel after it, which is asked for meanwhile.
    ahead: Option<Stretch<'a, PANEL_ROWS>>,
    /// Which lines are still to be copied.
    lines: Range<usize>,
    room: &'a mut [TileRows],
    element: PhantomData<E>,
}

impl<'a, E: TileElement> Copying<'a, E> {
    #[inline(always)]
    fn new(
        source: Option<Stretch<'a, PANEL_ROWS>>,
        ahead: Option<Stretch<'a, PANEL_ROWS>>,
        room: &'a mut [TileRows],
    ) -> Self {
        let lines = 0..source.as_ref().map_or(0, Stretch::lines);
        Self { source, ahead, lines, room, element: PhantomData }
    }

    /// Copies the next `count` lines, as far as there are any.
    #[inline(always)]
    fn advance<S: Simd>(&mut self, simd: S, count: usize) {
        let end = self.lines.end.min(self.lines.start + count);
        if let Some(source) = &self.source {
            source.copy::<S, E>(simd, self.lines.start..end, self.room);
        }
        if let Some(ahead) = &self.ahead {
            ahead.prefetch(simd, self.lines.start..end);
        }
        self.lines.start = end;
    }

    /// Copies what is left.
    #[inline(always)]
    fn finish<S: Simd>(mut self, simd: S) -> Panel<'a, E> {
        self.advance(simd, self.lines.len());
        Panel { source: self.source, room: self.room, element: PhantomData }
    }
}

/// A panel where it is multiplied; [`Copying::finish`] alone makes one.
///
/// ```text
/// room: [slice][tile of rows][part of the weights]
/// ```
struct Panel<'a, E> {
    source: Option<Stretch<'a, PANEL_ROWS>>,
    room: &'a mut [TileRows],
    element: PhantomData<E>,
}

impl<E: TileElement> Panel<'_, E> {
    #[inline(always)]
    fn tile(&self, slice: usize, tile: usize, part: usize) -> *const u8 {
        self.room.as_ptr().cast::<u8>().wrapping_add(((slice * PANEL_TILES + tile) * E::PARTS + part) * TILE_BYTES)
    }
}

impl<U: TileUnit> TilePart<'_, U> {
    #[inline(always)]
    pub(super) fn many_tokens<S: Simd, E: TileElement, const SPLIT: bool>(mut self, simd: S) {
        let mut tiles = self.unit.configure(&TileShapes::full());
        let tokens = self.part.tiles.clone();
        let weights = WeightRows::new::<E>(&self.weight, self.part.columns.clone());
        assert!(weights.count().div_ceil(TILE_ROWS) * tokens.len() <= MOST_SUMS);
        let most = if SPLIT { BLOCK_SLICES } else { PANEL_SLICES / E::PARTS };
        let mut panels = Panels::new(&weights, most);
        let together = if SPLIT { 1 } else { 2 };
        let mut sums: AllSums = [const { MaybeUninit::uninit() }; _];
        let (mut room, mut other_room) = (room::<MOST_COPIED>(), room::<MOST_COPIED>());
        let mut free = &mut other_room[..];
        let mut panel = Copying::<E>::new(panels.next(), None, &mut room).finish(simd);
        while let Some(source) = &panel.source {
            let (first_row, slices) = (source.first_row(), source.slices());
            let next = panels.next();
            let next = Copying::<E>::new(next, panels.clone().next(), free);
            let steps = slices.len() * tokens.len().div_ceil(together);
            let mut products = Products {
                tiles: &mut tiles,
                input: self.input,
                panel: &panel,
                slices: slices.clone(),
                lines: next.lines.len().div_ceil(steps),
                next,
            };
            let first_tile = first_row / TILE_ROWS;
            let tile_count = (weights.count() - first_row).div_ceil(TILE_ROWS).min(PANEL_TILES);
            for first in (0..tokens.len()).step_by(together) {
                let count = together.min(tokens.len() - first);
                let place = first_tile * tokens.len() + first;
                let below = if tile_count == PANEL_TILES { place + tokens.len() } else { MOST_SUMS };
                let token = tokens.start + first;
                match (SPLIT, count) {
                    (true, _) => products.add_split(simd, token, &mut sums, [place, below]),
                    (false, 1) => products.add_one(simd, token, &mut sums, [place, below]),
                    (false, _) => products.add_two(simd, token, &mut sums, [place, place + 1, below, below + 1]),
                }
                if slices.end < weights.slices() {
                    continue;
                }
                for (tile, place) in [place, below].into_iter().enumerate().take(tile_count) {
                    for i in 0..count {
                        // SAFETY: the products have just been stored there.
                        let sums = unsafe { sums[place + i].assume_init_ref() };
                        self.write_sums(simd, first_row + tile * TILE_ROWS, token + i, sums);
                    }
                }
            }
            let next = products.next.finish(simd);
            free = panel.room;
            panel = next;
        }
    }
}

/// A panel's products with the activations of the part. The next panel is copied between them.
struct Products<'a, 'p, T, E> {
    tiles: &'a mut T,
    input: &'a PackedInput,
    panel: &'a Panel<'p, E>,
    slices: Range<usize>,
    next: Copying<'p, E>,
    /// Lines of it to copy after each slice.
    lines: usize,
}

// SAFETY of every block below: all registers are configured as large as they can be; a `Panel` has all of its slices, and activations are
// there for them, see `PackedInput::slices`; sums lie in arrays of a register's size, and those that are loaded were stored for the
// slices before.
impl<T: Tiles, E: TileElement> Products<'_, '_, T, E> {
    /// Loads sums into register `C`, or zeros for the first slices.
    #[inline(always)]
    fn begin<const C: usize>(&mut self, sums: &AllSums, place: usize) {
        if self.slices.start == 0 {
            self.tiles.zero::<C>();
        } else {
            // SAFETY: see above.
            unsafe { self.tiles.load::<C>(sums[place].as_ptr().cast(), TILE_ROW_BYTES) };
        }
    }

    #[inline(always)]
    fn end<const C: usize>(&mut self, sums: &mut AllSums, place: usize) {
        // SAFETY: see above.
        unsafe { self.tiles.store::<C>(sums[place].as_mut_ptr().cast(), TILE_ROW_BYTES) };
    }

    /// The panel's first slice of a tile of tokens, which is followed by the others.
    #[inline(always)]
    fn activations(&self, tokens: usize) -> *const u8 {
        self.input.slices(tokens, self.slices.clone())
    }

    /// Adds the products of a tile of tokens and the next one: to the sums of the first rows with both, then to those of the second rows.
    #[inline(always)]
    fn add_two<S: Simd>(&mut self, simd: S, tokens: usize, sums: &mut AllSums, places: [usize; 4]) {
        self.begin::<0>(sums, places[0]);
        self.begin::<1>(sums, places[1]);
        self.begin::<2>(sums, places[2]);
        self.begin::<3>(sums, places[3]);
        let (first_x, first_y) = (self.activations(tokens), self.activations(tokens + 1));
        for slice in 0..self.slices.len() {
            for part in 0..E::PARTS {
                // SAFETY: see above.
                unsafe {
                    if part == 0 {
                        self.tiles.load::<6>(first_x.wrapping_add(slice * TILE_BYTES), TILE_ROW_BYTES);
                    }
                    self.tiles.load::<4>(self.panel.tile(slice, 0, part), TILE_ROW_BYTES);
                    self.tiles.add_bf16::<0, 4, 6>();
                    self.tiles.load::<5>(self.panel.tile(slice, 1, part), TILE_ROW_BYTES);
                    self.tiles.add_bf16::<2, 5, 6>();
                    if part == 0 {
                        self.tiles.load::<7>(first_y.wrapping_add(slice * TILE_BYTES), TILE_ROW_BYTES);
                    }
                    self.tiles.add_bf16::<1, 4, 7>();
                    self.tiles.add_bf16::<3, 5, 7>();
                }
            }
            self.next.advance(simd, self.lines);
        }
        self.end::<0>(sums, places[0]);
        self.end::<1>(sums, places[1]);
        self.end::<2>(sums, places[2]);
        self.end::<3>(sums, places[3]);
    }

    /// The same for a single tile of tokens.
    #[inline(always)]
    fn add_one<S: Simd>(&mut self, simd: S, tokens: usize, sums: &mut AllSums, places: [usize; 2]) {
        self.begin::<0>(sums, places[0]);
        self.begin::<1>(sums, places[1]);
        let first_x = self.activations(tokens);
        for slice in 0..self.slices.len() {
            // SAFETY: see above.
            unsafe { self.tiles.load::<6>(first_x.wrapping_add(slice * TILE_BYTES), TILE_ROW_BYTES) };
            for part in 0..E::PARTS {
                // SAFETY: see above.
                unsafe {
                    self.tiles.load::<4>(self.panel.tile(slice, 0, part), TILE_ROW_BYTES);
                    self.tiles.add_bf16::<0, 4, 6>();
                    self.tiles.load::<5>(self.panel.tile(slice, 1, part), TILE_ROW_BYTES);
                    self.tiles.add_bf16::<1, 5, 6>();
                }
            }
            self.next.advance(simd, self.lines);
        }
        self.end::<0>(sums, places[0]);
        self.end::<1>(sums, places[1]);
    }

    /// The same for a tile of tokens whose activations are split: a panel has the columns whose products are summed up apart.
    #[inline(always)]
    fn add_split<S: Simd>(&mut self, simd: S, tokens: usize, sums: &mut AllSums, places: [usize; 2]) {
        self.tiles.zero::<0>();
        self.tiles.zero::<1>();
        self.tiles.zero::<2>();
        self.tiles.zero::<3>();
        let (first_x, [x_apart, x_part_apart]) = (self.activations(tokens), self.input.apart());
        for slice in 0..self.slices.len() {
            let x = first_x.wrapping_add(slice * x_apart);
            for part in 0..E::PARTS {
                // SAFETY: see above; the parts of a slice lie one after the other.
                unsafe {
                    self.tiles.load::<4>(self.panel.tile(slice, 0, part), TILE_ROW_BYTES);
                    self.tiles.load::<5>(self.panel.tile(slice, 1, part), TILE_ROW_BYTES);
                    self.tiles.load::<6>(x, TILE_ROW_BYTES);
                    self.tiles.load::<7>(x.add(x_part_apart), TILE_ROW_BYTES);
                    if part == 0 {
                        self.tiles.add_bf16::<0, 4, 6>();
                        self.tiles.add_bf16::<1, 5, 6>();
                    } else {
                        self.tiles.add_bf16::<2, 4, 6>();
                        self.tiles.add_bf16::<3, 5, 6>();
                    }
                    self.tiles.load::<6>(x.add(2 * x_part_apart), TILE_ROW_BYTES);
                    self.tiles.add_bf16::<2, 4, 7>();
                    self.tiles.add_bf16::<3, 5, 7>();
                    self.tiles.add_bf16::<2, 4, 6>();
                    self.tiles.add_bf16::<3, 5, 6>();
                }
            }
            self.next.advance(simd, self.lines);
        }
        let mut results = [ZEROS; 4];
        // SAFETY: see above.
        unsafe {
            self.tiles.store::<0>(results[0].as_mut_ptr().cast(), TILE_ROW_BYTES);
            self.tiles.store::<1>(results[1].as_mut_ptr().cast(), TILE_ROW_BYTES);
            self.tiles.store::<2>(results[2].as_mut_ptr().cast(), TILE_ROW_BYTES);
            self.tiles.store::<3>(results[3].as_mut_ptr().cast(), TILE_ROW_BYTES);
        }
        for (i, place) in places.into_iter().enumerate() {
            let sums = &mut sums[place];
            if self.slices.start == 0 {
                sums.write(ZEROS);
            }
            // SAFETY: just written, or for the panel before.
            add_split_sums(unsafe { sums.assume_init_mut() }, &results[i], &results[i + 2]);
        }
    }
}

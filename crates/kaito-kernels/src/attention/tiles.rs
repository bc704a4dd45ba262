//! Register blocking: the queries of a block in tiles.

use super::{BLOCK_QUERIES, prefetch::PREFETCHED_BYTES};
use crate::{partition::EvenSplit, simd::Simd};

/// Queries of a tile at most.
const MOST: usize = 6;

/// Queries in tiles of nearly the same size, so that a tile's sums stay in registers: 8 are 4 and 4, and not 6 and 2.
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    /// Where each tile begins and the last one ends.
    bounds: [usize; BLOCK_QUERIES.div_ceil(MOST) + 1],
    count: usize,
    largest: usize,
}

impl Tiles {
    /// # Panics
    /// If there are more than [`BLOCK_QUERIES`].
    pub(super) fn of(queries: usize) -> Self {
        assert!(queries <= BLOCK_QUERIES);
        let split = EvenSplit::of_at_most(queries, MOST);
        let mut bounds = [0; BLOCK_QUERIES.div_ceil(MOST) + 1];
        // A table, since the loops over tiles would divide for each.
        for (i, bound) in bounds[..=split.count()].iter_mut().enumerate() {
            *bound = split.start(i);
        }
        Self { bounds, count: split.count(), largest: queries.div_ceil(split.count()) }
    }

    /// Vectors of sums that a tile has for each of its queries: 8, 4 or 2.
    #[inline(always)]
    pub(super) fn vectors<S: Simd>(self) -> usize {
        match (self.largest, S::MANY_REGISTERS) {
            _ if S::IS_FALLBACK => 2,
            (..=3, true) => 8,
            (4.., true) | (..=3, false) => 4,
            (4.., false) => 2,
        }
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    #[inline(always)]
    pub(super) fn tile(&self, i: usize) -> Tile {
        Tile { query: self.bounds[i], queries: self.bounds[i + 1] - self.bounds[i], number: i, of: self.count }
    }
}

/// Some queries of a block.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    /// The first one.
    pub(super) query: usize,
    pub(super) queries: usize,
    number: usize,
    of: usize,
}

impl Tile {
    /// When to prefetch the next KV block, at the pace at which this one is read: `taken` bytes of each row of `row` bytes. The tiles
    /// divide the prefetches among themselves, and each makes a few at a time: a processor whose queue of loads is full stalls.
    #[inline(always)]
    pub(super) fn prefetches(self, row: usize, taken: usize) -> Due {
        let step = row * PREFETCHED_BYTES / taken;
        Due { next: self.number * step, step: self.of * step }
    }
}

/// Places, in bytes, at which a prefetch is due.
#[derive(Clone, Copy)]
pub(super) struct Due {
    next: usize,
    step: usize,
}

impl Due {
    /// Whether one is due, once computing has come to `place`.
    #[inline(always)]
    pub(super) fn is_now(&mut self, place: usize) -> bool {
        let due = place >= self.next;
        if due {
            self.next += self.step;
        }
        due
    }
}

/// Whether a tile of `queries` may have `vectors` vectors of each, see [`Tiles::vectors`]: others need not be compiled. What is left
/// over, 2 vectors or 1, is for all.
pub(super) const fn may_be<S: Simd>(queries: usize, vectors: usize) -> bool {
    match (vectors, S::MANY_REGISTERS) {
        (8, many) => many && queries <= 3,
        // Tiles are of nearly the same size: the smallest may have one query fewer than the largest.
        (4, true) => queries >= 3,
        (4, false) => queries <= 3 && !S::IS_FALLBACK,
        _ => true,
    }
}

/// Does `$work` for each `$tile`, whose number of queries is the constant `$Q`, with `$V` vectors of each.
macro_rules! tiled {
    ($tiles:expr, $S:ident, $V:expr, |$Q:ident, $tile:ident| $work:expr) => {{
        let tiles: &$crate::attention::tiles::Tiles = $tiles;
        for i in 0..tiles.count() {
            let $tile = tiles.tile(i);
            match $tile.queries {
                1 if const { $crate::attention::tiles::may_be::<$S>(1, $V) } => {
                    const $Q: usize = 1;
                    $work
                }
                2 if const { $crate::attention::tiles::may_be::<$S>(2, $V) } => {
                    const $Q: usize = 2;
                    $work
                }
                3 if const { $crate::attention::tiles::may_be::<$S>(3, $V) } => {
                    const $Q: usize = 3;
                    $work
                }
                4 if const { $crate::attention::tiles::may_be::<$S>(4, $V) } => {
                    const $Q: usize = 4;
                    $work
                }
                5 if const { $crate::attention::tiles::may_be::<$S>(5, $V) } => {
                    const $Q: usize = 5;
                    $work
                }
                6 if const { $crate::attention::tiles::may_be::<$S>(6, $V) } => {
                    const $Q: usize = 6;
                    $work
                }
                _ => unreachable!(),
            }
        }
    }};
}

pub(super) use tiled;

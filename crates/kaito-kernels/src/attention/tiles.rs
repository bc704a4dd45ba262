//! How the queries of a block share out registers.

use super::{BLOCK_QUERIES, ahead::ASKED_BYTES};
use crate::simd::Simd;

/// Queries of a tile at most.
const MOST: usize = 6;

/// Queries in tiles of nearly the same size, so that a tile's sums stay in registers: 8 are 4 and 4, not 6 and 2.
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    /// Where each tile begins and the last one ends.
    bounds: [usize; BLOCK_QUERIES.div_ceil(MOST) + 1],
    count: usize,
    largest: usize,
}

impl Tiles {
    pub(super) fn of(queries: usize) -> Self {
        let count = queries.div_ceil(MOST);
        let mut bounds = [0; BLOCK_QUERIES.div_ceil(MOST) + 1];
        for (i, bound) in bounds[..=count].iter_mut().enumerate() {
            *bound = i * queries / count;
        }
        Self { bounds, count, largest: queries.div_ceil(count) }
    }

    /// Vectors that a tile has of each of its queries.
    #[inline(always)]
    pub(super) fn vectors<S: Simd>(self) -> usize {
        match (self.largest, S::MANY_REGISTERS) {
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
    /// When to ask for what comes next, as much as is gone through: of each row of `row` bytes `taken`. The tiles share it out,
    /// and each asks bit by bit: a processor that has too much to ask for computes nothing.
    #[inline(always)]
    pub(super) fn asked(self, row: usize, taken: usize) -> Asked {
        let step = row * ASKED_BYTES / taken;
        Asked { next: self.number * step, step: self.of * step }
    }
}

/// Places, in bytes, at which it is time to ask.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    next: usize,
    step: usize,
}

impl Asked {
    /// Whether it is time, once computing has come to `place`.
    #[inline(always)]
    pub(super) fn is_due(&mut self, place: usize) -> bool {
        let due = place >= self.next;
        if due {
            self.next += self.step;
        }
        due
    }
}

/// Does `$work` for each `$tile`, whose number of queries is the constant `$Q`.
macro_rules! tiled {
    ($tiles:expr, |$Q:ident, $tile:ident| $work:expr) => {{
        let tiles: &$crate::attention::tiles::Tiles = $tiles;
        for i in 0..tiles.count() {
            let $tile = tiles.tile(i);
            match $tile.queries {
                1 => {
                    const $Q: usize = 1;
                    $work
                }
                2 => {
                    const $Q: usize = 2;
                    $work
                }
                3 => {
                    const $Q: usize = 3;
                    $work
                }
                4 => {
                    const $Q: usize = 4;
                    $work
                }
                5 => {
                    const $Q: usize = 5;
                    $work
                }
                _ => {
                    const $Q: usize = 6;
                    $work
                }
            }
        }
    }};
}

pub(super) use tiled;

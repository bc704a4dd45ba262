//! The scores of queries and the keys of a KV block.

use super::{
    BLOCK_TOKENS, Prefetch,
    paged_heads::KvBlock,
    tiles::{Tile, Tiles, tiled},
};
use crate::{
    kv::KvElement,
    simd::{Kernel, Simd},
};

/// `scores[q][t] = scale * slot_scales[t] * sum_d queries[q][d] * keys[t][d]` for the tokens `t` of some pages: each quarter
/// of `d` is summed up in order, then the quarters are, since so rounding errors are a fraction of those of one long sum.
pub(super) struct Scores<'a, E> {
    /// `[query][dim]`.
    pub queries: &'a [f32],
    /// `[dim][page_size]` in each page.
    pub keys: KvBlock<'a, E>,
    pub scale: f32,
    /// One for each token; none if they are 1.
    pub slot_scales: &'a [f32],
    /// `[query][score_stride]`.
    pub scores: &'a mut [f32],
    pub score_stride: usize,
    /// What is prefetched meanwhile.
    pub prefetch: &'a mut Prefetch,
}

/// Vectors of a KV block at most: no instruction set has fewer than 4 lanes.
const MOST_VECTORS: usize = BLOCK_TOKENS / 4;

impl<E: KvElement> Kernel for Scores<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let mut keys = [std::ptr::null(); MOST_VECTORS];
        let mut count = 0;
        for page in self.keys.pages() {
            for vector in 0..self.keys.page_size() / S::LANES {
                keys[count] = page.wrapping_add(vector * S::LANES * E::SIZE);
                count += 1;
            }
        }
        let tiles = Tiles::of(self.queries.len() / self.keys.dim());
        match tiles.vectors::<S>() {
            8 if const { S::MANY_REGISTERS } => self.vectors::<S, 8>(simd, &tiles, &keys, count),
            2 if const { !S::MANY_REGISTERS } => self.vectors::<S, 2>(simd, &tiles, &keys, count),
            _ => self.vectors::<S, 4>(simd, &tiles, &keys, count),
        }
    }
}

impl<E: KvElement> Scores<'_, E> {
    /// `V` vectors of tokens at a time, with all queries while their keys are in the cache.
    #[inline(always)]
    fn vectors<S: Simd, const V: usize>(&mut self, simd: S, tiles: &Tiles, keys: &[*const u8], count: usize) {
        let mut first = 0;
        while first + V <= count {
            tiled!(tiles, S, V, |Q, tile| self.tile::<S, Q, V>(simd, tile, first, keys));
            first += V;
        }
        while first < count {
            tiled!(tiles, S, 1, |Q, tile| self.tile::<S, Q, 1>(simd, tile, first, keys));
            first += 1;
        }
    }

    /// `Q` queries, `V` vectors of tokens from vector `first` of all pages on.
    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // Iterators take closures, which are not compiled for the instruction set.
    fn tile<S: Simd, const Q: usize, const V: usize>(&mut self, simd: S, tile: Tile, first: usize, keys: &[*const u8]) {
        let (dim, row) = (self.keys.dim(), self.keys.page_size() * E::SIZE);
        let mut vectors = [std::ptr::null::<u8>(); V];
        vectors.copy_from_slice(&keys[first..first + V]);
        let mut due = tile.prefetches(row, V * S::LANES * E::SIZE);
        let mut queries = self.queries[tile.query * dim..(tile.query + Q) * dim].as_ptr();
        let quarter = dim.div_ceil(4) * row;
        let mut totals = [[simd.splat(0.0); V]; Q];
        let mut place = 0;
        while place < dim * row {
            let mut sums = [[simd.splat(0.0); V]; Q];
            let end = (place + quarter).min(dim * row);
            while place < end {
                if due.is_now(place) {
                    self.prefetch.next(simd);
                }
                // SAFETY: a page of a `KvBlock` has `dim` rows of `page_size` elements, a multiple of `LANES`; as many elements has
                // each of the tile's `Q` queries.
                unsafe {
                    let mut tokens = [simd.splat(0.0); V];
                    for j in 0..V {
                        tokens[j] = E::load(simd, vectors[j].add(place));
                    }
                    for i in 0..Q {
                        let query = simd.splat(*queries.add(i * dim));
                        for j in 0..V {
                            sums[i][j] = simd.mul_add(query, tokens[j], sums[i][j]);
                        }
                    }
                }
                place += row;
                queries = queries.wrapping_add(1);
            }
            for i in 0..Q {
                for j in 0..V {
                    totals[i][j] = simd.add(totals[i][j], sums[i][j]);
                }
            }
        }
        for j in 0..V {
            let token = (first + j) * S::LANES;
            let scaled = !self.slot_scales.is_empty();
            let slot_scales = if scaled { simd.load_slice(&self.slot_scales[token..]) } else { simd.splat(1.0) };
            for i in 0..Q {
                let score = if scaled { simd.mul(totals[i][j], slot_scales) } else { totals[i][j] };
                let score = simd.mul(score, simd.splat(self.scale));
                simd.store_slice(&mut self.scores[(tile.query + i) * self.score_stride + token..], score);
            }
        }
    }
}

//! Activations in the order in which products read them.

use std::{iter, mem, ops::Range};

#[cfg(any(target_arch = "x86_64", test))]
use super::tiles::pack::PackedInput;
use super::{Compute, InputForm, compute::Form};
#[cfg(target_arch = "x86_64")]
use crate::simd::Level;
use crate::{
    DType, Rows, ThreadPool,
    partition::EvenSplit,
    simd::{CACHE_LINE, Kernel, Simd, dispatch},
};

/// Tokens of a tile at most, so that the sums of a few weight rows with them stay in registers.
pub(super) const MAX_TILE_TOKENS: usize = 6;

/// Values of a cache line, and so whole vectors of any instruction set.
pub(super) const LINE: usize = CACHE_LINE / size_of::<f32>();

/// Up to so many tokens are copied by the calling thread: that takes less time than waking another one.
const ALONE_TOKENS: usize = 16;

/// Activations of some tokens, copied for products with any number of weight matrices. Its memory is used again and again.
///
/// Tokens that are multiplied together lie together, so that a product reads memory sequentially. Activations as they come are
/// often a power of two apart, and then the cache lines of all tokens map to the same few sets of the first level cache.
///
/// ```text
/// values: [tile][vector of columns][token of the tile][lane]
/// ```
///
/// Tiles are of nearly the same size. Columns that the last vector lacks are zeros.
#[derive(Debug)]
pub struct TiledInput {
    /// How the tokens that it has now lie here.
    pub(super) form: InputForm,
    tokens: usize,
    pub(super) cols: usize,
    padded_cols: usize,
    /// What is left of earlier tokens is overwritten, never read.
    values: Vec<f32>,
    /// Elements of `values` before the first of these tokens, so that vectors are aligned to cache lines.
    skipped: usize,
    /// The activations, if their form is one of tile registers.
    #[cfg(any(target_arch = "x86_64", test))]
    pub(super) packed: PackedInput,
}

/// Tokens that are multiplied together.
pub(super) struct Tile<'a> {
    pub first_token: usize,
    pub tokens: usize,
    /// `[vector of columns][token][lane]`
    pub values: &'a [f32],
}

impl TiledInput {
    /// No tokens.
    pub fn new() -> Self {
        Self {
            form: InputForm::of(Compute::Exact, DType::F32),
            tokens: 0,
            cols: 0,
            padded_cols: 0,
            values: Vec::new(),
            skipped: 0,
            #[cfg(any(target_arch = "x86_64", test))]
            packed: PackedInput::default(),
        }
    }

    /// Makes room for `tokens` rows of `cols` activations of this form.
    pub fn reserve(&mut self, form: InputForm, tokens: usize, cols: usize) {
        match form.0 {
            #[cfg(any(target_arch = "x86_64", test))]
            Form::Tiles { split, .. } => self.packed.reserve(split, tokens, cols),
            _ => {
                let len = tokens * cols.next_multiple_of(LINE) + LINE;
                self.values.reserve_exact(len.saturating_sub(self.values.len()));
            }
        }
    }

    /// Copies `tokens` rows of `cols` activations for products with weights that `form` was made for.
    ///
    /// # Panics
    /// If the shape does not fit its data.
    pub fn tile(&mut self, pool: &ThreadPool, form: InputForm, tokens: usize, cols: usize, input: Rows) {
        input.check("input", tokens, cols);
        (self.form, self.tokens, self.cols) = (form, tokens, cols);
        #[cfg(target_arch = "x86_64")]
        if form.0 == Form::Pairs && cols % 2 == 1 {
            self.form.0 = Form::RoundedVectors(Level::Avx512);
        }
        let (level, lanes) = match self.form.0 {
            Form::Vectors(level) => (level, Lanes::Exact),
            Form::RoundedVectors(level) => (level, Lanes::Rounded),
            #[cfg(target_arch = "x86_64")]
            Form::Pairs => (Level::Avx512, Lanes::Pairs),
            #[cfg(any(target_arch = "x86_64", test))]
            Form::Tiles { unit, split } => {
                self.packed.pack(unit, pool, split, [tokens, cols], input);
                return;
            }
        };
        let padded_cols = if lanes == Lanes::Pairs { cols / 2 } else { cols }.next_multiple_of(LINE);
        let len = tokens * padded_cols;
        self.values.resize(self.values.len().max(len + LINE), 0.0);
        let skipped = self.values.as_ptr().align_offset(CACHE_LINE).min(LINE);
        (self.padded_cols, self.skipped) = (padded_cols, skipped);
        let tiles = tiles_of(tokens);
        let mut rest = &mut self.values[skipped..skipped + len];
        let mut next = 0..tiles.count();
        let parts = iter::from_fn(|| {
            let tokens = tiles.range(next.next()?);
            let (values, others) = mem::take(&mut rest).split_at_mut(tokens.len() * padded_cols);
            rest = others;
            Some((tokens, values))
        });
        let copy = |(tokens, values)| dispatch(level, CopyTile { input, tokens, cols, lanes, values });
        if tokens <= ALONE_TOKENS {
            parts.for_each(copy);
            return;
        }
        pool.for_each_item(tiles.count(), parts, copy);
    }

    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    pub(super) fn tile_at(&self, tile: usize) -> Tile<'_> {
        let tokens = tiles_of(self.tokens).range(tile);
        let (first, end) = (tokens.start * self.padded_cols, tokens.end * self.padded_cols);
        Tile {
            first_token: tokens.start,
            tokens: tokens.len(),
            values: &self.values[self.skipped + first..self.skipped + end],
        }
    }

    /// The fewest and the most tokens that a tile has.
    pub(super) fn tile_sizes(&self) -> (usize, usize) {
        let tiles = tiles_of(self.tokens);
        (tiles.least(), tiles.most())
    }
}

impl Default for TiledInput {
    fn default() -> Self {
        Self::new()
    }
}

/// The tiles of some tokens, as `Partition::of_product` has them too.
fn tiles_of(tokens: usize) -> EvenSplit {
    EvenSplit::of_at_most(tokens, MAX_TILE_TOKENS)
}

/// What becomes of activations that are copied.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lanes {
    Exact,
    Rounded,
    Pairs,
}

struct CopyTile<'a> {
    input: Rows<'a>,
    tokens: Range<usize>,
    cols: usize,
    lanes: Lanes,
    values: &'a mut [f32],
}

impl Kernel for CopyTile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match self.lanes {
            Lanes::Exact => self.copy::<S, false>(simd),
            Lanes::Rounded => self.copy::<S, true>(simd),
            Lanes::Pairs => self.copy_pairs(simd),
        }
    }
}

impl CopyTile<'_> {
    /// Each lane has two columns, rounded to bf16; lanes are those of a cache line.
    #[inline(always)]
    fn copy_pairs<S: Simd>(self, simd: S) {
        let tokens = self.tokens.len();
        for t in 0..tokens {
            let row = self.input.row(self.tokens.start + t, self.cols);
            let targets = self.values[t * LINE..].chunks_mut(tokens * LINE);
            for (i, target) in targets.enumerate() {
                let mut pairs = [0; LINE];
                for at in (0..2 * LINE).step_by(S::LANES) {
                    let left = row.len().saturating_sub(2 * LINE * i + at).min(S::LANES);
                    let x = simd.load_partial(&row[row.len().min(2 * LINE * i + at)..][..left]);
                    simd.store_bf16(&mut pairs[at / 2..], simd.round_to_bf16(x));
                }
                for (value, pair) in target.iter_mut().zip(pairs) {
                    *value = f32::from_bits(pair);
                }
            }
        }
    }

    #[inline(always)]
    fn copy<S: Simd, const ROUNDED: bool>(self, simd: S) {
        let tokens = self.tokens.len();
        for t in 0..tokens {
            let row = self.input.row(self.tokens.start + t, self.cols);
            let mut targets = self.values[t * S::LANES..].chunks_mut(tokens * S::LANES);
            let mut vectors = row.chunks_exact(S::LANES);
            for (vector, target) in (&mut vectors).zip(&mut targets) {
                let vector = simd.load_slice(vector);
                simd.store_slice(target, if ROUNDED { simd.round_to_bf16(vector) } else { vector });
            }
            let mut last = vectors.remainder();
            for target in targets {
                let vector = simd.load_partial(last);
                simd.store_slice(target, if ROUNDED { simd.round_to_bf16(vector) } else { vector });
                last = &[];
            }
        }
    }
}

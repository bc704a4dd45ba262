//! Activations, quantised to 8 bits.

use std::ops::Range;

use super::{
    GROUP,
    input_groups::{Groups, QuantizeGroups},
    source::{GateUp, Plain, Source},
};
use crate::{
    Rows, ThreadPool,
    partition::EvenSplit,
    simd::{Level, dispatch},
};

/// The stored byte that stands for the weight zero.
pub(super) const ZERO_POINT: i32 = 128;

/// [`GROUP`] numbers of one token, from -127 to 127: two cache lines.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Numbers(pub [i8; GROUP]);

const _: () = assert!(size_of::<Numbers>() == GROUP);

/// Tokens that lie together at most: as many as a tile register has rows.
pub(super) const INPUT_TILE: usize = 16;

/// How activations are quantised: with what in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Grouping {
    /// Groups of 128 are rotated and have one scale: for weights that [`quantize`](super::quantize) wrote.
    Rotated,
    /// Subgroups of 32 have a scale each, and none is rotated: for weights that [`repack`](super::repack) wrote of a format whose scales are
    /// those of 32 weights.
    Subgroups,
    /// Groups of 128 have one scale, and none is rotated: for weights that [`repack`](super::repack) wrote of a format whose parts of a
    /// block have integers as factors of the block's scale.
    Unrotated,
}

impl Grouping {
    /// Scales of a group.
    pub(super) fn scales(self) -> usize {
        match self {
            Self::Rotated | Self::Unrotated => 1,
            Self::Subgroups => SUBGROUPS,
        }
    }

    /// Parts of a group that have a correction.
    pub(super) fn corrections(self) -> usize {
        match self {
            Self::Rotated => 1,
            Self::Subgroups | Self::Unrotated => SUBGROUP_SUMS,
        }
    }

    /// Sums of a group that are multiplied by the minima of weights.
    pub(super) fn sums(self) -> usize {
        if self == Self::Subgroups { SUBGROUP_SUMS } else { 0 }
    }

    /// Pairs of sums of a group that are multiplied by the factors of minima of weights.
    pub(super) fn pairs(self) -> usize {
        if self == Self::Unrotated { SUBGROUP_SUMS / 2 } else { 0 }
    }
}

/// Columns of a subgroup, and subgroups of a group.
pub(super) const SUBGROUP: usize = 32;
pub(super) const SUBGROUPS: usize = GROUP / SUBGROUP;

/// Sums of a group in subgroups: of each subgroup, and then of each half of one.
pub(super) const SUBGROUP_SUMS: usize = 3 * SUBGROUPS;

/// Tokens, quantised for products with quantised weights. Its memory is used again and again.
///
/// The tokens are split evenly into tiles of at most [`INPUT_TILE`]. Numbers, scales and sums all lie as
/// `[tile][group][subgroup][token of the tile]`, where each tile has [`QuantizedInput::width`] tokens; those that it lacks are zeros.
/// Without subgroups a group counts as one, and so it does for numbers. Sums of subgroups are followed by those of their halves.
#[derive(Debug)]
pub struct QuantizedInput {
    pub(super) tokens: usize,
    pub(super) cols: usize,
    grouping: Grouping,
    tiles: EvenSplit,
    width: usize,
    numbers: Vec<Numbers>,
    /// What a subgroup's numbers are multiplied by.
    scales: Vec<f32>,
    /// `-ZERO_POINT * sum(numbers)`: what a sum of products with stored weights begins with, since these are too large by as much.
    corrections: Vec<i32>,
    /// `sum(numbers) * scale`, where there are subgroups: what is multiplied by the minimum of weights.
    sums: Vec<f32>,
    /// `sum(numbers)` of two parts that follow each other, where groups are not rotated: what is multiplied by the factors of minima.
    pairs: Vec<SumPair>,
}

/// Numbers, scales, corrections, sums and pairs of them.
#[cfg(test)]
pub(super) type AllGroups = (Vec<Numbers>, Vec<f32>, Vec<i32>, Vec<f32>, Vec<SumPair>);

/// Sums of the numbers of two parts of a group.
pub(super) type SumPair = [i16; 2];

/// A group of the first of some tokens of one tile: those of the others follow, and the next group lies
/// [`QuantizedInput::width`] further on.
#[derive(Clone, Copy)]
pub(super) struct InputGroups {
    pub numbers: *const Numbers,
    pub scales: *const f32,
    pub corrections: *const i32,
    pub sums: *const f32,
    pub pairs: *const SumPair,
    /// From one subgroup to the next: [`QuantizedInput::width`].
    pub width: usize,
}

impl InputGroups {
    /// Those that lie `count` further on, of input in this grouping.
    #[inline(always)]
    pub(super) fn skip(self, grouping: Grouping, count: usize) -> Self {
        Self {
            numbers: self.numbers.wrapping_add(count),
            scales: self.scales.wrapping_add(grouping.scales() * count),
            corrections: self.corrections.wrapping_add(grouping.corrections() * count),
            sums: self.sums.wrapping_add(grouping.sums() * count),
            pairs: self.pairs.wrapping_add(grouping.pairs() * count),
            ..self
        }
    }

    /// The next group.
    #[inline(always)]
    pub(super) fn next(self, grouping: Grouping) -> Self {
        self.skip(grouping, self.width)
    }

    /// The same groups from a later token of the tile on.
    #[inline(always)]
    pub(super) fn beginning_at(self, token: usize) -> Self {
        Self {
            numbers: self.numbers.wrapping_add(token),
            scales: self.scales.wrapping_add(token),
            corrections: self.corrections.wrapping_add(token),
            sums: self.sums.wrapping_add(token),
            pairs: self.pairs.wrapping_add(token),
            ..self
        }
    }
}

impl QuantizedInput {
    /// No tokens, for weights of this grouping.
    pub fn new(grouping: Grouping) -> Self {
        Self {
            tokens: 0,
            cols: 0,
            grouping,
            tiles: EvenSplit::of_at_most(0, INPUT_TILE),
            width: 0,
            numbers: Vec::new(),
            scales: Vec::new(),
            corrections: Vec::new(),
            sums: Vec::new(),
            pairs: Vec::new(),
        }
    }

    /// Makes room for up to `tokens` rows of `cols` activations.
    pub fn reserve(&mut self, tokens: usize, cols: usize) {
        fn reserve<E>(memory: &mut Vec<E>, len: usize) {
            memory.reserve_exact(len.saturating_sub(memory.len()));
        }
        let (groups, grouping) = (tokens.next_multiple_of(INPUT_TILE) * cols.div_ceil(GROUP), self.grouping);
        reserve(&mut self.numbers, groups);
        reserve(&mut self.scales, groups * grouping.scales());
        reserve(&mut self.corrections, groups * grouping.corrections());
        reserve(&mut self.sums, groups * grouping.sums());
        reserve(&mut self.pairs, groups * grouping.pairs());
    }

    /// Quantises `tokens` rows of `cols` activations: the largest magnitude of what shares a scale becomes 127. An infinity or NaN
    /// makes all products with what shares its scale NaN; magnitudes that are all below 2^-112 are taken for zeros.
    ///
    /// # Panics
    /// If a shape does not fit its data.
    pub fn quantize(&mut self, pool: &ThreadPool, tokens: usize, cols: usize, input: Rows) {
        self.quantize_on(Level::chosen(), pool, tokens, cols, input);
    }

    /// Quantises what [`swiglu`](crate::swiglu) makes of rows of `inner` gates and `inner` ups, in its bits: those of its columns that
    /// are `columns`.
    ///
    /// # Panics
    /// If a shape does not fit its data, or there are no such columns.
    pub fn quantize_swiglu(
        &mut self,
        pool: &ThreadPool,
        tokens: usize,
        gate_up: Rows,
        inner: usize,
        columns: Range<usize>,
    ) {
        gate_up.check("gate_up", tokens, inner.saturating_mul(2));
        let Range { start: first_column, end } = columns;
        assert!(first_column <= end && end <= inner, "columns {first_column}..{end} of {inner}");
        let cols = end - first_column;
        self.fill(Level::chosen(), pool, tokens, cols, GateUp { rows: gate_up, inner, first_column, cols });
    }

    pub(super) fn quantize_on(&mut self, level: Level, pool: &ThreadPool, tokens: usize, cols: usize, input: Rows) {
        input.check("input", tokens, cols);
        self.fill(level, pool, tokens, cols, Plain { rows: input, cols });
    }

    fn fill<T: Source>(&mut self, level: Level, pool: &ThreadPool, tokens: usize, cols: usize, source: T) {
        (self.tokens, self.cols) = (tokens, cols);
        let tiles = EvenSplit::of_at_most(tokens, INPUT_TILE);
        let most = tiles.most();
        // Products by tile registers are compiled for two widths.
        let width = match most {
            0..=2 => most,
            3..=8 => 8,
            _ => INPUT_TILE,
        };
        (self.tiles, self.width) = (tiles, width);
        let all = cols.div_ceil(GROUP);
        let of_tile = all * width;
        let grouping = self.grouping;
        self.numbers.resize(tiles.count() * of_tile, Numbers([0; GROUP]));
        self.scales.resize(tiles.count() * of_tile * grouping.scales(), 0.0);
        self.corrections.resize(tiles.count() * of_tile * grouping.corrections(), 0);
        self.sums.resize(tiles.count() * of_tile * grouping.sums(), 0.0);
        self.pairs.resize(tiles.count() * of_tile * grouping.pairs(), [0; 2]);
        if of_tile == 0 {
            return;
        }
        let part_groups = (T::PART_GROUPS / width).clamp(1, all);
        let (of_part, parts_of_tile) = (part_groups * width, all.div_ceil(part_groups));
        let numbers = parts(&mut self.numbers, of_tile, of_part);
        let mut scales = parts_of_groups(&mut self.scales, of_tile, of_part, grouping.scales());
        let mut corrections = parts_of_groups(&mut self.corrections, of_tile, of_part, grouping.corrections());
        let mut sums = parts_of_groups(&mut self.sums, of_tile, of_part, grouping.sums());
        let mut pairs = parts_of_groups(&mut self.pairs, of_tile, of_part, grouping.pairs());
        let parts = numbers.map(move |numbers| Groups {
            grouping,
            numbers,
            scales: scales.next().unwrap_or_default(),
            corrections: corrections.next().unwrap_or_default(),
            sums: sums.next().unwrap_or_default(),
            pairs: pairs.next().unwrap_or_default(),
            width,
        });
        pool.for_each_item(tiles.count() * parts_of_tile, parts.enumerate(), |(part, mut groups)| {
            let (tile, first) = (part / parts_of_tile, part % parts_of_tile * part_groups);
            for lane in 0..width {
                if let Some(token) = tiles.range(tile).nth(lane) {
                    dispatch(level, QuantizeGroups { source, token, first, groups: &mut groups, lane });
                } else {
                    (0..groups.count()).for_each(|group| groups.set_to_zero(group, lane));
                }
            }
        });
    }

    /// How it was quantised.
    pub fn grouping(&self) -> Grouping {
        self.grouping
    }

    /// The tiles that the tokens are split into.
    pub(super) fn tiles(&self) -> EvenSplit {
        self.tiles
    }

    /// Tokens that each tile has room for.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    pub(super) fn groups(&self) -> usize {
        self.cols.div_ceil(GROUP)
    }

    /// The numbers of a group of a token, and the scale of the first of its subgroups; the others lie [`QuantizedInput::width`] apart.
    #[cfg(test)]
    pub(super) fn group(&self, token: usize, group: usize) -> ([i8; GROUP], &[f32]) {
        let tile = self.tiles.index_of(token);
        let (at, lane) = ((tile * self.groups() + group) * self.width, token - self.tiles.start(tile));
        (self.numbers[at + lane].0, &self.scales[at * self.grouping.scales() + lane..])
    }

    /// All of the memory's contents.
    #[cfg(test)]
    pub(super) fn all_groups(&self) -> AllGroups {
        let Self { numbers, scales, corrections, sums, pairs, .. } = self;
        (numbers.clone(), scales.clone(), corrections.clone(), sums.clone(), pairs.clone())
    }

    #[cfg(test)]
    pub(super) fn capacity(&self) -> [usize; 5] {
        let Self { numbers, scales, corrections, sums, pairs, .. } = self;
        [numbers.capacity(), scales.capacity(), corrections.capacity(), sums.capacity(), pairs.capacity()]
    }

    /// Groups from `group` on of whole tiles of tokens. `count` of them can be read, of each tile [`QuantizedInput::width`] tokens; the next
    /// tile lies `groups * width` further on.
    ///
    /// # Panics
    /// If there are not so many.
    #[inline(always)]
    pub(super) fn at_tiles(&self, tiles: Range<usize>, group: usize, count: usize) -> InputGroups {
        assert!(!tiles.is_empty() && group + count <= self.groups());
        let first = tiles.start * self.groups() + group;
        self.slices(first, (tiles.end - 1) * self.groups() + group + count, 0)
    }

    /// Groups from `group` on of tokens from `token` on. `count` of them can be read, each of `tokens` tokens.
    ///
    /// # Panics
    /// If there are not so many, or the tokens are not in one tile.
    #[inline(always)]
    pub(super) fn at(&self, token: usize, tokens: usize, group: usize, count: usize) -> InputGroups {
        let tile = self.tiles.index_of(token);
        let lane = token - self.tiles.start(tile);
        assert!(lane + tokens <= self.width && group + count <= self.groups());
        let first = tile * self.groups() + group;
        self.slices(first, first + count.max(1), lane)
    }

    /// Groups `first..end` of all tiles together, from a token of the first tile on.
    #[inline(always)]
    fn slices(&self, first: usize, end: usize, lane: usize) -> InputGroups {
        let width = self.width;
        let range = |parts: usize| first * parts * width + lane..end * parts * width;
        // What there is none of.
        let range_of = |parts: usize| if parts == 0 { 0..0 } else { range(parts) };
        let grouping = self.grouping;
        InputGroups {
            numbers: self.numbers[range(1)].as_ptr(),
            scales: self.scales[range(grouping.scales())].as_ptr(),
            corrections: self.corrections[range(grouping.corrections())].as_ptr(),
            sums: self.sums[range_of(grouping.sums())].as_ptr(),
            pairs: self.pairs[range_of(grouping.pairs())].as_ptr(),
            width,
        }
    }
}

/// The parts that are quantised at a time: `of_part` elements each of the `of_tile` elements of a tile, the last one fewer.
fn parts<E: Send>(all: &mut [E], of_tile: usize, of_part: usize) -> impl Iterator<Item = &mut [E]> + Send {
    all.chunks_mut(of_tile).flat_map(move |tile| tile.chunks_mut(of_part))
}

/// The same for what a group has `count` elements of, maybe none: then there are no parts.
fn parts_of_groups<E: Send>(
    all: &mut [E],
    of_tile: usize,
    of_part: usize,
    count: usize,
) -> impl Iterator<Item = &mut [E]> + Send {
    parts(all, (of_tile * count).max(1), (of_part * count).max(1))
}

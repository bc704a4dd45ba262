//! Activations, quantised to 8 bits.

use std::ops::Range;

use super::{
    GROUP,
    rotation::rotate_activations,
    source::{GateUp, Plain, Source},
    weights::{ROUND, TINY, magnitude_bits},
};
use crate::{
    Rows, ThreadPool,
    partition::EvenSplit,
    simd::{Kernel, Level, MAX_LANES, Simd, dispatch},
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
    /// Subgroups of 32 have a scale each, and none is rotated: for weights that [`repack`](super::repack) wrote.
    Subgroups,
}

impl Grouping {
    /// Scales of a group.
    fn scales(self) -> usize {
        match self {
            Self::Rotated => 1,
            Self::Subgroups => SUBGROUPS,
        }
    }

    /// Parts of a group whose sums are there.
    fn sums(self) -> usize {
        match self {
            Self::Rotated => 1,
            Self::Subgroups => SUBGROUP_SUMS,
        }
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
}

/// A group of the first of some tokens of one tile: those of the others follow, and the next group lies
/// [`QuantizedInput::width`] further on.
#[derive(Clone, Copy)]
pub(super) struct InputGroups {
    pub numbers: *const Numbers,
    pub scales: *const f32,
    pub corrections: *const i32,
    pub sums: *const f32,
    /// From one subgroup to the next: [`QuantizedInput::width`].
    pub width: usize,
}

impl InputGroups {
    /// Those that lie `count` further on, of input without subgroups.
    #[inline(always)]
    pub(super) fn skip(self, count: usize) -> Self {
        Self {
            numbers: self.numbers.wrapping_add(count),
            scales: self.scales.wrapping_add(count),
            corrections: self.corrections.wrapping_add(count),
            ..self
        }
    }

    /// The next group, of input with subgroups.
    #[inline(always)]
    pub(super) fn next_with_subgroups(self) -> Self {
        Self {
            numbers: self.numbers.wrapping_add(self.width),
            scales: self.scales.wrapping_add(SUBGROUPS * self.width),
            corrections: self.corrections.wrapping_add(SUBGROUP_SUMS * self.width),
            sums: self.sums.wrapping_add(SUBGROUP_SUMS * self.width),
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
        reserve(&mut self.corrections, groups * grouping.sums());
        if grouping == Grouping::Subgroups {
            reserve(&mut self.sums, groups * grouping.sums());
        }
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
        let (scales, sums) = (grouping.scales(), grouping.sums());
        self.numbers.resize(tiles.count() * of_tile, Numbers([0; GROUP]));
        self.scales.resize(tiles.count() * of_tile * scales, 0.0);
        self.corrections.resize(tiles.count() * of_tile * sums, 0);
        // Without subgroups there are no minima, and the slices of these are empty.
        let minima = if grouping == Grouping::Subgroups { sums } else { 0 };
        self.sums.resize(tiles.count() * of_tile * minima, 0.0);
        if of_tile == 0 {
            return;
        }
        let part_groups = (T::PART_GROUPS / width).clamp(1, all);
        let (of_part, parts_of_tile) = (part_groups * width, all.div_ceil(part_groups));
        let numbers = parts(&mut self.numbers, of_tile, of_part);
        let factors = parts(&mut self.scales, of_tile * scales, of_part * scales);
        let corrections = parts(&mut self.corrections, of_tile * sums, of_part * sums);
        let mut sums = parts(&mut self.sums, (of_tile * minima).max(1), (of_part * minima).max(1));
        let parts = numbers.zip(factors).zip(corrections).map(move |part| (part, sums.next().unwrap_or_default()));
        let parts = parts.enumerate();
        pool.for_each_item(tiles.count() * parts_of_tile, parts, |(part, (((numbers, scales), corrections), sums))| {
            let (tile, first) = (part / parts_of_tile, part % parts_of_tile * part_groups);
            let mut groups = Groups { grouping, numbers, scales, corrections, sums, width };
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
    pub(super) fn grouping(&self) -> Grouping {
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
    pub(super) fn all_groups(&self) -> (Vec<Numbers>, Vec<f32>, Vec<i32>, Vec<f32>) {
        (self.numbers.clone(), self.scales.clone(), self.corrections.clone(), self.sums.clone())
    }

    #[cfg(test)]
    pub(super) fn capacity(&self) -> [usize; 4] {
        [self.numbers.capacity(), self.scales.capacity(), self.corrections.capacity(), self.sums.capacity()]
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
        let (scales, sums) = (range(self.grouping.scales()), range(self.grouping.sums()));
        InputGroups {
            numbers: self.numbers[range(1)].as_ptr(),
            scales: self.scales[scales].as_ptr(),
            corrections: self.corrections[sums.clone()].as_ptr(),
            sums: match self.grouping {
                Grouping::Rotated => std::ptr::null(),
                Grouping::Subgroups => self.sums[sums].as_ptr(),
            },
            width,
        }
    }
}

/// The parts that are quantised at a time: `of_part` elements each of the `of_tile` elements of a tile, the last one fewer.
fn parts<E: Send>(all: &mut [E], of_tile: usize, of_part: usize) -> impl Iterator<Item = &mut [E]> + Send {
    all.chunks_mut(of_tile).flat_map(move |tile| tile.chunks_mut(of_part))
}

/// Some groups of a tile of tokens.
struct Groups<'a> {
    grouping: Grouping,
    numbers: &'a mut [Numbers],
    scales: &'a mut [f32],
    corrections: &'a mut [i32],
    sums: &'a mut [f32],
    width: usize,
}

impl Groups<'_> {
    #[inline(always)]
    fn count(&self) -> usize {
        self.numbers.len() / self.width
    }

    /// Writes the group of a token.
    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // Iterators take closures.
    fn quantize<S: Simd>(&mut self, group: usize, lane: usize, values: &[f32; GROUP]) {
        let (at, width) = (group * self.width, self.width);
        let numbers = &mut self.numbers[at + lane];
        match self.grouping {
            Grouping::Rotated => {
                let factors = quantize_group::<S>(values, numbers);
                (self.scales[at + lane], self.corrections[at + lane]) = (factors.scale, factors.correction);
            }
            Grouping::Subgroups => {
                let (mut scales, mut sums) = ([0.0; SUBGROUPS], [0; SUBGROUP_SUMS]);
                quantize_subgroups(values, numbers, &mut scales, &mut sums);
                for subgroup in 0..SUBGROUPS {
                    self.scales[(at * SUBGROUPS) + subgroup * width + lane] = scales[subgroup];
                }
                for part in 0..SUBGROUP_SUMS {
                    let scale = scales[if part < SUBGROUPS { part } else { (part - SUBGROUPS) / 2 }];
                    let at = at * SUBGROUP_SUMS + part * width + lane;
                    self.corrections[at] = -ZERO_POINT * sums[part];
                    self.sums[at] = sums[part] as f32 * scale;
                }
            }
        }
    }

    /// Writes zeros as the group of a token that the tile lacks.
    fn set_to_zero(&mut self, group: usize, lane: usize) {
        let (at, width) = (group * self.width, self.width);
        self.numbers[at + lane] = Numbers([0; GROUP]);
        let (scales, sums) = (self.grouping.scales(), self.grouping.sums());
        (0..scales).for_each(|part| self.scales[at * scales + part * width + lane] = 0.0);
        (0..sums).for_each(|part| self.corrections[at * sums + part * width + lane] = 0);
        if self.grouping == Grouping::Subgroups {
            (0..sums).for_each(|part| self.sums[at * sums + part * width + lane] = 0.0);
        }
    }
}

/// Quantises the subgroups of a group. `sums` are those of the numbers of each subgroup, and then of each half of one.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // Iterators take closures.
fn quantize_subgroups(
    values: &[f32; GROUP],
    numbers: &mut Numbers,
    scales: &mut [f32; SUBGROUPS],
    sums: &mut [i32; SUBGROUP_SUMS],
) {
    let (values, numbers) = (values.as_chunks::<SUBGROUP>().0, numbers.0.as_chunks_mut::<SUBGROUP>().0);
    for subgroup in 0..SUBGROUPS {
        let values = &values[subgroup];
        let bits = magnitude_bits(values);
        let magnitude = f32::from_bits(bits);
        if bits >= f32::INFINITY.to_bits() || magnitude < TINY {
            numbers[subgroup] = [0; SUBGROUP];
            scales[subgroup] = if bits >= f32::INFINITY.to_bits() { f32::NAN } else { 0.0 };
            continue;
        }
        let inverse = 127.0 / magnitude;
        let mut ints = [0i32; SUBGROUP];
        for i in 0..SUBGROUP {
            ints[i] = (values[i] * inverse + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as i32;
        }
        for i in 0..SUBGROUP {
            numbers[subgroup][i] = ints[i] as i8;
        }
        for half in 0..2 {
            let mut sum = 0i32;
            for i in 0..SUBGROUP / 2 {
                sum += ints[half * (SUBGROUP / 2) + i];
            }
            sums[SUBGROUPS + 2 * subgroup + half] = sum;
            sums[subgroup] += sum;
        }
        scales[subgroup] = magnitude / 127.0;
    }
}

/// The groups of one token, which is `lane` of its tile, from group `first` of it on.
struct QuantizeGroups<'a, 'g, T> {
    source: T,
    token: usize,
    first: usize,
    groups: &'a mut Groups<'g>,
    lane: usize,
}

impl<T: Source> Kernel for QuantizeGroups<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let mut room = [0.0; GROUP];
        for group in 0..self.groups.count() {
            let values = self.source.group(simd, self.token, (self.first + group) * GROUP, &mut room);
            self.groups.quantize::<S>(group, self.lane, values);
        }
    }
}

/// What belongs to the numbers of a group of one token.
pub(super) struct Factors {
    pub scale: f32,
    pub correction: i32,
}

impl Factors {
    /// Those of a group whose numbers are all set to zero, since its greatest magnitude, whose bits these are, is too small or none.
    #[inline(always)]
    pub(super) fn of_zeros(greatest: u32, numbers: &mut Numbers) -> Self {
        *numbers = Numbers([0; GROUP]);
        Self { scale: if greatest >= f32::INFINITY.to_bits() { f32::NAN } else { 0.0 }, correction: 0 }
    }
}

#[inline(always)]
#[allow(clippy::needless_range_loop)] // Iterators take closures.
fn quantize_group<S: Simd>(values: &[f32; GROUP], numbers: &mut Numbers) -> Factors {
    #[cfg(target_arch = "x86_64")]
    if S::LANES == MAX_LANES {
        // SAFETY: vectors of so many lanes are those of AVX-512, and a value of their type is there.
        return unsafe { super::input_avx512::quantize_group(values, numbers) };
    }
    let mut values = *values;
    rotate_activations(&mut values);
    let bits = magnitude_bits(&values);
    let magnitude = f32::from_bits(bits);
    if bits >= f32::INFINITY.to_bits() || magnitude < TINY {
        return Factors::of_zeros(bits, numbers);
    }
    let inverse = 127.0 / magnitude;
    // Loops over local arrays, so that each becomes a few vector instructions.
    let mut ints = [0i32; GROUP];
    for i in 0..GROUP {
        ints[i] = (values[i] * inverse + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    }
    for i in 0..GROUP {
        numbers.0[i] = ints[i] as i8;
    }
    let mut sum = 0i32;
    for number in ints {
        sum = sum.wrapping_add(number);
    }
    Factors { scale: magnitude / 127.0, correction: -ZERO_POINT * sum }
}

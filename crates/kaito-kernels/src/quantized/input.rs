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

/// Tokens, quantised for products with quantised weights. Its memory is used again and again.
///
/// The tokens are split evenly into tiles of at most [`INPUT_TILE`]. Numbers, scales and corrections all lie as
/// `[tile][group][token of the tile]`, where each tile has [`QuantizedInput::width`] tokens; those that it lacks are zeros.
#[derive(Debug)]
pub struct QuantizedInput {
    pub(super) tokens: usize,
    pub(super) cols: usize,
    tiles: EvenSplit,
    width: usize,
    numbers: Vec<Numbers>,
    /// For each group of a token, what its numbers are multiplied by.
    scales: Vec<f32>,
    /// For each group of a token `-ZERO_POINT * sum(numbers)`: what a sum of products with stored weights begins with, since these are
    /// too large by as much.
    corrections: Vec<i32>,
}

/// A group of the first of some tokens of one tile: those of the others follow, and the next group lies
/// [`QuantizedInput::width`] further on.
#[derive(Clone, Copy)]
pub(super) struct InputGroups {
    pub numbers: *const Numbers,
    pub scales: *const f32,
    pub corrections: *const i32,
}

impl InputGroups {
    /// Those that lie `count` further on.
    #[inline(always)]
    pub(super) fn skip(self, count: usize) -> Self {
        Self {
            numbers: self.numbers.wrapping_add(count),
            scales: self.scales.wrapping_add(count),
            corrections: self.corrections.wrapping_add(count),
        }
    }
}

impl QuantizedInput {
    /// No tokens.
    pub fn new() -> Self {
        Self {
            tokens: 0,
            cols: 0,
            tiles: EvenSplit::of_at_most(0, INPUT_TILE),
            width: 0,
            numbers: Vec::new(),
            scales: Vec::new(),
            corrections: Vec::new(),
        }
    }

    /// Makes room for up to `tokens` rows of `cols` activations.
    pub fn reserve(&mut self, tokens: usize, cols: usize) {
        let groups = tokens.next_multiple_of(INPUT_TILE) * cols.div_ceil(GROUP);
        let more = groups.saturating_sub(self.numbers.len());
        self.numbers.reserve_exact(more);
        self.scales.reserve_exact(more);
        self.corrections.reserve_exact(more);
    }

    /// Quantises `tokens` rows of `cols` activations, in groups that are rotated, and whose largest magnitude
    /// then becomes 127. A group that holds an infinity or NaN makes all products with it NaN; one whose magnitudes are all below 2^-112 is taken for zero.
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
        self.numbers.resize(tiles.count() * of_tile, Numbers([0; GROUP]));
        self.scales.resize(tiles.count() * of_tile, 0.0);
        self.corrections.resize(tiles.count() * of_tile, 0);
        if of_tile == 0 {
            return;
        }
        let part_groups = (T::PART_GROUPS / width).clamp(1, all);
        let (of_part, parts_of_tile) = (part_groups * width, all.div_ceil(part_groups));
        let numbers = parts(&mut self.numbers, of_tile, of_part);
        let parts = numbers.zip(parts(&mut self.scales, of_tile, of_part));
        let parts = parts.zip(self::parts(&mut self.corrections, of_tile, of_part)).enumerate();
        pool.for_each_item(tiles.count() * parts_of_tile, parts, |(part, ((numbers, scales), corrections))| {
            let (tile, first) = (part / parts_of_tile, part % parts_of_tile * part_groups);
            let mut groups = Groups { numbers, scales, corrections, width };
            for lane in 0..width {
                if let Some(token) = tiles.range(tile).nth(lane) {
                    dispatch(level, QuantizeGroups { source, token, first, groups: &mut groups, lane });
                } else {
                    (0..groups.count()).for_each(|group| groups.set_to_zero(group, lane));
                }
            }
        });
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

    /// The numbers of a group of a token, and their scale.
    #[cfg(test)]
    pub(super) fn group(&self, token: usize, group: usize) -> ([i8; GROUP], f32) {
        let tile = self.tiles.index_of(token);
        let at = (tile * self.groups() + group) * self.width + token - self.tiles.start(tile);
        (self.numbers[at].0, self.scales[at])
    }

    /// All of the memory's contents.
    #[cfg(test)]
    pub(super) fn all_groups(&self) -> (Vec<Numbers>, Vec<f32>, Vec<i32>) {
        (self.numbers.clone(), self.scales.clone(), self.corrections.clone())
    }

    #[cfg(test)]
    pub(super) fn capacity(&self) -> [usize; 3] {
        [self.numbers.capacity(), self.scales.capacity(), self.corrections.capacity()]
    }

    /// Groups from `group` on of whole tiles of tokens. `count` of them can be read, of each tile [`QuantizedInput::width`] tokens; the next
    /// tile lies `groups * width` further on.
    ///
    /// # Panics
    /// If there are not so many.
    #[inline(always)]
    pub(super) fn at_tiles(&self, tiles: Range<usize>, group: usize, count: usize) -> InputGroups {
        assert!(!tiles.is_empty() && group + count <= self.groups());
        let first = (tiles.start * self.groups() + group) * self.width;
        let last = ((tiles.end - 1) * self.groups() + group + count) * self.width;
        InputGroups {
            numbers: self.numbers[first..last].as_ptr(),
            scales: self.scales[first..last].as_ptr(),
            corrections: self.corrections[first..last].as_ptr(),
        }
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
        let first = (tile * self.groups() + group) * self.width + lane;
        let last = first + count.max(1) * self.width - lane;
        InputGroups {
            numbers: self.numbers[first..last].as_ptr(),
            scales: self.scales[first..last].as_ptr(),
            corrections: self.corrections[first..last].as_ptr(),
        }
    }
}

impl Default for QuantizedInput {
    fn default() -> Self {
        Self::new()
    }
}

/// The parts that are quantised at a time: `of_part` elements each of the `of_tile` elements of a tile, the last one fewer.
fn parts<E: Send>(all: &mut [E], of_tile: usize, of_part: usize) -> impl Iterator<Item = &mut [E]> + Send {
    all.chunks_mut(of_tile).flat_map(move |tile| tile.chunks_mut(of_part))
}

/// Some groups of a tile of tokens.
struct Groups<'a> {
    numbers: &'a mut [Numbers],
    scales: &'a mut [f32],
    corrections: &'a mut [i32],
    width: usize,
}

impl Groups<'_> {
    #[inline(always)]
    fn count(&self) -> usize {
        self.numbers.len() / self.width
    }

    /// Writes the group of a token.
    #[inline(always)]
    fn quantize<S: Simd>(&mut self, group: usize, lane: usize, values: &[f32; GROUP]) {
        let at = group * self.width + lane;
        let factors = quantize_group::<S>(values, &mut self.numbers[at]);
        (self.scales[at], self.corrections[at]) = (factors.scale, factors.correction);
    }

    /// Writes zeros as the group of a token that the tile lacks.
    fn set_to_zero(&mut self, group: usize, lane: usize) {
        let at = group * self.width + lane;
        (self.numbers[at], self.scales[at], self.corrections[at]) = (Numbers([0; GROUP]), 0.0, 0);
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

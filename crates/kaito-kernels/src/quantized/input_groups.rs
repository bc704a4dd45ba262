//! Quantising the groups of a tile of tokens.

use super::{
    GROUP,
    input::{Grouping, Numbers, SUBGROUP, SUBGROUP_SUMS, SUBGROUPS, SumPair, ZERO_POINT},
    rotation::rotate_activations,
    source::Source,
    weights::{ROUND, TINY, magnitude_bits},
};
use crate::simd::{Kernel, MAX_LANES, Simd};

/// Some groups of a tile of tokens.
pub(super) struct Groups<'a> {
    pub grouping: Grouping,
    pub numbers: &'a mut [Numbers],
    pub scales: &'a mut [f32],
    pub corrections: &'a mut [i32],
    pub sums: &'a mut [f32],
    pub pairs: &'a mut [SumPair],
    pub width: usize,
}

impl Groups<'_> {
    #[inline(always)]
    pub(super) fn count(&self) -> usize {
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
                let (scales, sums) = quantize_unrotated::<S, SUBGROUPS>(values, numbers);
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
            Grouping::Unrotated => {
                let (scales, sums) = quantize_unrotated::<S, 1>(values, numbers);
                self.scales[at + lane] = scales[0];
                for part in 0..SUBGROUP_SUMS {
                    self.corrections[at * SUBGROUP_SUMS + part * width + lane] = -ZERO_POINT * sums[part];
                }
                for (i, pair) in sums.as_chunks().0.iter().enumerate() {
                    let [first, second]: [i32; 2] = *pair;
                    self.pairs[at * (SUBGROUP_SUMS / 2) + i * width + lane] = [first as i16, second as i16];
                }
            }
        }
    }

    /// Writes zeros as the group of a token that the tile lacks.
    pub(super) fn set_to_zero(&mut self, group: usize, lane: usize) {
        let (at, width) = (group * self.width, self.width);
        self.numbers[at + lane] = Numbers([0; GROUP]);
        let set = |count: usize, set: &mut dyn FnMut(usize)| {
            (0..count).for_each(|part| set(at * count + part * width + lane))
        };
        set(self.grouping.scales(), &mut |i| self.scales[i] = 0.0);
        set(self.grouping.corrections(), &mut |i| self.corrections[i] = 0);
        set(self.grouping.sums(), &mut |i| self.sums[i] = 0.0);
        set(self.grouping.pairs(), &mut |i| self.pairs[i] = [0; 2]);
    }
}

/// Quantises a group that is not rotated, of which `PARTS` parts have a scale each. Also returns the sums of the numbers of each subgroup,
/// and then of each half of one.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // Iterators take closures.
fn quantize_unrotated<S: Simd, const PARTS: usize>(
    values: &[f32; GROUP],
    numbers: &mut Numbers,
) -> ([f32; PARTS], [i32; SUBGROUP_SUMS]) {
    #[cfg(target_arch = "x86_64")]
    if S::LANES == MAX_LANES {
        // SAFETY: vectors of so many lanes are those of AVX-512, and a value of their type is there.
        return unsafe { super::input_avx512::quantize_unrotated(values, numbers) };
    }
    let (mut scales, mut ints) = ([0.0; PARTS], [0; GROUP]);
    for i in 0..PARTS {
        let part = i * GROUP / PARTS..(i + 1) * GROUP / PARTS;
        scales[i] = quantize_values(&values[part.clone()], &mut ints[part]);
    }
    for i in 0..GROUP {
        numbers.0[i] = ints[i] as i8;
    }
    let mut halves = [0; 2 * SUBGROUPS];
    for half in 0..2 * SUBGROUPS {
        for i in 0..SUBGROUP / 2 {
            halves[half] += ints[half * (SUBGROUP / 2) + i];
        }
    }
    (scales, subgroup_sums(&halves))
}

/// The integers of values that share a scale, which it returns.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // Iterators take closures.
fn quantize_values(values: &[f32], ints: &mut [i32]) -> f32 {
    let bits = magnitude_bits(values);
    let magnitude = f32::from_bits(bits);
    if bits >= f32::INFINITY.to_bits() || magnitude < TINY {
        return scale_of_zeros(bits);
    }
    let inverse = 127.0 / magnitude;
    for i in 0..ints.len() {
        ints[i] = (values[i] * inverse + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    }
    magnitude / 127.0
}

/// The sums of subgroups, and behind them those of their halves, which are given.
#[inline(always)]
pub(super) fn subgroup_sums(halves: &[i32; 2 * SUBGROUPS]) -> [i32; SUBGROUP_SUMS] {
    let mut sums = [0; SUBGROUP_SUMS];
    for subgroup in 0..SUBGROUPS {
        sums[subgroup] = halves[2 * subgroup] + halves[2 * subgroup + 1];
    }
    sums[SUBGROUPS..].copy_from_slice(halves);
    sums
}

/// The scale of numbers that are all set to zero, since their greatest magnitude, whose bits these are, is too small or none.
#[inline(always)]
pub(super) fn scale_of_zeros(greatest: u32) -> f32 {
    if greatest >= f32::INFINITY.to_bits() { f32::NAN } else { 0.0 }
}

/// The groups of one token, which is `lane` of its tile, from group `first` of it on.
pub(super) struct QuantizeGroups<'a, 'g, T> {
    pub source: T,
    pub token: usize,
    pub first: usize,
    pub groups: &'a mut Groups<'g>,
    pub lane: usize,
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
        Self { scale: scale_of_zeros(greatest), correction: 0 }
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

//! Activations, quantised to 8 bits.

use super::{
    GROUP, Quantization,
    weights::{ROUND, TINY, magnitude_bits},
};
use crate::{
    Rows, ThreadPool,
    simd::{Kernel, Level, Simd, dispatch},
};

/// [`GROUP`] numbers of one token.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct InputGroup {
    pub scale: f32,
    /// `-zero_point * sum(values)`: what a sum of products with stored weights begins with, since these are too large by the zero
    /// point.
    pub correction: i32,
    /// From -127 to 127.
    pub values: [i8; GROUP],
}

impl InputGroup {
    const ZERO: Self = Self { scale: 0.0, correction: 0, values: [0; GROUP] };
}

/// Tokens, quantised for products with weights of one [`Quantization`]. Its memory is used again and again.
#[derive(Debug)]
pub struct QuantizedInput {
    pub(super) quantization: Quantization,
    pub(super) tokens: usize,
    pub(super) cols: usize,
    /// `[token][group]`.
    pub(super) groups: Vec<InputGroup>,
}

/// Tokens that a thread quantises at a time. A step of fewer is done by the calling thread: that takes less time than waking another.
const PART_TOKENS: usize = 16;

impl QuantizedInput {
    /// No tokens.
    pub fn new() -> Self {
        Self { quantization: Quantization::Int8, tokens: 0, cols: 0, groups: Vec::new() }
    }

    /// Makes room for `tokens` rows of `cols` activations.
    pub fn reserve(&mut self, tokens: usize, cols: usize) {
        let groups = tokens * cols.div_ceil(GROUP);
        self.groups.reserve_exact(groups.saturating_sub(self.groups.len()));
    }

    /// Quantises `tokens` rows of `cols` activations, in groups whose largest magnitude becomes 127. A group that holds
    /// an infinity or NaN makes all products with it NaN; one whose magnitudes are all below 2^-112 is taken for zero.
    ///
    /// # Panics
    /// If a shape does not fit its data.
    pub fn quantize(&mut self, pool: &ThreadPool, quantization: Quantization, tokens: usize, cols: usize, input: Rows) {
        self.quantize_on(Level::best(), pool, quantization, tokens, cols, input);
    }

    pub(super) fn quantize_on(
        &mut self,
        level: Level,
        pool: &ThreadPool,
        quantization: Quantization,
        tokens: usize,
        cols: usize,
        input: Rows,
    ) {
        input.check("input", tokens, cols);
        (self.quantization, self.tokens, self.cols) = (quantization, tokens, cols);
        let row = cols.div_ceil(GROUP);
        self.groups.resize(tokens * row, InputGroup::ZERO);
        if row == 0 {
            return;
        }
        let parts = self.groups.chunks_mut(PART_TOKENS * row).enumerate();
        pool.for_each_item(tokens.div_ceil(PART_TOKENS), parts, |(part, groups)| {
            for (i, groups) in groups.chunks_exact_mut(row).enumerate() {
                let values = input.row(part * PART_TOKENS + i, cols);
                dispatch(level, QuantizeRow { zero_point: quantization.zero_point(), values, groups });
            }
        });
    }
}

impl Default for QuantizedInput {
    fn default() -> Self {
        Self::new()
    }
}

struct QuantizeRow<'a> {
    zero_point: i32,
    values: &'a [f32],
    groups: &'a mut [InputGroup],
}

impl Kernel for QuantizeRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let (whole, rest) = self.values.as_chunks::<GROUP>();
        for (values, group) in whole.iter().zip(&mut *self.groups) {
            quantize_group(values, self.zero_point, group);
        }
        if !rest.is_empty() {
            let mut values = [0.0; GROUP];
            values[..rest.len()].copy_from_slice(rest);
            quantize_group(&values, self.zero_point, &mut self.groups[whole.len()]);
        }
    }
}

#[inline(always)]
fn quantize_group(values: &[f32; GROUP], zero_point: i32, group: &mut InputGroup) {
    let bits = magnitude_bits(values);
    let magnitude = f32::from_bits(bits);
    if bits >= f32::INFINITY.to_bits() || magnitude < TINY {
        *group = InputGroup::ZERO;
        if bits >= f32::INFINITY.to_bits() {
            group.scale = f32::NAN;
        }
        return;
    }
    group.scale = magnitude / 127.0;
    let inverse = 127.0 / magnitude;
    let mut sums = [0i32; 16];
    for (part, target) in values.as_chunks::<16>().0.iter().zip(group.values.as_chunks_mut::<16>().0) {
        for l in 0..16 {
            let number = (part[l] * inverse + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as i32;
            target[l] = number as i8;
            sums[l] = sums[l].wrapping_add(number);
        }
    }
    let mut sum = 0;
    for lane in sums {
        sum = lane.wrapping_add(sum);
    }
    group.correction = -zero_point * sum;
}

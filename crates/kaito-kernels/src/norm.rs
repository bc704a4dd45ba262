//! Normalisation of each token's activations, or of heads of them: RMS norm and layer norm.

use std::ops::Range;

use crate::{
    Rows, RowsMut, ThreadPool,
    partition::{Part, PartMut, Partition},
    simd::{Kernel, Level, MAX_LANES, Simd, dispatch},
};

/// `out = x / sqrt(mean(x^2) + eps) * weight` for each of `tokens` rows of `weight.len()` (Zhang and Sennrich 2019).
///
/// # Panics
/// If a shape does not fit its data.
pub fn rms_norm(pool: &ThreadPool, tokens: usize, x: Rows, weight: &[f32], eps: f32, out: RowsMut) {
    norm_on(Level::chosen(), pool, tokens, x, Norm { weight, bias: None, eps, centred: false }, out);
}

/// `out = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias` for each of `tokens` rows of `weight.len()`, with the
/// variance over n (Ba, Kiros and Hinton 2016).
///
/// # Panics
/// If a shape does not fit its data.
pub fn layer_norm(
    pool: &ThreadPool,
    tokens: usize,
    x: Rows,
    weight: &[f32],
    bias: Option<&[f32]>,
    eps: f32,
    out: RowsMut,
) {
    norm_on(Level::chosen(), pool, tokens, x, Norm { weight, bias, eps, centred: true }, out);
}

/// The norm of heads, in place. A head of `weight.len()` elements begins at each of `head_offsets` of each of `tokens` rows; all have
/// the same weights. Other elements stay.
///
/// # Panics
/// If a shape does not fit its data.
pub fn norm_heads(
    pool: &ThreadPool,
    tokens: usize,
    rows: RowsMut,
    head_offsets: &[usize],
    kind: kaito_spec::Norm,
    weight: &[f32],
    bias: Option<&[f32]>,
) {
    let (eps, centred) = match kind {
        kaito_spec::Norm::Rms { eps } => (eps, false),
        kaito_spec::Norm::Layer { eps } => (eps, true),
    };
    norm_heads_on(Level::chosen(), pool, tokens, rows, head_offsets, Norm { weight, bias, eps, centred });
}

fn norm_heads_on(level: Level, pool: &ThreadPool, tokens: usize, rows: RowsMut, head_offsets: &[usize], norm: Norm) {
    norm.check();
    let dim = norm.weight.len();
    let width = head_offsets.iter().max().map_or(0, |last| last + dim);
    let part_tokens = (8 * 1024 / (head_offsets.len() * dim).max(1)).max(1);
    rows.for_each_part("rows", pool, Partition::fixed(tokens, part_tokens, width, width.max(1)), |part, rows| {
        dispatch(level, NormHeads { part, rows, head_offsets, norm });
    });
}

#[derive(Clone, Copy)]
struct Norm<'a> {
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    eps: f32,
    centred: bool,
}

impl Norm<'_> {
    fn check(&self) {
        if let Some(bias) = self.bias {
            assert_eq!(bias.len(), self.weight.len(), "the bias of a norm has the length of its weight");
        }
    }

    /// What is subtracted from the elements of `x`, and what they are multiplied by then.
    #[inline(always)]
    fn mean_and_scale<S: Simd>(&self, simd: S, x: &[f32]) -> (f32, f32) {
        let width = x.len() as f32;
        let mean = if self.centred { sum::<S, Plain>(simd, x, 0.0) / width } else { 0.0 };
        let squares = sum::<S, SquaredDistance>(simd, x, mean);
        (mean, 1.0 / (squares / width + self.eps).sqrt())
    }

    /// The elements `x` at `place`, a vector or less, normed with what [`Self::mean_and_scale`] gave.
    #[inline(always)]
    fn normed<S: Simd>(&self, simd: S, x: S::Vector, (mean, scale): (f32, f32), place: Range<usize>) -> S::Vector {
        let centred = simd.sub(x, simd.splat(mean));
        let normed = simd.mul(simd.mul(centred, simd.splat(scale)), load(simd, &self.weight[place.clone()]));
        match self.bias {
            Some(bias) => simd.add(normed, load(simd, &bias[place])),
            None => normed,
        }
    }
}

fn norm_on(level: Level, pool: &ThreadPool, tokens: usize, x: Rows, norm: Norm, out: RowsMut) {
    let width = norm.weight.len();
    x.check("x", tokens, width);
    norm.check();
    let part_tokens = (16 * 1024 / width.max(1)).max(1);
    out.for_each_part("out", pool, Partition::fixed(tokens, part_tokens, width, width.max(1)), |part, out| {
        dispatch(level, NormRows { part, x, norm, out });
    });
}

struct NormRows<'a> {
    part: Part,
    x: Rows<'a>,
    norm: Norm<'a>,
    out: PartMut<'a>,
}

impl Kernel for NormRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let width = self.norm.weight.len();
        for t in self.part.tokens {
            let x = self.x.row(t, width);
            let out = self.out.slice(t, 0..width);
            let (mean, scale) = self.norm.mean_and_scale(simd, x);
            for (i, out) in out.chunks_mut(S::LANES).enumerate() {
                let place = i * S::LANES..i * S::LANES + out.len();
                let y = self.norm.normed(simd, load(simd, &x[place.clone()]), (mean, scale), place);
                store(simd, y, out);
            }
        }
    }
}

/// The heads of some tokens.
struct NormHeads<'a> {
    part: Part,
    rows: PartMut<'a>,
    head_offsets: &'a [usize],
    norm: Norm<'a>,
}

impl Kernel for NormHeads<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let dim = self.norm.weight.len();
        for t in self.part.tokens {
            for &offset in self.head_offsets {
                let head = self.rows.slice(t, offset..offset + dim);
                let (mean, scale) = self.norm.mean_and_scale(simd, head);
                for (i, x) in head.chunks_mut(S::LANES).enumerate() {
                    let place = i * S::LANES..i * S::LANES + x.len();
                    let y = self.norm.normed(simd, load(simd, x), (mean, scale), place);
                    store(simd, y, x);
                }
            }
        }
    }
}

/// A vector, or fewer elements and zeros after them.
#[inline(always)]
fn load<S: Simd>(simd: S, x: &[f32]) -> S::Vector {
    if x.len() == S::LANES { simd.load_slice(x) } else { simd.load_partial(x) }
}

/// Writes a vector, or as many elements of it as there is room for.
#[inline(always)]
fn store<S: Simd>(simd: S, y: S::Vector, out: &mut [f32]) {
    if out.len() == S::LANES { simd.store_slice(out, y) } else { simd.store_partial(out, y) }
}

/// A term of a sum over elements. Closures would be functions of their own, which are not compiled for the instruction set.
trait Term {
    fn of<S: Simd>(simd: S, x: S::Vector, centre: f32) -> S::Vector;
}

struct Plain;
struct SquaredDistance;

impl Term for Plain {
    #[inline(always)]
    fn of<S: Simd>(_: S, x: S::Vector, _: f32) -> S::Vector {
        x
    }
}

impl Term for SquaredDistance {
    #[inline(always)]
    fn of<S: Simd>(simd: S, x: S::Vector, centre: f32) -> S::Vector {
        let distance = simd.sub(x, simd.splat(centre));
        simd.mul(distance, distance)
    }
}

#[inline(always)]
fn sum<S: Simd, T: Term>(simd: S, x: &[f32], centre: f32) -> f32 {
    let mut sums = [simd.splat(0.0); 4];
    let mut blocks = x.chunks_exact(4 * S::LANES);
    for block in &mut blocks {
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = simd.add(*sum, T::of(simd, simd.load_slice(&block[i * S::LANES..]), centre));
        }
    }
    for part in blocks.remainder().chunks(S::LANES) {
        let mut terms = [0.0; MAX_LANES];
        simd.store_partial(&mut terms[..part.len()], T::of(simd, simd.load_partial(part), centre));
        sums[0] = simd.add(sums[0], simd.load_slice(&terms));
    }
    simd.sum(simd.add(simd.add(sums[0], sums[1]), simd.add(sums[2], sums[3])))
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;
    use crate::matmul::tests::numbers;

    /// The definition, in f64.
    fn expected(x: &[f32], norm: &Norm) -> Vec<f64> {
        let n = x.len() as f64;
        let mean = if norm.centred { x.iter().map(|&x| f64::from(x)).sum::<f64>() / n } else { 0.0 };
        let variance = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
        let scale = 1.0 / (variance + f64::from(norm.eps)).sqrt();
        let value = |i: usize| {
            let bias = norm.bias.map_or(0.0, |bias| f64::from(bias[i]));
            (f64::from(x[i]) - mean) * scale * f64::from(norm.weight[i]) + bias
        };
        (0..x.len()).map(value).collect()
    }

    #[test]
    fn norms_are_near_their_definition_at_any_width_stride_and_size_of_numbers() {
        let pool = ThreadPool::new(NonZeroUsize::new(3).unwrap());
        for width in [1, 2, 7, 16, 33, 64, 100, 4096, 4544] {
            for (scale, shift) in [(1.0, 0.0), (1e-4, 0.0), (300.0, 50.0)] {
                let mut next = numbers(width as u64);
                let (tokens, stride) = (9, width + 5);
                let x: Vec<f32> = (0..tokens * stride).map(|_| next() * scale + shift).collect();
                let weight: Vec<f32> = (0..width).map(|_| next()).collect();
                let bias: Vec<f32> = (0..width).map(|_| next()).collect();
                for (centred, bias) in [(false, None), (true, None), (true, Some(&bias[..]))] {
                    let norm = Norm { weight: &weight, bias, eps: 1e-5, centred };
                    for &level in Level::available() {
                        let mut out = vec![9.0; tokens * stride];
                        let rows = Rows { data: &x, stride, offset: 2 };
                        norm_on(level, &pool, tokens, rows, norm, RowsMut { data: &mut out, stride, offset: 3 });
                        for t in 0..tokens {
                            let expected = expected(&x[t * stride + 2..][..width], &norm);
                            for (i, expected) in expected.iter().enumerate() {
                                let y = out[t * stride + 3 + i];
                                // A mean of 50 beside deviations of 300 is off by 2^-24 of itself and the terms.
                                let error = (f64::from(y) - expected).abs();
                                assert!(
                                    error <= 2e-6 * (1.0 + expected.abs()),
                                    "{level:?} width {width}, scale {scale}, centred {centred}: {y}, not {expected}"
                                );
                            }
                            assert_eq!(out[t * stride..t * stride + 3], [9.0; 3]);
                            assert_eq!(out[t * stride + 3 + width..(t + 1) * stride], [9.0; 2]);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn heads_are_near_the_definition_and_the_rest_stays() {
        let pool = ThreadPool::new(NonZeroUsize::new(3).unwrap());
        for dim in [1, 2, 10, 16, 33, 64, 128, 256] {
            for tokens in [1, 5, 70] {
                let mut next = numbers(dim as u64);
                let (stride, offsets) = (5 * dim + 4, [0, dim + 1, 3 * dim + 2]);
                let before: Vec<f32> = (0..tokens * stride).map(|_| 3.0 * next() + 0.5).collect();
                let weight: Vec<f32> = (0..dim).map(|_| next()).collect();
                let bias: Vec<f32> = (0..dim).map(|_| next()).collect();
                for (centred, bias) in [(false, None), (true, None), (true, Some(&bias[..]))] {
                    let norm = Norm { weight: &weight, bias, eps: 1e-5, centred };
                    let mut expected: Vec<f64> = before.iter().map(|&x| f64::from(x)).collect();
                    for first in (0..tokens).flat_map(|t| offsets.map(|offset| t * stride + 1 + offset)) {
                        let head = self::expected(&before[first..first + dim], &norm);
                        expected[first..first + dim].copy_from_slice(&head);
                    }
                    for &level in Level::available() {
                        let mut after = before.clone();
                        let rows = RowsMut { data: &mut after, stride, offset: 1 };
                        norm_heads_on(level, &pool, tokens, rows, &offsets, norm);
                        for (i, (y, expected)) in after.iter().zip(&expected).enumerate() {
                            // A mean near 4 is off by 2^-23, which is divided by the root of epsilon at least.
                            let error = (f64::from(*y) - expected).abs();
                            assert!(
                                error <= 5e-5 * (1.0 + expected.abs()),
                                "{level:?} {tokens} tokens, heads of {dim}, centred {centred}: element {i}: {y}, not {expected}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "rows: 2 rows of 12 with stride 10 and offset 0 do not fit in 20 elements")]
    fn a_head_outside_of_its_row_is_refused() {
        let pool = ThreadPool::new(NonZeroUsize::MIN);
        let kind = kaito_spec::Norm::Rms { eps: 1e-6 };
        norm_heads(&pool, 2, RowsMut::new(&mut [0.0; 20], 10), &[0, 8], kind, &[1.0; 4], None);
    }

    #[test]
    fn bits_do_not_depend_on_other_tokens() {
        let pool = ThreadPool::new(NonZeroUsize::new(3).unwrap());
        let mut next = numbers(1);
        let x: Vec<f32> = (0..64 * 999).map(|_| next()).collect();
        let weight = vec![1.25; 999];
        let (mut together, mut alone) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        layer_norm(&pool, 64, Rows::new(&x, 999), &weight, None, 1e-6, RowsMut::new(&mut together, 999));
        for (x, out) in x.chunks(999).zip(alone.chunks_mut(999)) {
            layer_norm(&pool, 1, Rows::new(x, 999), &weight, None, 1e-6, RowsMut::new(out, 999));
        }
        assert_eq!(together, alone);
    }
}

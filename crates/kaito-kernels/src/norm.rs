//! Normalisation of each token's activations: RMS norm and layer norm.

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

#[derive(Clone, Copy)]
struct Norm<'a> {
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    eps: f32,
    centred: bool,
}

fn norm_on(level: Level, pool: &ThreadPool, tokens: usize, x: Rows, norm: Norm, out: RowsMut) {
    let width = norm.weight.len();
    x.check("x", tokens, width);
    if let Some(bias) = norm.bias {
        assert_eq!(bias.len(), width, "the bias of a norm has the length of its weight");
    }
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
        let Norm { weight, bias, eps, centred } = self.norm;
        let width = weight.len();
        for t in self.part.tokens {
            let x = self.x.row(t, width);
            let out = self.out.slice(t, 0..width);
            let mean = if centred { sum::<S, Plain>(simd, x, 0.0) / width as f32 } else { 0.0 };
            let squares = sum::<S, SquaredDistance>(simd, x, mean);
            let scale = 1.0 / (squares / width as f32 + eps).sqrt();
            let mut first = 0;
            while first + S::LANES <= width {
                let normed = normed(simd, simd.load_slice(&x[first..]), mean, scale, simd.load_slice(&weight[first..]));
                let normed = match bias {
                    Some(bias) => simd.add(normed, simd.load_slice(&bias[first..])),
                    None => normed,
                };
                simd.store_slice(&mut out[first..], normed);
                first += S::LANES;
            }
            let rest = first..width;
            if !rest.is_empty() {
                let x = simd.load_partial(&x[rest.clone()]);
                let normed = normed(simd, x, mean, scale, simd.load_partial(&weight[rest.clone()]));
                let normed = match bias {
                    Some(bias) => simd.add(normed, simd.load_partial(&bias[rest.clone()])),
                    None => normed,
                };
                simd.store_partial(&mut out[rest], normed);
            }
        }
    }
}

#[inline(always)]
fn normed<S: Simd>(simd: S, x: S::Vector, mean: f32, scale: f32, weight: S::Vector) -> S::Vector {
    simd.mul(simd.mul(simd.sub(x, simd.splat(mean)), simd.splat(scale)), weight)
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

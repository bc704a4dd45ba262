//! Element-wise functions of the feed-forward blocks.

use std::f32::consts::FRAC_1_SQRT_2;

use crate::{
    Rows, RowsMut, ThreadPool,
    partition::Partition,
    simd::{Kernel, Level, Simd, dispatch},
};

/// Elements that a thread computes at a time.
const PART: usize = 8 * 1024;

/// `out = silu(gate) * up` with `silu(x) = x / (1 + e^-x)` (Shazeer 2020). A row of `gate_up` is `inner` gates and then
/// `inner` ups; a row of `out` has `inner` elements.
///
/// # Panics
/// If a shape does not fit its data.
pub fn swiglu(pool: &ThreadPool, tokens: usize, gate_up: Rows, inner: usize, out: RowsMut) {
    swiglu_on(Level::chosen(), pool, tokens, gate_up, inner, out);
}

fn swiglu_on(level: Level, pool: &ThreadPool, tokens: usize, gate_up: Rows, inner: usize, out: RowsMut) {
    gate_up.check("gate_up", tokens, inner.saturating_mul(2));
    out.for_each_part("out", pool, Partition::fixed(tokens, 1, inner, PART), |part, mut out| {
        for t in part.tokens {
            let columns = part.columns.clone();
            let (gate, up) = gate_up.row(t, 2 * inner).split_at(inner);
            let out = out.slice(t, columns.clone());
            dispatch(level, Swiglu { gate: &gate[columns.clone()], up: &up[columns], out });
        }
    });
}

/// [`swiglu`] of slices of the same length.
pub(crate) struct Swiglu<'a> {
    pub(crate) gate: &'a [f32],
    pub(crate) up: &'a [f32],
    pub(crate) out: &'a mut [f32],
}

impl Kernel for Swiglu<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let lanes = S::LANES;
        for ((gate, up), out) in self.gate.chunks(lanes).zip(self.up.chunks(lanes)).zip(self.out.chunks_mut(lanes)) {
            if out.len() == lanes {
                simd.store_slice(out, gated(simd, simd.load_slice(gate), simd.load_slice(up)));
            } else {
                simd.store_partial(out, gated(simd, simd.load_partial(gate), simd.load_partial(up)));
            }
        }
    }
}

/// `silu(gate) * up`. A closure would be a function of its own, which is not compiled for the instruction set.
#[inline(always)]
fn gated<S: Simd>(simd: S, gate: S::Vector, up: S::Vector) -> S::Vector {
    let e = simd.exp(simd.sub(simd.splat(0.0), gate));
    simd.mul(simd.div(gate, simd.add(simd.splat(1.0), e)), up)
}

/// `x = x * (1 + erf(x / sqrt 2)) / 2` in place (Hendrycks and Gimpel 2016, without the approximation by tanh).
pub fn gelu_erf(pool: &ThreadPool, data: &mut [f32]) {
    gelu_erf_on(Level::chosen(), pool, data);
}

fn gelu_erf_on(level: Level, pool: &ThreadPool, data: &mut [f32]) {
    for_each_slice(pool, data, PART, |_, part| dispatch(level, Gelu(part)));
}

/// Calls `task` for each slice of `part` elements, with the place of its first one.
fn for_each_slice(pool: &ThreadPool, data: &mut [f32], part: usize, task: impl Fn(usize, &mut [f32]) + Sync) {
    let len = data.len();
    RowsMut::new(data, len).for_each_part("data", pool, Partition::fixed(1, 1, len, part), |part, mut data| {
        task(part.columns.start, data.slice(0, part.columns));
    });
}

struct Gelu<'a>(&'a mut [f32]);

impl Kernel for Gelu<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for part in self.0.chunks_mut(S::LANES) {
            if part.len() == S::LANES {
                simd.store_slice(part, gelu(simd, simd.load_slice(part)));
            } else {
                simd.store_partial(part, gelu(simd, simd.load_partial(part)));
            }
        }
    }
}

/// `-ln(1 - erf(z)) / z` as a polynomial of `z - 2`: interpolated at the Chebyshev nodes of 0 to 4. With it erf is off
/// by 9e-8 at most, and x erf(x / sqrt 2) / 2 by 4e-8.
const LOG_ERFC: [f32; 11] = [
    2.682_470_6,
    0.867_845_24,
    0.027_952_885,
    -0.005_744_547_6,
    0.001_086_525_2,
    -0.000_176_108_97,
    2.092_232_2e-5,
    -6.847_815e-7,
    -9.374_016e-7,
    5.308_105e-7,
    -1.013_977_3e-7,
];

/// `max(x, 0) - |x| (1 - erf(|x| / sqrt 2)) / 2`. What is subtracted is small where `x` is large, so that its error is below the
/// last place of the result.
#[inline(always)]
fn gelu<S: Simd>(simd: S, x: S::Vector) -> S::Vector {
    let magnitude = simd.max(x, simd.sub(simd.splat(0.0), x));
    // For larger magnitudes 1 - erf rounds to zero. The bound also keeps infinity out of the products.
    let magnitude = simd.min(simd.splat(64.0), magnitude);
    let z = simd.mul(magnitude, simd.splat(FRAC_1_SQRT_2));
    let u = simd.sub(simd.min(simd.splat(4.0), z), simd.splat(2.0));
    let mut p = simd.splat(LOG_ERFC[10]);
    for i in (0..10).rev() {
        p = simd.mul_add(p, u, simd.splat(LOG_ERFC[i]));
    }
    let erfc = simd.exp(simd.sub(simd.splat(0.0), simd.mul(z, p)));
    let half = simd.mul(simd.splat(0.5), magnitude);
    simd.sub(simd.max(simd.splat(0.0), x), simd.mul(half, erfc))
}

/// `x += y`.
///
/// # Panics
/// If the lengths differ.
pub fn add(pool: &ThreadPool, x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len(), "terms of a sum");
    for_each_slice(pool, x, 4 * PART, |first, x| {
        x.iter_mut().zip(&y[first..]).for_each(|(x, y)| *x += y);
    });
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;
    use crate::matmul::tests::numbers;

    fn pool() -> ThreadPool {
        ThreadPool::new(NonZeroUsize::new(3).unwrap())
    }

    #[test]
    fn swiglu_is_near_its_definition() {
        for (tokens, inner) in [(1, 1), (3, 17), (40, 64), (2, PART + 5), (1, 3 * PART)] {
            let mut next = numbers(inner as u64);
            let stride = 2 * inner + 3;
            let gate_up: Vec<f32> = (0..tokens * stride).map(|_| 20.0 * next()).collect();
            for &level in Level::available() {
                let mut out = vec![5.0; tokens * (inner + 1)];
                let rows = Rows { data: &gate_up, stride, offset: 3 };
                let to = RowsMut { data: &mut out, stride: inner + 1, offset: 1 };
                swiglu_on(level, &pool(), tokens, rows, inner, to);
                for t in 0..tokens {
                    assert_eq!(out[t * (inner + 1)], 5.0);
                    for i in 0..inner {
                        let gate = f64::from(gate_up[t * stride + 3 + i]);
                        let up = f64::from(gate_up[t * stride + 3 + inner + i]);
                        let (y, expected) = (out[t * (inner + 1) + 1 + i], gate / (1.0 + (-gate).exp()) * up);
                        let error = (f64::from(y) - expected).abs();
                        assert!(error <= 5e-7 * expected.abs(), "{level:?}: {gate}, {up}: {y}, not {expected}");
                    }
                }
            }
        }
    }

    #[test]
    fn swiglu_of_special_values() {
        for &level in Level::available() {
            let gate_up = [100.0, -100.0, -1000.0, 0.0, f32::NAN, 2.0, 1.0, 1.0, 3.0, 1.0];
            let mut out = [0.0; 5];
            swiglu_on(level, &pool(), 1, Rows::new(&gate_up, 10), 5, RowsMut::new(&mut out, 5));
            assert_eq!(out[0], 200.0);
            assert!(out[1].abs() < 1e-40 && out[2] == 0.0 && out[3] == 0.0, "{level:?}: {out:?}");
            assert!(out[4].is_nan());
        }
    }

    /// Values of erf from the tables of Abramowitz and Stegun (1964), table 7.1.
    #[test]
    fn gelu_is_near_tabulated_values() {
        let table = [
            (0.0, 0.0),
            (0.1, 0.112_462_916_0),
            (0.5, 0.520_499_877_8),
            (1.0, 0.842_700_792_9),
            (1.5, 0.966_105_146_5),
            (2.0, 0.995_322_265_0),
        ];
        for (z, erf) in table {
            for sign in [1.0, -1.0] {
                let x = sign * z * std::f64::consts::SQRT_2;
                let expected = 0.5 * x * (1.0 + sign * erf);
                for &level in Level::available() {
                    let mut y = [x as f32];
                    gelu_erf_on(level, &pool(), &mut y);
                    assert!(
                        (f64::from(y[0]) - expected).abs() < 2e-7,
                        "{level:?}: gelu({x}) = {}, not {expected}",
                        y[0]
                    );
                }
            }
        }
        for &level in Level::available() {
            let mut y = [f32::INFINITY, -40.0, f32::NAN, 40.0, 0.0, 2e-45, f32::NEG_INFINITY];
            gelu_erf_on(level, &pool(), &mut y);
            assert!(y[0] == f32::INFINITY && y[1] == 0.0 && y[2].is_nan(), "{level:?}: {y:?}");
            assert!(y[3] == 40.0 && y[4] == 0.0 && y[5] < 3e-45 && y[6] == 0.0, "{level:?}: {y:?}");
        }
    }

    #[test]
    fn every_element_of_a_long_slice_is_computed() {
        let len = 5 * PART + 3;
        let mut next = numbers(8);
        let x: Vec<f32> = (0..len).map(|_| next()).collect();
        let y: Vec<f32> = (0..len).map(|_| next()).collect();
        let mut sum = x.clone();
        add(&pool(), &mut sum, &y);
        assert!((0..len).all(|i| sum[i] == x[i] + y[i]));
        for &level in Level::available() {
            // The bound grows with numbers above 1.
            for size in [1.0, 6.0] {
                let x: Vec<f32> = x.iter().map(|x| size * x).collect();
                let mut gelu = x.clone();
                gelu_erf_on(level, &pool(), &mut gelu);
                for (x, y) in x.into_iter().zip(gelu) {
                    let exact = f64::from(x);
                    let expected = 0.5 * exact * (1.0 + libm::erf(exact * std::f64::consts::FRAC_1_SQRT_2));
                    let error = (f64::from(y) - expected).abs();
                    assert!(error < 1.2e-7 * exact.abs().max(1.0), "{level:?}: gelu({x}) = {y}, not {expected}");
                }
            }
        }
    }
}

//! Rotary position embedding (Su et al. 2021).

use kaito_spec::RopePairing;

use crate::{
    RowsMut, ThreadPool,
    partition::Partition,
    simd::{Kernel, Level, Simd, dispatch},
};

/// Rotates heads in place. A head begins at each of `head_offsets` of each of `tokens` rows; pair `i` of it is rotated
/// by the angle whose cosine and sine are `cos[t * n + i]` and `sin[t * n + i]`, where `n = cos.len() / tokens` is half
/// of the rotary dimension. Elements after the first `2 n` of a head stay.
///
/// # Panics
/// If a shape does not fit its data.
pub fn rope(
    pool: &ThreadPool,
    tokens: usize,
    rows: RowsMut,
    head_offsets: &[usize],
    pairing: RopePairing,
    cos: &[f32],
    sin: &[f32],
) {
    rope_on(Level::chosen(), pool, tokens, rows, head_offsets, pairing, cos, sin);
}

#[allow(clippy::too_many_arguments)]
fn rope_on(
    level: Level,
    pool: &ThreadPool,
    tokens: usize,
    rows: RowsMut,
    head_offsets: &[usize],
    pairing: RopePairing,
    cos: &[f32],
    sin: &[f32],
) {
    assert_eq!(cos.len(), sin.len(), "cosines and sines go together");
    if tokens == 0 || cos.is_empty() {
        return;
    }
    assert_eq!(cos.len() % tokens, 0, "{} cosines for {tokens} tokens", cos.len());
    let half = cos.len() / tokens;
    let width = head_offsets.iter().max().map_or(0, |last| last + 2 * half);
    let part_tokens = (8 * 1024 / (head_offsets.len() * half).max(1)).max(1);
    rows.for_each_part("rows", pool, Partition::fixed(tokens, part_tokens, width, width.max(1)), |part, mut rows| {
        for t in part.tokens {
            let angles = t * half..(t + 1) * half;
            let (cos, sin) = (&cos[angles.clone()], &sin[angles]);
            dispatch(level, RotateHeads { row: rows.slice(t, 0..width), head_offsets, pairing, cos, sin });
        }
    });
}

/// The heads of a token.
struct RotateHeads<'a> {
    row: &'a mut [f32],
    head_offsets: &'a [usize],
    pairing: RopePairing,
    cos: &'a [f32],
    sin: &'a [f32],
}

impl Kernel for RotateHeads<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for &offset in self.head_offsets {
            let head = &mut self.row[offset..offset + 2 * self.cos.len()];
            match self.pairing {
                RopePairing::Halves => rotate_halves(simd, head, self.cos, self.sin),
                RopePairing::Interleaved => rotate_pairs(head, self.cos, self.sin),
            }
        }
    }
}

#[inline(always)]
fn rotate_halves<S: Simd>(simd: S, head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (first, second) = head.split_at_mut(cos.len());
    let angles = cos.chunks(S::LANES).zip(sin.chunks(S::LANES));
    for ((a, b), (cos, sin)) in first.chunks_mut(S::LANES).zip(second.chunks_mut(S::LANES)).zip(angles) {
        if a.len() == S::LANES {
            let pair = [simd.load_slice(a), simd.load_slice(b)];
            let [x, y] = rotated(simd, pair, simd.load_slice(cos), simd.load_slice(sin));
            simd.store_slice(a, x);
            simd.store_slice(b, y);
        } else {
            let pair = [simd.load_partial(a), simd.load_partial(b)];
            let [x, y] = rotated(simd, pair, simd.load_partial(cos), simd.load_partial(sin));
            simd.store_partial(a, x);
            simd.store_partial(b, y);
        }
    }
}

#[inline(always)]
fn rotated<S: Simd>(simd: S, [a, b]: [S::Vector; 2], cos: S::Vector, sin: S::Vector) -> [S::Vector; 2] {
    let first = simd.sub(simd.mul(a, cos), simd.mul(b, sin));
    [first, simd.add(simd.mul(b, cos), simd.mul(a, sin))]
}

#[inline(always)]
fn rotate_pairs(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    for (([a, b], cos), sin) in head.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;
    use crate::matmul::tests::numbers;

    /// Pair `i` is the complex number that is multiplied by `e^(j angle)`, in f64.
    #[test]
    fn pairs_turn_by_their_angles_and_the_rest_stays() {
        let pool = ThreadPool::new(NonZeroUsize::new(2).unwrap());
        for pairing in [RopePairing::Halves, RopePairing::Interleaved] {
            for (half, head_dim) in [(1, 2), (3, 10), (32, 64), (48, 96), (64, 128)] {
                for tokens in [1, 5, 70] {
                    let mut next = numbers(half as u64);
                    // Query heads, then key heads, then values that do not turn.
                    let offsets = [0, head_dim, 3 * head_dim];
                    let stride = 5 * head_dim + 1;
                    let before: Vec<f32> = (0..tokens * stride).map(|_| next()).collect();
                    let angles: Vec<f32> = (0..tokens * half).map(|_| 100.0 * next()).collect();
                    let cos: Vec<f32> = angles.iter().map(|angle| angle.cos()).collect();
                    let sin: Vec<f32> = angles.iter().map(|angle| angle.sin()).collect();
                    let rotated = |level| {
                        let mut after = before.clone();
                        let rows = RowsMut { data: &mut after, stride, offset: 1 };
                        rope_on(level, &pool, tokens, rows, &offsets, pairing, &cos, &sin);
                        after
                    };
                    let after = rotated(Level::Portable);
                    for &level in Level::available() {
                        assert!(
                            rotated(level).iter().map(|y| y.to_bits()).eq(after.iter().map(|y| y.to_bits())),
                            "{level:?}"
                        );
                    }

                    let mut expected: Vec<f64> = before.iter().map(|&x| f64::from(x)).collect();
                    for t in 0..tokens {
                        for offset in offsets {
                            for i in 0..half {
                                let (a, b) = match pairing {
                                    RopePairing::Halves => (i, i + half),
                                    RopePairing::Interleaved => (2 * i, 2 * i + 1),
                                };
                                let (a, b) = (t * stride + 1 + offset + a, t * stride + 1 + offset + b);
                                let (sin, cos) = f64::from(angles[t * half + i]).sin_cos();
                                let (x, y) = (f64::from(before[a]), f64::from(before[b]));
                                (expected[a], expected[b]) = (x * cos - y * sin, x * sin + y * cos);
                            }
                        }
                    }
                    for (i, (y, expected)) in after.iter().zip(expected).enumerate() {
                        let error = (f64::from(*y) - expected).abs();
                        assert!(
                            error < 3e-7,
                            "{pairing:?} {half} pairs of {head_dim}: element {i}: {y}, not {expected}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "rows: 2 rows of 12 with stride 10 and offset 0 do not fit in 20 elements")]
    fn a_head_outside_of_its_row_is_refused() {
        let pool = ThreadPool::new(NonZeroUsize::MIN);
        let mut data = [0.0; 20];
        let rows = RowsMut::new(&mut data, 10);
        rope(&pool, 2, rows, &[0, 8], RopePairing::Halves, &[1.0; 4], &[0.0; 4]);
    }
}

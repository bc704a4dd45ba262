//! Rotary position embedding (Su et al. 2021).

use kaito_spec::RopePairing;

use crate::{RowsMut, ThreadPool, partition::Partition};

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
            for &offset in head_offsets {
                rotate(rows.slice(t, offset..offset + 2 * half), pairing, cos, sin);
            }
        }
    });
}

fn rotate(head: &mut [f32], pairing: RopePairing, cos: &[f32], sin: &[f32]) {
    let angles = cos.iter().zip(sin);
    match pairing {
        RopePairing::Halves => {
            let (first, second) = head.split_at_mut(cos.len());
            for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(angles) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
        RopePairing::Interleaved => {
            for ([a, b], (cos, sin)) in head.as_chunks_mut::<2>().0.iter_mut().zip(angles) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
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
                    let mut after = before.clone();
                    let rows = RowsMut { data: &mut after, stride, offset: 1 };
                    rope(&pool, tokens, rows, &offsets, pairing, &cos, &sin);

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

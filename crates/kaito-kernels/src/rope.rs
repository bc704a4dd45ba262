//! Rotary position embedding (Su et al. 2021).

use crate::{RowsMut, ThreadPool};

/// Which two elements of a head are rotated together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopePairing {
    /// `i` and `i + rotary_dim / 2`, as checkpoints of Hugging Face have them.
    Halves,
    /// `2 i` and `2 i + 1`, as Meta's checkpoints have them.
    Interleaved,
}

/// Rotates heads in place. A head begins at each of `head_offsets` of each of `tokens` rows; pair `i` of it is turned
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
    let rows = rows.share("rows", tokens, width);
    let piece_tokens = (8 * 1024 / (head_offsets.len() * half).max(1)).max(1);
    pool.for_each(tokens.div_ceil(piece_tokens), &|piece| {
        let start = piece * piece_tokens;
        for t in start..tokens.min(start + piece_tokens) {
            let angles = t * half..(t + 1) * half;
            let (cos, sin) = (&cos[angles.clone()], &sin[angles]);
            for &offset in head_offsets {
                // SAFETY: no other piece has this token, and heads are rotated one after the other.
                rotate(unsafe { rows.slice(t, offset, 2 * half) }, pairing, cos, sin);
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

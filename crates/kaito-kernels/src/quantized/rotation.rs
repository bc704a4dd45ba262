//! The rotation that weights and activations go through before they are quantised.
//!
//! A Walsh-Hadamard transform `H` of each group mixes its components. It is orthogonal but for a factor, `H H = GROUP`, so products
//! stay what they are if weights and activations are both transformed and divided by [`GROUP`] once. What is large in
//! one component is spread over all of them: the few large activations that language models have no longer make the steps of
//! their whole group coarse (Ashkboos et al. 2024, QuaRot).

use super::{BLOCK_ROWS, GROUP};
use crate::simd::Simd;

/// A group of a block of rows, `[column][row]`.
#[derive(Clone)]
#[repr(align(64))]
pub(super) struct Columns(pub [[f32; BLOCK_ROWS]; GROUP]);

/// Transforms the activations of a group, divided by [`GROUP`]: a power of two, so that this rounds nothing and nothing overflows.
#[inline(always)]
pub(super) fn rotate_activations(values: &mut [f32; GROUP]) {
    for value in values.iter_mut() {
        *value *= 1.0 / GROUP as f32;
    }
    stage::<64>(values);
    stage::<32>(values);
    stage::<16>(values);
    stage::<8>(values);
    stage::<4>(values);
    stage::<2>(values);
    stage::<1>(values);
}

/// The sums and differences of elements that are `H` apart.
#[inline(always)]
fn stage<const H: usize>(values: &mut [f32; GROUP]) {
    let before = *values;
    for i in 0..GROUP {
        let other = before[i ^ H];
        values[i] = if i & H == 0 { before[i] + other } else { other - before[i] };
    }
}

/// Transforms the weights of a group, each row by itself, in the same order of sums and differences.
#[inline(always)]
pub(super) fn rotate_weights<S: Simd>(simd: S, columns: &mut Columns) {
    let mut apart = GROUP / 2;
    while apart > 0 {
        for i in 0..GROUP {
            if i & apart != 0 {
                continue;
            }
            for v in 0..BLOCK_ROWS / S::LANES {
                let at = v * S::LANES;
                let a = simd.load_slice(&columns.0[i][at..]);
                let b = simd.load_slice(&columns.0[i + apart][at..]);
                simd.store_slice(&mut columns.0[i][at..], simd.add(a, b));
                simd.store_slice(&mut columns.0[i + apart][at..], simd.sub(a, b));
            }
        }
        apart /= 2;
    }
}

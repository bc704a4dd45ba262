//! A soft cap of the scores, as Gemma 2 has it.

use crate::simd::{Kernel, Simd};

/// Turns each score `s` into `cap * tanh(s / cap)`: nearly the same for a small one, and never beyond the cap.
pub(super) struct SoftCap<'a> {
    pub cap: f32,
    /// Scores of whole pages, and so whole vectors.
    pub scores: &'a mut [f32],
}

impl Kernel for SoftCap<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let cap = simd.splat(self.cap);
        for part in self.scores.chunks_exact_mut(S::LANES) {
            let capped = simd.mul(cap, simd.tanh(simd.div(simd.load_slice(part), cap)));
            simd.store_slice(part, capped);
        }
    }
}

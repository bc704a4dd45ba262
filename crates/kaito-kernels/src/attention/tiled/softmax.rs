//! From the scores of a query and a KV block to exponentials: the online softmax.

use std::ops::Range;

use super::{GROUP, SLICE, memory::Memory};
use crate::{
    AttentionShape,
    attention::{alibi::add_alibi, soft_cap::SoftCap},
    simd::{Simd, TileRow},
};

/// How scores are scaled, see [`AttentionShape`].
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Scaling {
    scale: f32,
    soft_cap: Option<f32>,
    /// Whether scores are scaled in one go, without a cap or biases between, and by what they keep their order with.
    is_plain: bool,
}

impl Scaling {
    pub(super) fn of(shape: &AttentionShape) -> Self {
        let AttentionShape { scale, soft_cap, alibi_slopes, .. } = *shape;
        Self { scale, soft_cap, is_plain: soft_cap.is_none() && alibi_slopes.is_empty() && scale > 0.0 }
    }
}

impl Memory {
    /// Turns the scores of query `i` into the exponentials of some slices of tokens, zeros where it does not see them, and takes them into its sum.
    /// `place` is the position of the KV block's first token, and the slope of the query's head if there is one.
    #[inline(always)]
    pub(super) fn update_softmax<S: Simd>(
        &mut self,
        simd: S,
        i: usize,
        seen: Range<usize>,
        slices: Range<usize>,
        place: (usize, Option<f32>),
    ) {
        const LOG2_E: f32 = std::f32::consts::LOG2_E;
        if seen.is_empty() {
            for slice in slices {
                self.exponentials[Self::exponential_row(i, slice)] = TileRow([0; GROUP]);
            }
            return;
        }
        let groups = seen.start / GROUP..seen.end.div_ceil(GROUP);
        if !self.scaling.is_plain {
            self.scale_scores(simd, i, groups.clone(), place);
        }
        let factor = if self.scaling.is_plain { self.scaling.scale * LOG2_E } else { LOG2_E };
        if !seen.start.is_multiple_of(GROUP) {
            self.scores[Self::score_row(i, groups.start)].0[..seen.start % GROUP].fill(f32::NEG_INFINITY);
        }
        if !seen.end.is_multiple_of(GROUP) {
            self.scores[Self::score_row(i, groups.end - 1)].0[seen.end % GROUP..].fill(f32::NEG_INFINITY);
        }

        let mut lanes = simd.splat(f32::NEG_INFINITY);
        for group in groups.clone() {
            for part in self.scores[Self::score_row(i, group)].0.chunks_exact(S::LANES) {
                lanes = simd.max(simd.load_slice(part), lanes);
            }
        }
        let (before, greatest) = (self.max[i], simd.greatest(lanes) * factor);
        if greatest > before {
            let correction = (before - greatest).exp2();
            self.max[i] = greatest;
            self.sum[i] *= correction;
            // Nothing is summed up before there is a greatest score.
            if before != f32::NEG_INFINITY {
                self.rescale(simd, i, correction);
            }
        }

        let max = simd.splat(-self.max[i]);
        let factor = simd.splat(factor);
        let mut sum = simd.splat(0.0);
        for slice in slices {
            let mut numbers = [0.0; SLICE];
            for (half, numbers) in numbers.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
                let group = 2 * slice + half;
                if groups.contains(&group) {
                    let scores = &self.scores[Self::score_row(i, group)].0;
                    for at in (0..GROUP).step_by(S::LANES) {
                        let score = simd.load_slice(&scores[at..]);
                        let exponential = simd.exp2_roughly(simd.mul_add(score, factor, max));
                        sum = simd.add(sum, exponential);
                        simd.store_slice(&mut numbers[at..], exponential);
                    }
                }
            }
            simd.pack_bf16(&numbers, &mut self.exponentials[Self::exponential_row(i, slice)]);
        }
        self.sum[i] += simd.sum(sum);
    }

    /// Scales the scores of some groups, and caps and biases them.
    #[inline(always)]
    fn scale_scores<S: Simd>(&mut self, simd: S, i: usize, groups: Range<usize>, (first, slope): (usize, Option<f32>)) {
        let Scaling { scale, soft_cap, .. } = self.scaling;
        for group in groups {
            let scores = &mut self.scores[Self::score_row(i, group)].0;
            for part in scores.chunks_exact_mut(S::LANES) {
                simd.store_slice(part, simd.mul(simd.load_slice(part), simd.splat(scale)));
            }
            if let Some(cap) = soft_cap {
                simd.call(SoftCap { cap, scores });
            }
            if let Some(slope) = slope {
                add_alibi(scores, slope, first + group * GROUP, scale);
            }
        }
    }
}

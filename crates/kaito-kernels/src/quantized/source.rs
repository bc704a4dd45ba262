//! What is quantised: activations as they lie in memory, or as they come out of SwiGLU, which is then neither written nor read.

use super::GROUP;
use crate::{
    Rows,
    activation::Swiglu,
    simd::{Kernel, Simd},
};

/// Activations of some tokens, a quantisation group at a time.
pub(super) trait Source: Copy + Sync {
    /// Groups that a thread quantises at a time: some microseconds' work, so that to wake a thread costs little beside it.
    const PART_GROUPS: usize;

    /// The activations of a token from column `first` on, a group or as many as there are and zeros: in `room`, unless they lie in
    /// memory like that.
    fn group<'a, S: Simd>(
        &'a self,
        simd: S,
        token: usize,
        first: usize,
        room: &'a mut [f32; GROUP],
    ) -> &'a [f32; GROUP];
}

/// Rows of `cols` activations.
#[derive(Clone, Copy)]
pub(super) struct Plain<'a> {
    pub rows: Rows<'a>,
    pub cols: usize,
}

impl Source for Plain<'_> {
    const PART_GROUPS: usize = 512;

    #[inline(always)]
    fn group<'a, S: Simd>(&'a self, _: S, token: usize, first: usize, room: &'a mut [f32; GROUP]) -> &'a [f32; GROUP] {
        let values = &self.rows.row(token, self.cols)[first..];
        if let Some(group) = values.first_chunk() {
            return group;
        }
        room[..values.len()].copy_from_slice(values);
        room[values.len()..].fill(0.0);
        room
    }
}

/// `silu(gate) * up` of some columns, `cols` from `first_column` on, of rows of `inner` gates and `inner` ups.
#[derive(Clone, Copy)]
pub(super) struct GateUp<'a> {
    pub rows: Rows<'a>,
    pub inner: usize,
    pub first_column: usize,
    pub cols: usize,
}

impl Source for GateUp<'_> {
    const PART_GROUPS: usize = 64;

    #[inline(always)]
    fn group<'a, S: Simd>(
        &'a self,
        simd: S,
        token: usize,
        first: usize,
        room: &'a mut [f32; GROUP],
    ) -> &'a [f32; GROUP] {
        let (gate, up) = self.rows.row(token, 2 * self.inner).split_at(self.inner);
        let count = GROUP.min(self.cols - first);
        let columns = self.first_column + first..self.first_column + first + count;
        Swiglu { gate: &gate[columns.clone()], up: &up[columns], out: &mut room[..count] }.run(simd);
        room[count..].fill(0.0);
        room
    }
}

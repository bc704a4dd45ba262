//! Activations on the processor.

use kaito_kernels::Rows;

use super::linear::{rows, zeros};
use crate::device::{BufferKind, DeviceError};

/// Rows of activations.
pub struct CpuBuffer {
    values: Vec<f32>,
    /// Whether its rows are `[gate | up]`, twice as wide, and SwiGLU is yet to be applied. The product that reads them does so, since
    /// it passes over them anyway: to quantise them, say.
    gated: bool,
}

impl CpuBuffer {
    /// Room for `rows` rows of `width` activations.
    pub(super) fn new(rows: usize, width: usize, kind: BufferKind) -> Result<Self, DeviceError> {
        let widest = match kind {
            // What is not written takes no memory.
            BufferKind::Operand => 2 * width,
            BufferKind::Exact | BufferKind::Logits => width,
        };
        Ok(Self { values: zeros(rows * widest)?, gated: false })
    }

    /// What the rows are.
    pub(super) fn values(&self) -> &[f32] {
        &self.values
    }

    /// The rows, to be replaced or added to.
    pub(super) fn values_mut(&mut self) -> &mut [f32] {
        self.gated = false;
        &mut self.values
    }

    /// The rows, to be replaced by `[gate | up]`.
    pub(super) fn gate_up_mut(&mut self) -> &mut [f32] {
        self.gated = true;
        &mut self.values
    }

    /// Whether SwiGLU is yet to be applied.
    pub(super) fn is_gated(&self) -> bool {
        self.gated
    }

    /// The rows, where SwiGLU is yet to be applied: `inner` gates and `inner` ups.
    pub(super) fn gate_up(&self, inner: usize) -> Rows<'_> {
        rows(&self.values, 2 * inner, 0)
    }
}

//! Memory of a device, and the operations of a decoder's forward pass on it.
//!
//! The decoder is written once against [`Operations`]. A step is given to the device as a whole ([`Operations::begin`]); no
//! operation after that takes anything from the host, so a device may queue them all and compute while the host goes on.
//! Activations are rows of one width a buffer, one row a token; they stay on the device, and only logits are read back.
//!
//! Under tensor parallelism a rank would hold slices of each [`Linear`], and add up the ranks' partial sums behind the attention
//! output and behind the second MLP projection: in [`Epilogue::Add`].

use super::{Adapted, DeviceError};
use crate::executor::{ExecutorLimits, HostMemory, StepInput};
use kaito_model::{
    adapter::LowRank,
    config::{ModelConfig, Norm, QkvLayout, RopePairing},
    weights::{Linear, NormWeights},
};

/// What a buffer of activations is for, which decides in what form a device holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BufferKind {
    /// Sums, and what attention reads: f32.
    Exact,
    /// The input of a linear map: in whatever form the device multiplies.
    Operand,
    /// Logits: f32, and read by the host.
    Logits,
}

/// What becomes of the result of a linear map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Epilogue {
    /// It is the output.
    Set,
    /// It is added to the output.
    Add,
    /// Rows `[gate | up]` become `silu(gate) * up`, half as wide.
    SwiGlu,
    /// The exact (erf) GELU of it is the output.
    Gelu,
}

/// Device memory and the operations of a decoder. Row counts and widths are the caller's to get right.
///
/// Operations of a step return nothing: a device that fails in one keeps its first error, ignores the rest of the step, and
/// returns the error from [`Self::finish`].
pub trait Operations: Send + 'static {
    /// Activations: rows of numbers.
    type Buffer: Send;
    /// A [`Linear`] where the device can use it.
    type Linear: Send;
    /// A normalisation's weights where the device can use them.
    type Norm: Send;
    /// A product of an adapter where the device can use it.
    type LowRank: Send;
    /// The KV cache: keys and values of all layers.
    type KvPool: Send;

    /// Memory on the device for `rows` rows of `width` numbers.
    fn buffer(&mut self, rows: usize, width: usize, kind: BufferKind) -> Result<Self::Buffer, DeviceError>;
    /// Memory for `len` numbers on the host, where [`Self::finish`] can write.
    fn host_memory(&mut self, len: usize) -> Result<HostMemory, DeviceError>;
    /// Makes a linear map usable; on a CPU it stays where the file is mapped.
    fn load_linear(&mut self, linear: Linear) -> Result<Self::Linear, DeviceError>;
    /// Makes a normalisation usable.
    fn load_norm(&mut self, norm: NormWeights, kind: Norm) -> Result<Self::Norm, DeviceError>;
    /// Makes a product of an adapter usable, and makes room for it in the steps to come. Asked for between two steps.
    fn load_low_rank(&mut self, term: LowRank) -> Result<Self::LowRank, DeviceError>;
    /// Memory for `pages` pages of `page_size` tokens in every layer of `config`.
    fn kv_pool(&mut self, config: &ModelConfig, pages: usize, page_size: usize) -> Result<Self::KvPool, DeviceError>;
    /// Makes room for the steps of a model, so that no step asks for memory.
    fn reserve(&mut self, config: &ModelConfig, limits: &ExecutorLimits) -> Result<(), DeviceError>;

    /// Takes a step, which the operations up to [`Self::finish`] belong to.
    fn begin(&mut self, step: StepInput) -> Result<(), DeviceError>;
    /// Makes the step's copies of pages, in every layer.
    fn copy_pages(&mut self, pool: &mut Self::KvPool);
    /// `output[t] = table[tokens[t]]`.
    fn embed(&mut self, table: &Self::Linear, output: &mut Self::Buffer);
    /// `output[t] = norm(input[t])`.
    fn norm(&mut self, norm: &Self::Norm, rows: usize, input: &Self::Buffer, output: &mut Self::Buffer);
    /// Normalises heads in place, with the same weights for all: one begins at each of `offsets` of each row of `width`.
    fn norm_heads(&mut self, norm: &Self::Norm, rows: usize, heads: &mut Self::Buffer, width: usize, offsets: &[usize]);
    /// `output[t] = epilogue(linear(input[t]))`, with the products that `adapted` has for row `t` added to the linear map.
    fn linear(
        &mut self,
        linear: &Self::Linear,
        rows: usize,
        input: &Self::Buffer,
        output: &mut Self::Buffer,
        epilogue: Epilogue,
        adapted: Adapted<'_, Self::LowRank>,
    );
    /// Rotates the rows' query and key heads in place by the step's angles, where `rotation` says which components form
    /// pairs, and writes their keys and values of `layer` into the pages of their sequences.
    fn place(
        &mut self,
        pool: &mut Self::KvPool,
        layer: usize,
        qkv: &mut Self::Buffer,
        layout: &QkvLayout,
        rotation: Option<RopePairing>,
    );
    /// Causal paged attention of the rows' queries; `output` rows are all query heads in order.
    fn attention(
        &mut self,
        pool: &Self::KvPool,
        layer: usize,
        qkv: &Self::Buffer,
        layout: &QkvLayout,
        output: &mut Self::Buffer,
    );
    /// `output[i] = input[wanted[i]]`, rows of `width`.
    fn select_rows(&mut self, input: &Self::Buffer, width: usize, output: &mut Self::Buffer);
    /// Waits for the step, reads the first numbers of buffers into as much memory as is given with each, and gives the step
    /// back.
    ///
    /// # Errors
    /// The first failure of the step.
    fn finish(&mut self, read: &mut [(&Self::Buffer, &mut [f32])]) -> Result<StepInput, DeviceError>;
}

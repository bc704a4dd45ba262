//! Where numbers are computed: device memory and the operations of a decoder.
//!
//! The decoder is written once against [`Backend`]. Activations are f32 rows of one width a buffer, one row a token;
//! they stay on the device, and only logits are read back. A rank of a tensor-parallel group would hold slices of each
//! [`Linear`] and add a sum over ranks behind the attention output and behind the second MLP projection.

pub mod cpu;

use kaito_kernels::ThreadPool;

use crate::kv_cache::{PageCopy, PageId};
use kaito_model::{
    config::{ModelConfig, Norm, QkvLayout, RopePairing},
    weights::{Linear, NormWeights},
};

/// A failure of the device itself (out of memory, a lost device), not of a request.
#[derive(Debug, thiserror::Error)]
#[error("{device}: {cause}")]
pub struct BackendError {
    /// The device, for people (`cpu`).
    pub device: String,
    /// What went wrong.
    pub cause: String,
}

/// The part of a sequence that one step computes.
#[derive(Debug, Clone, Copy)]
pub struct AttentionSpan<'a> {
    /// First row of the step's batch that belongs to this sequence.
    pub first_row: usize,
    /// Rows (tokens computed in this step).
    pub rows: usize,
    /// Tokens in the cache when the step is done; the rows are the last of them.
    pub context: usize,
    /// Pages of the sequence, in token order.
    pub pages: &'a [PageId],
}

/// Whether a result replaces what the output holds or is added to it.
pub use kaito_kernels::Write;

/// Device memory and the operations of a decoder. Row counts and widths are the caller's to get right.
pub trait Backend: Send + 'static {
    /// Activations: rows of f32.
    type Buffer: Send;
    /// A [`Linear`] where the device can use it.
    type Linear: Send;
    /// A normalisation's weights where the device can use them.
    type Norm: Send;
    /// Keys and values of all layers.
    type KvPool: Send;

    /// Memory for `len` numbers.
    fn buffer(&self, len: usize) -> Result<Self::Buffer, BackendError>;
    /// Makes a linear map usable; on a CPU it stays where the file is mapped.
    fn load_linear(&self, linear: Linear) -> Result<Self::Linear, BackendError>;
    /// Makes a normalisation usable.
    fn load_norm(&self, norm: NormWeights, kind: Norm) -> Result<Self::Norm, BackendError>;
    /// Memory for `pages` pages of `page_size` tokens in every layer of `config`.
    fn kv_pool(&self, config: &ModelConfig, pages: usize, page_size: usize) -> Result<Self::KvPool, BackendError>;

    /// Makes room for steps of `rows` tokens of a model, so that no step asks for memory.
    fn reserve(&mut self, config: &ModelConfig, rows: usize);
    /// Threads of the host, for what is not computed on the device: choosing tokens, say.
    fn host_pool(&self) -> &ThreadPool;

    /// `output[t] = table[ids[t]]`.
    fn embed(&mut self, table: &Self::Linear, ids: &[u32], output: &mut Self::Buffer);
    /// `output[t] = norm(input[t])`.
    fn norm(&mut self, norm: &Self::Norm, rows: usize, input: &Self::Buffer, output: &mut Self::Buffer);
    /// `output[t] (+)= linear(input[t])`.
    fn linear(
        &mut self,
        linear: &Self::Linear,
        rows: usize,
        input: &Self::Buffer,
        output: &mut Self::Buffer,
        write: Write,
    );
    /// Rotates query and key heads in place. `cos` and `sin` hold `rows` rows of half the rotated width.
    fn rope(
        &mut self,
        qkv: &mut Self::Buffer,
        layout: &QkvLayout,
        pairing: RopePairing,
        rows: usize,
        cos: &[f32],
        sin: &[f32],
    );
    /// Writes the rows' keys and values of `layer` into the pages of their sequences.
    fn store_kv(
        &mut self,
        pool: &mut Self::KvPool,
        layer: usize,
        qkv: &Self::Buffer,
        layout: &QkvLayout,
        spans: &[AttentionSpan],
    );
    /// Causal attention of the rows' queries over their sequences' pages; `output` rows are all query heads in order.
    fn attention(
        &mut self,
        pool: &Self::KvPool,
        layer: usize,
        qkv: &Self::Buffer,
        layout: &QkvLayout,
        spans: &[AttentionSpan],
        output: &mut Self::Buffer,
    );
    /// `output[t] = silu(gate) * up` of rows `[gate | up]`, each of the two `inner` wide.
    fn swiglu(&mut self, rows: usize, gate_up: &Self::Buffer, inner: usize, output: &mut Self::Buffer);
    /// The exact GELU of `rows` rows of `width`, in place.
    fn gelu(&mut self, rows: usize, width: usize, data: &mut Self::Buffer);
    /// `output[i] = input[selected[i]]`, rows of `width`.
    fn select_rows(&mut self, input: &Self::Buffer, width: usize, selected: &[usize], output: &mut Self::Buffer);
    /// The first `output.len()` numbers of a buffer.
    fn read(&mut self, buffer: &Self::Buffer, output: &mut [f32]);
    /// Copies pages in every layer.
    fn copy_pages(&mut self, pool: &mut Self::KvPool, copies: &[PageCopy]);
}

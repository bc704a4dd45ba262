//! Numeric kernels for CPUs, and the one place that maps files into memory: the only `unsafe` of the project.
//!
//! | what | where |
//! | --- | --- |
//! | products of activations with weights in f32, bf16 or f16 | [`TiledInput`], [`MatrixRef`], [`matmul`] |
//! | products with weights of 8 or 4 bits | [`quantize`], [`QuantizedInput`], [`QuantizedRef`], [`quantized_matmul`] |
//! | products with weights in the block formats of GGUF, as integers | [`repack`], and the same |
//! | products with weights in the block formats of GGUF, as f32 | [`BlockFormat`], [`BlocksRef`], [`block_matmul`] |
//! | what adapters add to products | [`LowRankRows`], [`add_low_rank`] |
//! | paged attention and the KV cache's memory | [`paged_attention`], [`store_kv`], [`KvBuffer`], [`KvLayout`] |
//! | embedding, normalisation, rotary positions, feed-forward functions | [`gather_rows`], [`rms_norm`], [`norm_heads`], [`rope`], [`swiglu`] |
//! | the threads that all of these run on | [`ThreadPool`] |
//! | what this machine can do at most (roofline) | [`ReadMemory`], [`Arithmetic`], [`TileProduct`] |
//!
//! Kernels compute in `f32`; weights are stored as [`DType`] and widened exactly, or quantised. Products may round activations to bf16, see
//! [`Compute`]. A result's bits depend on its
//! own inputs alone: not on how many tokens share a call, on the number of threads, or on which thread computed it. Products of
//! plain weights and attention do depend on the instruction set, which is chosen once per process: see [`KernelLevel`].
//!
//! A function panics where its arguments do not fit each other. Weights come as [`MatrixRef`] or [`QuantizedRef`], which cannot be
//! made of the wrong number of bytes. `unsafe` code rests on such checked types where it can, among them `Part` and `PartMut` (the
//! outputs that one thread writes), `WeightRows`, `StripWeights` and `KvBlock` (weights, keys and values that are there), and
//! values of `Simd` and `Dot`, which exist only where the processor has their instructions.

mod activation;
#[cfg_attr(not(any(target_arch = "x86_64", test)), allow(dead_code))] // Other processors have no tile registers.
mod amx;
mod attention;
mod blocks;
mod convert;
mod gather;
mod kv;
mod kv_layout;
mod kv_store;
mod low_rank;
mod mapped_file;
mod matmul;
mod matrix;
mod norm;
mod partition;
mod quantized;
mod roofline;
mod rope;
mod simd;
mod thread_pool;
mod zeros;

pub use activation::{add, gelu_erf, swiglu};
pub use attention::{
    AttentionSequence, AttentionShape, MAX_PAGE_TOKENS, PAGE_TOKENS, alibi_bias, alibi_slopes, paged_attention,
};
pub use blocks::{BlockFormat, BlocksLengthError, BlocksRef, dequantize, gather_block_rows};
pub use convert::{convert, narrow, widen};
pub use gather::gather_rows;
pub use kaito_spec::{DType, RopePairing};
pub use kv::{KvBuffer, KvDType, KvForm};
pub use kv_layout::KvLayout;
pub use kv_store::store_kv;
pub use low_rank::{LOW_RANK_PANEL, LowRankRows, add_low_rank, low_rank_panels};
pub use mapped_file::{FileChange, MappedFile, WhatChanged};
pub use matmul::{Compute, InputForm, TiledInput, UnknownCompute, Write, block_matmul, matmul};
pub use matrix::{MatrixLengthError, MatrixRef, Rows, RowsMut};
pub use norm::{layer_norm, norm_heads, rms_norm};
pub use quantized::{
    Grouping, Quantization, QuantizedFormat, QuantizedInput, QuantizedLengthError, QuantizedRef, quantize,
    quantized_matmul, repack,
};
pub use roofline::{Arithmetic, Operands, ReadMemory, TileElements, TileProduct, Unit};
pub use rope::rope;
pub use simd::{KernelLevel, LevelError, choose_level, instruction_set};
pub use thread_pool::ThreadPool;
pub use zeros::{ZeroBits, zeros};

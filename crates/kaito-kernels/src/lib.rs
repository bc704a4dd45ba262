//! Numeric kernels for CPUs, and the one place that maps files into memory: the only `unsafe` of the project.
//!
//! Kernels compute in `f32`; weights are stored as [`DType`] and widened exactly, or quantised. A result's bits depend on its
//! own inputs alone: not on how many tokens share a call, on the number of threads, or on who took which piece of work.
//! They do depend on the instruction set, which is chosen once per process.

mod activation;
mod attention;
mod convert;
mod dtype;
mod gather;
mod kv;
mod kv_layout;
mod mapped_file;
mod matmul;
mod matrix;
mod norm;
mod partition;
mod peak;
mod quantized;
mod rope;
mod simd;
mod thread_pool;
mod zeros;

pub use activation::{add, gelu_erf, swiglu};
pub use attention::{
    AttentionSequence, AttentionShape, MAX_PAGE_TOKENS, PAGE_TOKENS, alibi_bias, alibi_slopes, paged_attention,
};
pub use convert::{convert, narrow, widen};
pub use dtype::DType;
pub use gather::gather_rows;
pub use kv::{KvBuffer, KvDType};
pub use kv_layout::KvLayout;
pub use mapped_file::{FileChange, MappedFile, WhatChanged};
pub use matmul::{TiledInput, Write, matmul};
pub use matrix::{MatrixLengthError, MatrixRef, Rows, RowsMut};
pub use norm::{layer_norm, rms_norm};
pub use peak::{Arithmetic, ReadMemory, Unit};
pub use quantized::{Quantization, QuantizedInput, QuantizedLengthError, QuantizedRef, quantize, quantized_matmul};
pub use rope::{RopePairing, rope};
pub use simd::instruction_set;
pub use thread_pool::ThreadPool;
pub use zeros::{ZeroBits, zeros};

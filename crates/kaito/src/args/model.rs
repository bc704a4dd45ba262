//! Which model, and how it is loaded.

use std::{num::NonZeroUsize, path::PathBuf};

use anyhow::Context;
use clap::{ArgAction, Args, ValueEnum};
use kaito_engine::{ComputeChoice, DeviceChoice, KernelLevel, KvDType, LoadOptions, Quantization, choose_level};

use crate::{demo::cache_folder, values};

/// Which model, and how it is loaded.
#[derive(Debug, Args)]
pub struct ModelArgs {
    /// A preset's name (see `kaito presets`), a directory of weights, a GGUF file, or a hub repository
    /// (organisation/name[@revision], and which of its GGUF files: :Q4_K_M); without it, the demo model that comes with kaito
    #[arg(env = "KAITO_MODEL", value_parser = values::not_empty)]
    pub model: Option<String>,
    /// Directory of the model's weights, or their GGUF file, instead of a download
    #[arg(long, env = "KAITO_WEIGHTS", value_name = "DIR")]
    pub weights: Option<PathBuf>,
    /// What computes: auto or cpu (see `kaito devices`)
    #[arg(long, env = "KAITO_DEVICE", value_name = "DEVICE", value_parser = values::device, default_value_t = DeviceChoice::Auto)]
    pub device: DeviceChoice,
    /// Element type of the weights in memory; auto keeps that of the files
    #[arg(long, env = "KAITO_DTYPE", value_enum, default_value_t = DType::Auto)]
    pub dtype: DType,
    /// How activations are multiplied by weights of 16 bits and of GGUF files; --dtype f32 is always exact
    #[arg(long, env = "KAITO_COMPUTE", value_enum, default_value_t = Compute::Auto)]
    pub compute: Compute,
    /// Store the layers' weights in fewer bits: quantised at the first start, and kept in a file that later starts map
    #[arg(long, env = "KAITO_QUANTIZE", value_enum, default_value_t = Quantize::None)]
    pub quantize: Quantize,
    /// Folder for the files of quantised weights [default: kaito/quantized in the user's cache folder]
    #[arg(long, env = "KAITO_QUANTIZE_CACHE", value_name = "DIR")]
    pub quantize_cache: Option<PathBuf>,
    /// Element type of the KV cache; fewer bits leave room for more and longer sequences
    #[arg(long, env = "KAITO_KV_DTYPE", value_enum, default_value_t = KvElement::Auto)]
    pub kv_dtype: KvElement,
    /// Worker threads that compute, at most 1024 [default: one per core]
    #[arg(long, env = "KAITO_THREADS", value_name = "N", value_parser = values::count::<1024>)]
    pub threads: Option<NonZeroUsize>,
    /// Longest sequence, prompt and answer together, in tokens [default: the model's own limit]
    #[arg(long, env = "KAITO_MAX_SEQ_LEN", value_name = "TOKENS")]
    pub max_seq_len: Option<NonZeroUsize>,
    /// Most sequences that are computed at the same time, at most 4096 [default: 32; by an engine elsewhere 256]
    #[arg(long, env = "KAITO_MAX_BATCH_SIZE", value_name = "N", value_parser = values::count::<4096>)]
    pub max_batch_size: Option<NonZeroUsize>,
    /// Memory for the KV cache, like 4GiB [default: what the memory of this machine allows]
    #[arg(long, env = "KAITO_KV_CACHE_MEMORY", value_name = "SIZE", value_parser = values::size)]
    pub kv_cache_memory: Option<u64>,
    /// File with a chat template (Jinja2), in place of the model's own
    #[arg(long, env = "KAITO_CHAT_TEMPLATE", value_name = "FILE")]
    pub chat_template: Option<PathBuf>,
    /// Speculative decoding (n-gram): where a text repeats itself, propose the next tokens and verify them in one step. The
    /// text stays the same and takes fewer steps. It switches itself off while it does not pay
    #[arg(long, env = "KAITO_SPECULATE", value_name = "true|false", action = ArgAction::Set, default_value_t = true)]
    pub speculate: bool,
    /// For debugging: instructions that the kernels use, amx, avx512, avx2, neon or portable [default: the best that the processor
    /// has]
    #[arg(long, env = "KAITO_KERNELS", value_name = "LEVEL", value_parser = values::kernels)]
    pub kernels: Option<KernelLevel>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DType {
    /// As the files have it
    Auto,
    /// 32 bits
    #[value(alias = "float32")]
    F32,
    /// 16 bits, range of f32
    #[value(alias = "bfloat16")]
    Bf16,
    /// 16 bits, IEEE 754
    #[value(aliases = ["float16", "half"])]
    F16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Compute {
    /// With weights of 16 bits bf16, with those of a GGUF file in blocks int8, where the processor is faster at it; else exact
    Auto,
    /// In f32
    Exact,
    /// Rounded to bf16 at each product, with sums in f32
    #[value(alias = "bfloat16")]
    Bf16,
    /// Rounded to 8 bits at each product with weights of a GGUF file in blocks, as llama.cpp does, with sums in f32
    Int8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Quantize {
    /// As --dtype says
    None,
    /// 8.125 bits per weight
    Int8,
    /// 4.3125 bits per weight
    Int4,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KvElement {
    /// bf16 where attention is faster by it and activations are rounded too, else f32
    Auto,
    /// As they are computed
    #[value(alias = "float32")]
    F32,
    /// Half the memory
    #[value(alias = "bfloat16")]
    Bf16,
    /// A quarter of the memory
    Int8,
}

impl ModelArgs {
    /// Chooses the kernels that were asked for, before any of them runs.
    ///
    /// # Errors
    ///
    /// If this machine lacks them.
    pub fn choose_kernels(&self) -> anyhow::Result<()> {
        self.kernels.map_or(Ok(()), choose_level).context("--kernels")
    }

    pub fn load_options(&self) -> LoadOptions {
        let defaults = LoadOptions::default();
        LoadOptions {
            device: self.device,
            dtype: match self.dtype {
                DType::Auto => None,
                DType::F32 => Some(kaito_engine::DType::F32),
                DType::Bf16 => Some(kaito_engine::DType::Bf16),
                DType::F16 => Some(kaito_engine::DType::F16),
            },
            compute: match self.compute {
                Compute::Auto => ComputeChoice::Auto,
                Compute::Exact => ComputeChoice::Exact,
                Compute::Bf16 => ComputeChoice::Bf16,
                Compute::Int8 => ComputeChoice::Int8,
            },
            quantize: match self.quantize {
                Quantize::None => None,
                Quantize::Int8 => Some(Quantization::Int8),
                Quantize::Int4 => Some(Quantization::Int4),
            },
            quantized_cache: self
                .quantize_cache
                .clone()
                .or_else(|| cache_folder().map(|cache| cache.join("quantized"))),
            kv_dtype: match self.kv_dtype {
                KvElement::Auto => None,
                KvElement::F32 => Some(KvDType::F32),
                KvElement::Bf16 => Some(KvDType::Bf16),
                KvElement::Int8 => Some(KvDType::Int8),
            },
            threads: self.threads,
            max_seq_len: self.max_seq_len.map(NonZeroUsize::get),
            max_batch_size: self.max_batch_size.map_or(defaults.max_batch_size, NonZeroUsize::get),
            kv_cache_memory: self.kv_cache_memory,
            speculate: self.speculate,
            chat_template: self.chat_template.clone(),
            ..defaults
        }
    }
}

//! Flags of `kaito plan`.

use std::{num::NonZeroU32, path::PathBuf};

use clap::{Args, ValueEnum};
use kaito_presets::Precision;

use super::CloudName;

const EXIT_STATUS: &str = "\
Exit status: 0 if the model fits, 1 if it does not or after a failure, 2 after wrong usage.
Memory is that of GPUs; docs/hardware.md has the formula.";

#[derive(Debug, Args)]
#[command(after_help = EXIT_STATUS)]
pub struct PlanArgs {
    /// A preset (see `kaito presets`)
    #[arg(env = "KAITO_PRESET")]
    pub preset: String,
    /// Instance type of the nodes (see `kaito instance-types`); without it, the smallest that fits is recommended, and all others
    /// that fit are listed
    #[arg(long, env = "KAITO_INSTANCE_TYPE", value_name = "NAME")]
    pub instance_type: Option<String>,
    /// Number of nodes [default: as many as it takes]
    #[arg(long, env = "KAITO_COUNT", value_name = "N")]
    pub count: Option<NonZeroU32>,
    /// Tokens of each sequence, prompt and answer together [default: 2048]
    #[arg(long, env = "KAITO_CONTEXT", value_name = "TOKENS")]
    pub context: Option<u64>,
    /// Sequences at the same time
    #[arg(long, env = "KAITO_BATCH", value_name = "N", default_value_t = 1)]
    pub batch: u64,
    /// Adapters (LoRA) beside the model, each counted as one of rank 64 on all matrices
    #[arg(long = "adapters", env = "KAITO_ADAPTER_COUNT", value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=256))]
    pub adapter_count: u64,
    /// Precision of the weights; auto: as they are published
    #[arg(long, env = "KAITO_DTYPE", value_enum, default_value_t = PlanDType::Auto)]
    pub dtype: PlanDType,
    /// Precision of the KV cache; auto: that of the weights, or 16 bits if they have fewer
    #[arg(long, env = "KAITO_KV_DTYPE", value_enum, default_value_t = PlanDType::Auto)]
    pub kv_dtype: PlanDType,
    /// Only machines of this cloud
    #[arg(long, env = "KAITO_CLOUD", value_enum, conflicts_with = "instance_type")]
    pub cloud: Option<CloudName>,
    /// File with instance types of your own, a list or the ConfigMap's manifest
    #[arg(long, env = "KAITO_INSTANCE_TYPES", value_name = "FILE")]
    pub instance_types: Option<PathBuf>,
    /// Print JSON
    #[arg(long, env = "KAITO_JSON")]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PlanDType {
    Auto,
    #[value(alias = "float32")]
    F32,
    #[value(alias = "bfloat16")]
    Bf16,
    #[value(aliases = ["float16", "half"])]
    F16,
    Fp8,
    Int8,
    Int4,
}

impl PlanDType {
    /// `None` for auto.
    pub fn precision(self) -> Option<Precision> {
        match self {
            PlanDType::Auto => None,
            PlanDType::F32 => Some(Precision::F32),
            PlanDType::Bf16 => Some(Precision::Bf16),
            PlanDType::F16 => Some(Precision::F16),
            PlanDType::Fp8 => Some(Precision::Fp8),
            PlanDType::Int8 => Some(Precision::Int8),
            PlanDType::Int4 => Some(Precision::Int4),
        }
    }
}

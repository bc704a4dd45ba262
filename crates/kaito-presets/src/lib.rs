//! The catalogue of models and machines, as data: names, published shapes, instance types, and the arithmetic of how much
//! memory a model needs and which machines have it.
//!
//! Pure: nothing here reads a file, the network or the clock. A server takes a model's truth from the model's own
//! `config.json`; this table serves the command line, planning and tests.
#![forbid(unsafe_code)]

mod catalogue;
mod config_json;
mod family;
mod find;
mod instance_types;
mod memory;
mod plan;
mod preset;
mod shape;
mod size;

pub use catalogue::PRESETS;
pub use family::{Dialect, Family};
pub use find::{UnknownPreset, find};
pub use instance_types::{
    Cloud, ComputeCapability, CustomInstanceType, Gpu, GpuVendor, InstanceType, InstanceTypes, InvalidInstanceType,
    UnknownInstanceType, find_instance_type,
};
pub use kaito_spec::{DType, Residual};
pub use memory::{
    ADAPTER_RANK, Cut, Estimate, FURTHER_LOGITS_ON_CPUS, PAGE_TOKENS, Precision, adapter_bytes, adapter_bytes_on_cpus,
    estimate, estimate_on_cpus,
};
pub use plan::{Capacity, Enough, Load, LoadError, MIN_CONTEXT, OnCpus, Plan, Shortfall};
pub use preset::{GIB, ImageAccess, Preset, PresetKind, Workload, WorkloadKind};
pub use shape::{LongRope, Rope, Shape};
pub use size::{gib, gib_needed};

//! The catalogue of models, as data: names, published shapes, memory arithmetic, what a cluster must offer.
//!
//! Pure: nothing here reads a file, the network or the clock. A server takes a model's truth from the model's own
//! `config.json`; this table serves the command line, planning and tests.
#![forbid(unsafe_code)]

mod catalogue;
mod config_json;
mod find;
mod preset;
mod shape;

pub use catalogue::PRESETS;
pub use find::{UnknownPreset, find};
pub use preset::{GIB, ImageAccess, Preset, PresetKind, Workload, WorkloadKind};
pub use shape::{DType, Family, LongRope, Residual, Rope, Shape};

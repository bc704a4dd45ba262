//! Runs models on Kubernetes from a `Workspace` manifest.
#![forbid(unsafe_code)]

pub mod admission;
pub mod crd;
mod error;
pub mod instance_types;
pub mod workspace;
pub mod yaml;

pub use error::Error;

//! Runs models on Kubernetes from a `Workspace` manifest.
#![forbid(unsafe_code)]

pub mod admission;
pub mod instance_types;
pub mod workspace;

//! Runs models on Kubernetes from a `Workspace` manifest.
#![forbid(unsafe_code)]

pub mod admission;
pub mod workspace;

//! Runs models on Kubernetes from a `Workspace` manifest.
#![forbid(unsafe_code)]

pub mod admission;
pub mod controller;
pub mod crd;
pub mod decide;
mod error;
pub mod install;
pub mod instance_types;
pub mod manifests;
pub mod runtime;
pub mod up;
pub mod webhook;
pub mod workspace;
pub mod yaml;

pub use error::Error;

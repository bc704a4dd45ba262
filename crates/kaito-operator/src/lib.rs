//! Runs models on Kubernetes from a `Workspace` manifest.
//!
//! `kaito controller` reconciles: watches report a change ([`controller`]), a pure function decides what is to be done
//! ([`decide`]), and server-side apply does it. The admission webhook ([`webhook`]) checks manifests before they are stored.
//!
//! The modules, from the top down. Each uses only modules below it, and none but those in its row; `tests/modules.rs` compares
//! this table with the sources.
//!
//! | module | what it is | uses |
//! | --- | --- | --- |
//! | `controller` | watches, reconciles, leader election, metrics | `webhook`, `decide`, `runtime`, `instance_types`, `karpenter`, `reason`, `workspace`, `error` |
//! | `up` | `kaito up`: a workspace's pod as processes of this machine | `decide`, `admission`, `runtime`, `layout`, `reason`, `workspace`, `yaml`, `error` |
//! | `webhook` | the admission webhook and its certificates | `admission`, `workspace`, `error` |
//! | `install` | the manifests of the controller itself | `decide`, `admission`, `crd`, `instance_types`, `yaml`, `error` |
//! | `manifests` | `kaito validate`: manifests in files | `admission`, `workspace`, `yaml` |
//! | `decide` | what is to be done for a workspace, as a pure function | `runtime`, `layout`, `karpenter`, `reason`, `workspace`, `text`, `named` |
//! | `admission` | which workspaces are refused, and why | `runtime`, `layout`, `workspace` |
//! | `runtime` | the containers of each runtime | `layout`, `reason`, `workspace`, `text` |
//! | `layout` | how a model is spread over pods and GPUs | `workspace` |
//! | `karpenter` | the kind NodeClaim | `workspace` |
//! | `crd` | the CustomResourceDefinition | `workspace` |
//! | `reason` | the reasons of conditions and events | `named` |
//! | `workspace` | the kind Workspace | `named` |
//! | `instance_types` | instance types that users describe | |
//! | `yaml` | reading and writing YAML | `error` |
//! | `error` | what can fail here | |
//! | `text` | lists, counts and times in messages | |
//! | `named` | enums of names | |
#![forbid(unsafe_code)]

pub mod admission;
pub mod controller;
pub mod crd;
pub mod decide;
mod error;
pub mod install;
pub mod instance_types;
pub mod karpenter;
pub mod layout;
pub mod manifests;
mod named;
pub mod reason;
pub mod runtime;
mod text;
pub mod up;
pub mod webhook;
pub mod workspace;
pub mod yaml;

pub use error::Error;

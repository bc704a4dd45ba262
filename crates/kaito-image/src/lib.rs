//! Packs models into OCI images and sends them to registries, without a daemon.
//!
//! A [`Model`] is a directory of weights that was checked, an [`Adapter`] one of an adapter; a [`Plan`] decides on the layers of its image; an [`Image`] has
//! digests and knows where its bytes lie, so that it can be written or sent as a stream.
#![forbid(unsafe_code)]

mod adapter;
mod base;
mod blob;
mod build;
mod error;
mod extract;
mod inspect;
mod job;
mod layer;
mod layout;
mod manifest;
mod model;
mod output;
mod programs;
mod progress;
pub mod registry;
mod unpack;
mod verify;

pub use adapter::{Adapter, extract_adapter};
pub use base::Executable;
pub use blob::{Blob, BlobSource, FileRange, Image};
pub use build::{ADAPTER, Base, Output, Plan, WEIGHTS, has_server};
pub use error::Error;
pub use inspect::{Inspection, LayerInfo};
pub use job::Job;
pub use layer::SourceFile;
pub use layout::{Layout, split_path};
pub use manifest::{Platform, labels};
pub use model::{Expected, Model, ModelFile};
pub use oci_spec::image::Digest;
pub use programs::check_copies_itself;
pub use progress::{Event, Item, Progress};
pub use unpack::{Unpacked, copy_folder, unpack};
pub use verify::{Verification, verify_blobs, verify_weights};

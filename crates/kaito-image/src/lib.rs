//! Packs models into OCI images and sends them to registries, without a daemon.
#![forbid(unsafe_code)]

mod blob;
mod error;
mod progress;

pub use blob::{Blob, BlobSource, FileRange, Image};
pub use error::Error;
pub use progress::{Event, Item, Progress};

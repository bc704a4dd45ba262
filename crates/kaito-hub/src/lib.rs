//! Downloads model repositories into the usual hub cache.
//!
//! The folder layout, the lock files and the environment variables are those of the hub's own client, so that both
//! share what either of them has downloaded:
//!
//! ```text
//! models--ORG--NAME/refs/REVISION              the commit that a branch or tag pointed to
//! models--ORG--NAME/blobs/ETAG                 contents
//! models--ORG--NAME/snapshots/COMMIT/FILE      relative links to them
//! .locks/models--ORG--NAME/ETAG.lock           held while ETAG is being written
//! ```
//!
//! Everything blocks: a download has nothing to do but wait, and its caller has a thread for it.
#![forbid(unsafe_code)]

mod cache;
mod download;
mod error;
mod gguf;
mod http;
mod options;
mod progress;
mod repo;
mod select;

pub use download::{Hub, Snapshot};
pub use error::Error;
pub use kaito_net::RetryPolicy;
pub use options::HubOptions;
pub use progress::{Event, PlannedFile, Progress};
pub use repo::Repo;

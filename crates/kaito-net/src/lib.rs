//! What the HTTP clients of this repository share: when to try again ([`RetryPolicy`], [`Retries`]), whose certificates to
//! trust ([`authorities`]), and where credentials may go ([`same_origin`]).
//!
//! There is no client here. One of them blocks and the others are asynchronous, so each waits in its own way for the time
//! that it is told.
#![forbid(unsafe_code)]

mod error;
mod origin;
mod retry;
mod trust;

pub use error::Error;
pub use origin::same_origin;
pub use retry::{Retries, RetryPolicy, is_transient, retry_after};
pub use trust::{authorities, root_store, tls_config};

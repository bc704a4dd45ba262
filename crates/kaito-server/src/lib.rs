//! The HTTP server: routes, request dialects, streaming, health and metrics.
//!
//! A request's way through the crate: [`routes`] takes it, [`limits`] reads its body, [`dialect`] turns the bytes into
//! a [`dialect::Request`] (a pure function), [`job`] runs that on the model, and [`stream`] or the dialect's reply
//! writes the answer.
#![forbid(unsafe_code)]

mod auth;
mod connection;
pub mod dialect;
mod error;
mod fields;
mod health;
mod host;
mod job;
mod json;
mod keys;
mod limits;
mod metrics;
mod options;
mod page;
mod record;
mod routes;
mod server;
mod shutdown;
mod state;
mod stream;

pub use axum::http::HeaderValue;
pub use error::{ApiError, Error};
pub use host::HostName;
pub use keys::{ApiKey, ApiKeys, KeyError};
pub use options::ServerOptions;
pub use server::{Server, ShutdownHandle};

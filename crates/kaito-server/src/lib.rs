//! The HTTP server: routes, request dialects, streaming, health and metrics.
//!
//! A request's way through the crate: `connection` sees its bytes, `routes` takes it, `body` reads its body, `turns`
//! says when it is prepared. [`dialect`] turns the bytes into a [`dialect::Request`] (a pure function), `job` runs that on a
//! [`Model`], and the dialect's [`dialect::Reply`] writes the answer, which `stream` sends as events if it streams.
#![forbid(unsafe_code)]

mod anthropic;
mod auth;
mod body;
mod body_pool;
mod connection;
mod cross_origin;
pub mod dialect;
mod error;
mod fields;
mod followed;
mod framing;
mod health;
mod host;
mod job;
mod json;
mod keeping;
mod keys;
mod limits;
mod metrics;
mod model;
mod ollama;
mod openai;
mod openapi;
mod options;
mod page;
mod record;
mod routes;
mod server;
mod shutdown;
mod state;
mod stream;
mod tgi;
mod tls;
mod trace;
mod turns;

pub use axum::http::HeaderValue;
pub use error::{ApiError, Error};
pub use host::HostName;
pub use keys::{ApiKey, ApiKeys, KeyError};
pub use model::Model;
pub use openai::tools::ToolSetting;
pub use options::ServerOptions;
pub use server::{LoadingNote, Server, ShutdownHandle};
pub use tls::{Tls, TlsError};

//! Measures models and servers: prompts, decoding, latencies under load, next to the limits of the machine.
//!
//! [`measure`] sends requests to an engine in this process or to a server, and records when the tokens arrive. A seed decides
//! beforehand what is requested and when. The result is a [`Report`]: data, from which [`tables`] are made for a terminal and a
//! [`page`] for a browser.
#![forbid(unsafe_code)]

mod answer;
mod client;
mod error;
mod failure;
mod limits;
mod load;
mod machine;
mod metrics;
mod notes;
mod own_server;
mod prompts;
mod ready;
mod report;
mod run;
mod sequences;
mod settings;
mod statistics;
mod target;

pub use client::{Api, ServerOptions, TokenCounts};
pub use error::Error;
pub use failure::{Failure, FailureCount};
pub use kaito_kernels::{Operands, TileElements, Unit};
pub use limits::{Limits, TileLimits};
pub use machine::Machine;
pub use ready::Subject;
pub use report::{
    ClientsRow, DecodeRow, Load, Model, PrefillRow, RateRow, Report, SCHEMA, TargetInfo, TargetKind, page, tables,
};
pub use run::{Progress, measure};
pub use settings::{Settings, Table};
pub use statistics::Summary;

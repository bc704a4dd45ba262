//! What the tests of several crates share. No program is built with it: crates name it among their dev-dependencies alone.
//!
//! [`files`] has the models that tests run, [`http`] requests that no client sends, [`process`] the program itself, run for
//! real, and [`wait`] conditions that come true some time. `hub`, `registry`, `server` and `upstream`, each a feature of that name, are
//! servers in the test's own process with faults on demand.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing helper fails its test")]

pub mod background;
pub mod files;
pub mod http;
#[cfg(feature = "hub")]
pub mod hub;
pub mod process;
#[cfg(feature = "registry")]
pub mod proxy;
#[cfg(feature = "registry")]
pub mod registry;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "upstream")]
pub mod upstream;
pub mod wait;

//! The registry client against a registry of this test, which keeps to the specification or, where told to, does not.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing helper fails its test")]

mod auth;
mod faults;
mod images;
mod proxy;
mod pull;
mod push;
mod quirks;
mod refusals;
mod server;
mod tls;

//! A live server from outside. Tests that need a process of their own have files of their own beside this one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing helper fails its test")]

mod access;
mod anthropic;
mod bad_requests;
mod cancellation;
mod documented_requests;
mod draining;
mod faults;
mod framing;
mod lifecycle;
mod metrics;
mod null_model;
mod objects;
mod ollama;
mod openai;
mod openapi;
mod overload;
mod preparing;
mod refusals;
mod responses;
mod streaming;
mod tgi;
mod tls;

//! A server whose tokens an engine elsewhere computes, over HTTP on both sides.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing helper fails its test")]

mod adapters;
mod faults;
mod front;
mod health;
mod parameters;
mod queue;
mod recovery;
mod same_answers;
mod sampling;

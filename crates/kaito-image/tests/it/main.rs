//! Images of tiny models, on disks and in registries.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing helper fails its test")]

mod adapters;
mod images;
mod registry;

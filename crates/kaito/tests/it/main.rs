//! The program from outside, and what the repository promises of itself.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failing helper fails its test")]

mod adapter_images;
mod architecture;
mod bench;
mod chat;
mod cli;
mod closed_pipes;
mod dependencies;
mod dockerfiles;
mod documents;
mod hardware;
mod images;
mod kernels;
mod limits;
mod precision;
mod preset_weights;
mod program;
mod readme;
mod supervise;
mod unread_logs;
mod up;
mod upstream;
mod weights;

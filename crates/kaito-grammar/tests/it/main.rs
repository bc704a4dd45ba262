//! Grammars over real tokenizers, asked as the engine asks them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failing helper fails its test")]

mod common;
mod forced;
mod json;
mod kinds;
mod limits;
mod tokens;
mod walks;

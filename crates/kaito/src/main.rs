//! The `kaito` command line.
#![forbid(unsafe_code)]

fn main() {}

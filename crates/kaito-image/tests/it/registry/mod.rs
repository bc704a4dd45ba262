//! The registry client against a registry of this test, which keeps to the specification or, where told to, does not.

mod auth;
mod faults;
mod images;
mod pull;
mod push;
mod quirks;
mod refusals;
mod tls;
mod unpack;

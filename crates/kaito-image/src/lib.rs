//! Packs models into OCI images and sends them to registries, without a daemon.
#![forbid(unsafe_code)]

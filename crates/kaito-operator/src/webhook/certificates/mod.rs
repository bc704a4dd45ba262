//! The webhook's certificates: made here, kept in a Secret that all replicas share, renewed before they expire.

mod bundle;
mod inspect;
mod issue;
mod manager;
mod trust;

pub use issue::Lifetimes;
pub use manager::{CertificateManager, CertificateOptions, Clock, service_names};

#[cfg(test)]
mod tests;

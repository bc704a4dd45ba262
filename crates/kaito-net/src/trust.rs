//! Whose certificates are trusted.

use std::sync::Arc;

use rustls::{
    ClientConfig, ConfigBuilder, RootCertStore, WantsVerifier,
    crypto::{CryptoProvider, ring},
    pki_types::CertificateDer,
};

use crate::Error;

/// The certificate authorities to trust: the system's, so that a company's own counts; where it has none, as in minimal
/// containers, those that browsers trust.
pub fn authorities() -> Vec<CertificateDer<'static>> {
    let native = rustls_native_certs::load_native_certs();
    for error in &native.errors {
        tracing::debug!(%error, "a certificate of the system was left out");
    }
    if native.certs.is_empty() { webpki_root_certs::TLS_SERVER_ROOT_CERTS.to_vec() } else { native.certs }
}

/// [`authorities`] as rustls wants them; those that it cannot read are left out.
pub fn root_store() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(authorities());
    roots
}

/// The beginning of a TLS configuration for clients, and the provider of its cryptography.
///
/// # Errors
/// When the provider has no usable version of TLS.
pub fn tls_config() -> Result<(ConfigBuilder<ClientConfig, WantsVerifier>, Arc<CryptoProvider>), Error> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    Ok((builder, provider))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_always_somebody_to_trust() {
        assert!(authorities().len() > 10);
        assert!(!root_store().is_empty());
        assert!(tls_config().is_ok());
    }
}

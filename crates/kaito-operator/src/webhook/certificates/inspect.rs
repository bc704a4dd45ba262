//! Reads certificates and checks whether clients trust them.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::{
    RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    sign::CertifiedKey,
};

/// The time for which a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    pub start: SystemTime,
    pub end: SystemTime,
}

impl Validity {
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
        let validity = certificate.validity();
        let time = |time: x509_parser::time::ASN1Time| {
            UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(time.timestamp()).ok()?))
        };
        Some(Self { start: time(validity.not_before)?, end: time(validity.not_after)? })
    }

    /// When the certificate is to be renewed: after two thirds of its time.
    pub fn renewal(self) -> SystemTime {
        self.start + self.length() * 2 / 3
    }

    pub fn length(self) -> Duration {
        self.end.duration_since(self.start).unwrap_or_default()
    }
}

/// The certificates of a PEM text; none where it is damaged.
pub fn certificates(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().unwrap_or_default()
}

/// A chain and its key, where they belong together.
pub fn certified_key(chain: &str, key: &str, provider: &CryptoProvider) -> Option<CertifiedKey> {
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).ok()?;
    let chain = certificates(chain);
    if chain.is_empty() {
        return None;
    }
    CertifiedKey::from_der(chain, key, provider).ok()
}

/// Whether a client that trusts `authorities` accepts `certificate` for each of `names`.
pub fn is_trusted(
    certificate: &CertificateDer<'_>,
    authorities: &[CertificateDer<'static>],
    names: &[String],
    now: SystemTime,
    provider: &Arc<CryptoProvider>,
) -> bool {
    let mut roots = RootCertStore::empty();
    if roots.add_parsable_certificates(authorities.iter().cloned()).0 == 0 {
        return false;
    }
    let Ok(verifier) = WebPkiServerVerifier::builder_with_provider(roots.into(), Arc::clone(provider)).build() else {
        return false;
    };
    let now = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default());
    names.iter().all(|name| {
        ServerName::try_from(name.as_str())
            .is_ok_and(|name| verifier.verify_server_cert(certificate, &[], &name, &[], now).is_ok())
    })
}

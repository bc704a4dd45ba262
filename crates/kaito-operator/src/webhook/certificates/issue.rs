//! Makes certificates: a self-signed authority, and serving certificates that it signs.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::CertificateDer;

use crate::Error;

/// How long certificates are valid. They are renewed after two thirds of that time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetimes {
    /// Of the authority, which the API server trusts.
    pub authority: Duration,
    /// Of the serving certificate.
    pub serving: Duration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        Self { authority: 730 * DAY, serving: 90 * DAY }
    }
}

/// A certificate and its key, both PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    pub certificate: String,
    pub key: String,
}

/// Clocks differ, so a certificate is valid from a little before its creation.
const BACKDATED: Duration = Duration::from_secs(5 * 60);

/// A new authority.
pub fn authority(lifetime: Duration, now: SystemTime) -> Result<Issued, Error> {
    let mut params = params(&[], "kaito-webhook-authority", lifetime, now, None)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let key = KeyPair::generate().map_err(made)?;
    let certificate = params.self_signed(&key).map_err(made)?;
    Ok(Issued { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// A new serving certificate for `names`, which ends no later than `authority` does.
pub fn serving(
    names: &[String],
    lifetime: Duration,
    now: SystemTime,
    authority: &CertificateDer<'_>,
    authority_key: &str,
    authority_end: SystemTime,
) -> Result<Issued, Error> {
    let common_name = names.first().map_or("kaito-webhook", String::as_str);
    let mut params = params(names, common_name, lifetime, now, Some(authority_end))?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let signing_key = KeyPair::from_pem(authority_key).map_err(made)?;
    let issuer = Issuer::from_ca_cert_der(authority, signing_key).map_err(made)?;
    let key = KeyPair::generate().map_err(made)?;
    let certificate = params.signed_by(&key, &issuer).map_err(made)?;
    Ok(Issued { certificate: certificate.pem(), key: key.serialize_pem() })
}

fn params(
    names: &[String],
    common_name: &str,
    lifetime: Duration,
    now: SystemTime,
    latest: Option<SystemTime>,
) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::new(names).map_err(made)?;
    // A common name may have 64 characters at most; clients read only the alternative names.
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name.chars().take(64).collect::<String>());
    let end = latest.unwrap_or(now + lifetime).min(now + lifetime);
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let since_epoch = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default();
    params.not_before = epoch + since_epoch(now.checked_sub(BACKDATED.min(lifetime / 20)).unwrap_or(UNIX_EPOCH));
    params.not_after = epoch + since_epoch(end);
    Ok(params)
}

fn made(error: rcgen::Error) -> Error {
    Error::MakeCertificate(error.to_string())
}

//! The content of the Secret, and when which part of it is renewed: a pure function of the content and the time.
//!
//! A new certificate authority (CA) is trusted for a while before it signs: it is put into the bundle first, and the serving
//! certificate is renewed an overlap later, when every API server has the bundle. So no request fails while the CA changes.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use k8s_openapi::ByteString;
use rustls::{crypto::CryptoProvider, pki_types::CertificateDer, sign::CertifiedKey};

use super::{
    inspect::{self, Validity},
    issue::{self, Lifetimes},
};
use crate::Error;

/// Trusted authorities in PEM, newest first.
const AUTHORITIES: &str = "ca.crt";
/// Key of the newest authority.
const AUTHORITY_KEY: &str = "ca.key";
const SERVING: &str = "tls.crt";
const SERVING_KEY: &str = "tls.key";

/// Longest time that an authority is trusted before it signs.
const LONGEST_OVERLAP: Duration = Duration::from_secs(15 * 60);

/// The Secret's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    pub authorities: String,
    authority_key: String,
    serving: String,
    serving_key: String,
}

/// A bundle in which nothing is due.
#[derive(Debug)]
pub struct Current {
    pub bundle: Bundle,
    /// Whether it differs from the bundle before.
    pub is_changed: bool,
    /// The serving certificate and its key.
    pub certified_key: CertifiedKey,
    /// The end of the serving certificate.
    pub end: SystemTime,
    /// When to look again.
    pub next: SystemTime,
}

impl Bundle {
    /// `None` where something is missing.
    pub fn from_data(data: &BTreeMap<String, ByteString>) -> Option<Self> {
        let text = |key: &str| String::from_utf8(data.get(key)?.0.clone()).ok();
        Some(Self {
            authorities: text(AUTHORITIES)?,
            authority_key: text(AUTHORITY_KEY)?,
            serving: text(SERVING)?,
            serving_key: text(SERVING_KEY)?,
        })
    }

    pub fn to_data(&self) -> BTreeMap<String, ByteString> {
        [
            (AUTHORITIES, &self.authorities),
            (AUTHORITY_KEY, &self.authority_key),
            (SERVING, &self.serving),
            (SERVING_KEY, &self.serving_key),
        ]
        .map(|(key, text)| (key.to_owned(), ByteString(text.clone().into_bytes())))
        .into()
    }
}

/// The bundle, with whatever is due by `now` renewed.
///
/// # Errors
///
/// [`Error::MakeCertificate`].
pub fn current(
    bundle: Option<&Bundle>,
    names: &[String],
    lifetimes: Lifetimes,
    now: SystemTime,
    provider: &Arc<CryptoProvider>,
) -> Result<Current, Error> {
    let authority = match bundle.and_then(|bundle| Authority::of(bundle, now, provider)) {
        Some(authority) if now < authority.validity.renewal() => authority,
        older => Authority::new(older.as_ref(), lifetimes.authority, now)?,
    };
    let kept = bundle.and_then(|bundle| Serving::of(bundle, &authority, names, now, provider));
    let (serving, is_kept) = match kept {
        Some(serving) if now < serving.due(&authority) => (serving, true),
        _ => (Serving::new(&authority, names, lifetimes.serving, now, provider)?, false),
    };
    let result = Bundle {
        authorities: authority.trusted.clone(),
        authority_key: authority.key.clone(),
        serving: serving.certificate.clone(),
        serving_key: serving.key.clone(),
    };
    Ok(Current {
        is_changed: !is_kept || bundle != Some(&result),
        bundle: result,
        end: serving.validity.end,
        next: serving.due(&authority).min(authority.validity.renewal()),
        certified_key: serving.certified_key,
    })
}

/// The newest authority, and all that are trusted.
struct Authority {
    certificate: CertificateDer<'static>,
    key: String,
    validity: Validity,
    /// PEM, newest first.
    trusted: String,
    all: Vec<CertificateDer<'static>>,
    /// When it may sign.
    signs_from: SystemTime,
}

impl Authority {
    /// `None` where it is damaged or expired.
    fn of(bundle: &Bundle, now: SystemTime, provider: &CryptoProvider) -> Option<Self> {
        inspect::certified_key(&bundle.authorities, &bundle.authority_key, provider)?;
        Self::newest(bundle.authorities.clone(), bundle.authority_key.clone()).filter(|it| now < it.validity.end)
    }

    fn newest(trusted: String, key: String) -> Option<Self> {
        let all = inspect::certificates(&trusted);
        let certificate = all.first()?.clone();
        let validity = Validity::of(&certificate)?;
        let overlap = if all.len() > 1 { LONGEST_OVERLAP.min(validity.length() / 10) } else { Duration::ZERO };
        Some(Self { certificate, key, validity, trusted, all, signs_from: validity.start + overlap })
    }

    /// A new authority, trusted beside those of `older` that are still valid.
    fn new(older: Option<&Self>, lifetime: Duration, now: SystemTime) -> Result<Self, Error> {
        let issued = issue::authority(lifetime, now)?;
        let mut trusted = issued.certificate;
        for certificate in older.iter().flat_map(|older| &older.all) {
            if Validity::of(certificate).is_some_and(|validity| now < validity.end) {
                trusted.push_str(&pem(certificate));
            }
        }
        Self::newest(trusted, issued.key).ok_or_else(|| Error::MakeCertificate("it cannot be read back".to_owned()))
    }
}

/// The serving certificate.
struct Serving {
    certificate: String,
    key: String,
    validity: Validity,
    certified_key: CertifiedKey,
    is_by_newest: bool,
}

impl Serving {
    /// `None` where it is damaged, or where a client that trusts the bundle would not accept it.
    fn of(
        bundle: &Bundle,
        authority: &Authority,
        names: &[String],
        now: SystemTime,
        provider: &Arc<CryptoProvider>,
    ) -> Option<Self> {
        let certified_key = inspect::certified_key(&bundle.serving, &bundle.serving_key, provider)?;
        let leaf = certified_key.cert.first()?;
        let validity = Validity::of(leaf)?;
        // Another replica's clock may be ahead.
        let now = now.max(validity.start);
        let newest = std::slice::from_ref(&authority.certificate);
        let is_by_newest = inspect::is_trusted(leaf, newest, names, now, provider);
        if !is_by_newest && !inspect::is_trusted(leaf, &authority.all, names, now, provider) {
            return None;
        }
        Some(Self {
            certificate: bundle.serving.clone(),
            key: bundle.serving_key.clone(),
            validity,
            certified_key,
            is_by_newest,
        })
    }

    fn new(
        authority: &Authority,
        names: &[String],
        lifetime: Duration,
        now: SystemTime,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, Error> {
        let issued =
            issue::serving(names, lifetime, now, &authority.certificate, &authority.key, authority.validity.end)?;
        let unreadable = || Error::MakeCertificate("it cannot be read back".to_owned());
        let certified_key =
            inspect::certified_key(&issued.certificate, &issued.key, provider).ok_or_else(unreadable)?;
        let validity = certified_key.cert.first().and_then(Validity::of).ok_or_else(unreadable)?;
        Ok(Self { certificate: issued.certificate, key: issued.key, validity, certified_key, is_by_newest: true })
    }

    /// When it is to be renewed. Where the authority is new, that is after the overlap, or halfway from the usual time to the
    /// end if the overlap is longer.
    fn due(&self, authority: &Authority) -> SystemTime {
        if self.is_by_newest {
            return self.validity.renewal();
        }
        authority.signs_from.min(self.validity.end - self.validity.length() / 6)
    }
}

fn pem(certificate: &CertificateDer<'_>) -> String {
    pem::encode_config(
        &pem::Pem::new("CERTIFICATE", certificate.to_vec()),
        pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF),
    )
}

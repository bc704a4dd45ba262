//! The server's certificate and key: read at the start, checked against each other, and read again whenever they change.

use std::convert::Infallible;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use crate::followed::{self, Followed, Source};

/// Largest file of a certificate chain or a key, in bytes.
const MAX_FILE: u64 = 256 << 10;
/// What a certificate that expires this soon is warned about.
const SOON: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Why a certificate and a key cannot be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("the {what} {} cannot be read: {reason}", path.display())]
    Unreadable {
        /// Which of the two.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A file has nothing of its kind in it.
    #[error("{} holds no {what}; it must hold {expected}", path.display())]
    Empty {
        /// Which of the two.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What it must hold.
        expected: &'static str,
    },
    /// What a file holds is damaged, or of a kind that is not known.
    #[error("the {what} in {} cannot be used: {reason}", path.display())]
    Unusable {
        /// Which of the two.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The key is another certificate's.
    #[error("the key in {} does not belong to the certificate in {}, which is for {subject}", key.display(), certificate.display())]
    Mismatch {
        /// The file of the certificate.
        certificate: PathBuf,
        /// The file of the key.
        key: PathBuf,
        /// Whose certificate it is.
        subject: String,
    },
}

/// A certificate and its key, in two files that are read again whenever they change.
#[derive(Clone)]
pub struct Tls {
    files: Arc<Followed<Files>>,
    config: Arc<ServerConfig>,
}

impl Tls {
    /// Reads a chain of certificates, the server's own first, and its key, both in PEM.
    ///
    /// # Errors
    /// Files that cannot be read or used, and a key that does not belong to the certificate.
    pub fn open(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let files = Files { certificate: certificate.to_owned(), key: key.to_owned() };
        let files = Arc::new(Followed::open(files)?);
        files.value().warn_of_dates(certificate, SystemTime::now());
        let unusable = |error: rustls::Error| TlsError::Unusable {
            what: CERTIFICATE,
            path: certificate.to_owned(),
            reason: error.to_string(),
        };
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Latest(Arc::clone(&files))));
        config.alpn_protocols = [HTTP_2, HTTP_1].map(<[u8]>::to_vec).to_vec();
        Ok(Self { files, config: Arc::new(config) })
    }

    /// Reads the files again whenever they change. Connections that are open keep the certificate that they began with.
    pub(crate) async fn follow(self) -> Infallible {
        self.files.follow().await
    }

    /// How connections begin.
    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

/// The names of the protocols in a TLS handshake.
pub(crate) const HTTP_2: &[u8] = b"h2";
const HTTP_1: &[u8] = b"http/1.1";

const CERTIFICATE: &str = "certificate";
const KEY: &str = "key";

/// Answers each handshake with what the files hold now.
struct Latest(Arc<Followed<Files>>);

impl fmt::Debug for Latest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Latest").finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Latest {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.value().certified))
    }
}

/// Where certificate and key are.
struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

/// A certificate and its key.
struct Identity {
    /// What the files hold, to see whether they change.
    files: [Vec<u8>; 2],
    subject: String,
    not_before: i64,
    not_after: i64,
    certified: Arc<CertifiedKey>,
}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        self.files == other.files
    }
}

impl Source for Files {
    type Value = Identity;
    type Error = TlsError;

    fn read(&self) -> Result<Identity, TlsError> {
        let read = |what, path: &Path| {
            followed::read_file(path, MAX_FILE).map_err(|error| TlsError::Unreadable {
                what,
                path: path.to_owned(),
                reason: error.to_string(),
            })
        };
        let files = [read(CERTIFICATE, &self.certificate)?, read(KEY, &self.key)?];
        let [certificate, key] = &files;
        let chain = self.chain(certificate)?;
        let key = self.private_key(key)?;
        let in_certificate =
            |reason: String| TlsError::Unusable { what: CERTIFICATE, path: self.certificate.clone(), reason };
        let (subject, not_before, not_after) = {
            let own = chain.first().ok_or_else(|| self.no_certificate())?;
            let (_, parsed) = X509Certificate::from_der(own).map_err(|error| in_certificate(error.to_string()))?;
            let validity = parsed.validity();
            (subject(&parsed), validity.not_before.timestamp(), validity.not_after.timestamp())
        };
        let certified = CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => TlsError::Mismatch {
                certificate: self.certificate.clone(),
                key: self.key.clone(),
                subject: subject.clone(),
            },
            rustls::Error::InvalidCertificate(_) => in_certificate(error.to_string()),
            error => TlsError::Unusable { what: KEY, path: self.key.clone(), reason: error.to_string() },
        })?;
        Ok(Identity { files, subject, not_before, not_after, certified: Arc::new(certified) })
    }

    fn log_taken(&self, identity: &Identity) {
        let file = self.certificate.display();
        tracing::info!(%file, subject = identity.subject, "the certificate was read again");
        identity.warn_of_dates(&self.certificate, SystemTime::now());
    }

    fn log_kept(&self, identity: &Identity, error: &TlsError) {
        tracing::warn!(%error, subject = identity.subject, "the certificate that was read before stays");
    }
}

impl Files {
    fn chain(&self, bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
        match chain {
            Ok(chain) if chain.is_empty() => Err(self.no_certificate()),
            Ok(chain) => Ok(chain),
            Err(error) => {
                Err(TlsError::Unusable { what: CERTIFICATE, path: self.certificate.clone(), reason: error.to_string() })
            }
        }
    }

    fn no_certificate(&self) -> TlsError {
        TlsError::Empty {
            what: CERTIFICATE,
            path: self.certificate.clone(),
            expected: "certificates in PEM (-----BEGIN CERTIFICATE-----), the server's own first",
        }
    }

    fn private_key(&self, bytes: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
        let unusable = |reason: String| TlsError::Unusable { what: KEY, path: self.key.clone(), reason };
        match PrivateKeyDer::from_pem_slice(bytes) {
            Ok(key) => Ok(key),
            Err(pem::Error::NoItemsFound) if contains(bytes, b"ENCRYPTED") => {
                Err(unusable("it is encrypted, and there is nobody to ask for the password".to_owned()))
            }
            Err(pem::Error::NoItemsFound) => Err(TlsError::Empty {
                what: KEY,
                path: self.key.clone(),
                expected: "a private key in PEM (-----BEGIN PRIVATE KEY-----)",
            }),
            Err(error) => Err(unusable(error.to_string())),
        }
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// Whom a certificate is for: its names, else its subject.
fn subject(certificate: &X509Certificate<'_>) -> String {
    use x509_parser::extensions::GeneralName;
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => address(bytes),
        _ => None,
    });
    let names: Vec<String> = names.take(8).collect();
    if names.is_empty() { certificate.subject().to_string() } else { names.join(", ") }
}

fn address(bytes: &[u8]) -> Option<String> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Some(std::net::Ipv4Addr::from(four).to_string());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|sixteen| std::net::Ipv6Addr::from(sixteen).to_string())
}

impl Identity {
    /// A certificate outside its dates is served all the same: clients that check will refuse it, and others may not.
    fn warn_of_dates(&self, file: &Path, now: SystemTime) {
        let Some(warning) = self.warning(now) else { return };
        tracing::warn!(file = %file.display(), subject = self.subject, "{warning}");
    }

    fn warning(&self, now: SystemTime) -> Option<String> {
        let seconds = |time: SystemTime| {
            time.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
        };
        let date = |timestamp: i64| {
            x509_parser::time::ASN1Time::from_timestamp(timestamp)
                .map_or_else(|_| timestamp.to_string(), |time| time.to_string())
        };
        let (now, soon) = (seconds(now), seconds(now + SOON));
        if now > self.not_after {
            Some(format!("the certificate expired on {}", date(self.not_after)))
        } else if now < self.not_before {
            Some(format!("the certificate is not valid before {}", date(self.not_before)))
        } else if soon > self.not_after {
            Some(format!("the certificate expires on {}", date(self.not_after)))
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    struct Written {
        folder: tempfile::TempDir,
    }

    impl Written {
        fn new() -> Self {
            Self { folder: tempfile::tempdir().unwrap() }
        }

        fn write(&self, name: &str, content: &str) -> PathBuf {
            let path = self.folder.path().join(name);
            fs::write(&path, content).unwrap();
            path
        }
    }

    fn certificate(key: &KeyPair, from: (i32, u8, u8), to: (i32, u8, u8)) -> String {
        let mut params = CertificateParams::new(["models.example".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        params.not_before = date_time_ymd(from.0, from.1, from.2);
        params.not_after = date_time_ymd(to.0, to.1, to.2);
        params.self_signed(key).unwrap().pem()
    }

    #[test]
    fn what_does_not_fit_together_is_refused_by_name() {
        let written = Written::new();
        let [own, other] = [(); 2].map(|()| KeyPair::generate().unwrap());
        let good = certificate(&own, (2020, 1, 1), (2100, 1, 1));
        let certificate = written.write("tls.crt", &good);
        let key = written.write("tls.key", &own.serialize_pem());
        assert!(Tls::open(&certificate, &key).is_ok());
        let both = written.write("both.pem", &format!("{good}{}", own.serialize_pem()));
        assert!(Tls::open(&both, &both).is_ok(), "one file may hold both");
        let damaged = good.replacen("\nMII", "\nM*I", 1);
        let cut = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
        let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n";
        let unknown = "-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----\n";
        for (certificate, key, parts) in [
            (
                &certificate,
                &written.write("other.key", &other.serialize_pem()),
                ["other.key does not", "models.example, 127.0.0.1"],
            ),
            (&key, &key, ["tls.key holds no certificate", "the server's own first"]),
            (&certificate, &certificate, ["tls.crt holds no key", "-----BEGIN PRIVATE KEY-----"]),
            (&written.folder.path().join("none.crt"), &key, ["certificate", "none.crt cannot be read"]),
            (&certificate, &written.folder.path().to_owned(), ["key", "not a regular file"]),
            (&written.write("damaged.crt", &damaged), &key, ["certificate in", "damaged.crt cannot be used"]),
            (&written.write("cut.crt", cut), &key, ["certificate in", "cut.crt cannot be used"]),
            (
                &certificate,
                &written.write("encrypted.key", encrypted),
                ["encrypted.key cannot be used", "it is encrypted"],
            ),
            (&certificate, &written.write("unknown.key", unknown), ["key in", "unknown.key cannot be used"]),
            (&certificate, &written.write("large.key", &"x".repeat(300_000)), ["large.key", "more than 262144 bytes"]),
        ] {
            let error = Tls::open(certificate, key).unwrap_err().to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
    }

    #[test]
    fn dates_are_warned_about_and_not_refused() {
        let written = Written::new();
        let key = KeyPair::generate().unwrap();
        let at = |year: i32, month: u8, day: u8| SystemTime::from(date_time_ymd(year, month, day));
        let pem = certificate(&key, (2024, 1, 1), (2025, 1, 1));
        let files =
            Files { certificate: written.write("tls.crt", &pem), key: written.write("tls.key", &key.serialize_pem()) };
        let identity = files.read().unwrap();
        for (now, warning) in [
            (at(2024, 6, 1), None),
            (at(2025, 1, 2), Some("the certificate expired on Jan  1 00:00:00 2025 +00:00")),
            (at(2023, 12, 31), Some("the certificate is not valid before Jan  1 00:00:00 2024 +00:00")),
            (at(2024, 12, 28), Some("the certificate expires on Jan  1 00:00:00 2025 +00:00")),
        ] {
            assert_eq!(identity.warning(now).as_deref(), warning);
        }
        assert!(Tls::open(&files.certificate, &files.key).is_ok(), "it is expired, and served");
    }
}

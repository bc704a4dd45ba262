//! Whose certificates are trusted: the system's authorities, and what the user names.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
    server::ParsedCertificate,
};

use super::Error;

/// The bundles of all public authorities have less than a megabyte.
const MAX_FILE: u64 = 16 << 20;
/// How a certificate begins that is not written as text.
const DER_SEQUENCE: u8 = 0x30;

/// TLS that trusts the system's authorities and the certificates in `ca_files`.
pub(super) fn tls(ca_files: &[PathBuf]) -> Result<ClientConfig, Error> {
    let mut roots = kaito_net::root_store();
    let mut named = Vec::new();
    for path in ca_files {
        for certificate in certificates(path)? {
            roots
                .add(certificate.clone())
                .map_err(|cause| Error::Certificates { path: path.clone(), cause: cause.to_string() })?;
            named.push(certificate);
        }
    }
    let (builder, provider) = kaito_net::tls_config()?;
    let by_authority = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(kaito_net::Error::from)?;
    // "Dangerous" is what rustls calls every verifier that is not its own; this one asks that first.
    let verifier = Arc::new(ByAuthorityOrName { by_authority, named });
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

/// The certificates of a file: one or many as PEM, whatever lies between them, or a single one as DER.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let error = |cause: String| Error::Certificates { path: path.to_owned(), cause };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|cause| error(cause.to_string()))?;
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|cause| error(cause.to_string()))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(error(format!("it is larger than {MAX_FILE} bytes")));
    }
    if bytes.first() == Some(&DER_SEQUENCE) {
        return Ok(vec![CertificateDer::from(bytes)]);
    }
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let found = found.map_err(|cause| error(cause.to_string()))?;
    if found.is_empty() { Err(error("it has no certificate in PEM".to_owned())) } else { Ok(found) }
}

/// Trusts what an authority has signed and, as other clients do, the very certificates that the user named: a certificate
/// that is its own authority is none for servers by the rules of webpki.
#[derive(Debug)]
struct ByAuthorityOrName {
    by_authority: Arc<WebPkiServerVerifier>,
    named: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for ByAuthorityOrName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verdict = self.by_authority.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verdict {
            // Its dates are checked before what these say of who signed it and of its name.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::Other(_)
                | CertificateError::UnknownIssuer
                | CertificateError::BadSignature
                | CertificateError::UnsupportedSignatureAlgorithmContext { .. }
                | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. }
                | CertificateError::NotValidForNameContext { .. },
            )) if self.named.iter().any(|named| named.as_ref() == end_entity.as_ref()) => {
                check_name(end_entity, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.by_authority.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.by_authority.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.by_authority.supported_verify_schemes()
    }
}

/// Whether a certificate that the user named is for this server. One without any name that could be compared is: that the
/// user named it is all there is.
fn check_name(certificate: &CertificateDer<'_>, server_name: &ServerName<'_>) -> Result<(), rustls::Error> {
    match verify_server_name(&ParsedCertificate::try_from(certificate)?, server_name) {
        Err(rustls::Error::InvalidCertificate(CertificateError::NotValidForNameContext { presented, .. }))
            if presented.is_empty() =>
        {
            Ok(())
        }
        verdict => verdict,
    }
}

/// What helps where a certificate is refused.
pub(super) fn hint(error: &CertificateError) -> &'static str {
    match error {
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "a certificate has to hold the registry's name as an alternative name (subjectAltName)"
        }
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => {
            "the registry needs a certificate for today, or this machine's clock is wrong"
        }
        _ => "name the registry's certificate, or its authority's, with --ca-file",
    }
}

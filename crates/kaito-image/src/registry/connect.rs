//! Connections: TLS with the system's authorities and those that the user names, and proxies.

use std::{
    error::Error as StdError,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::Uri;
use http_body_util::combinators::UnsyncBoxBody;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::{
        legacy::{
            Client,
            connect::{HttpConnector, proxy::Tunnel},
        },
        proxy::matcher::Matcher,
    },
    rt::{TokioExecutor, TokioIo},
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use tokio::net::TcpStream;
use tower::Service;

use super::Error;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
const KEEPALIVE: Duration = Duration::from_secs(30);

pub(super) type Body = UnsyncBoxBody<bytes::Bytes, std::io::Error>;
pub(super) type HttpClient = Client<HttpsConnector<Connector>, Body>;

/// HTTP/1.1 alone: blobs that travel at once must not share a connection, nor its window.
pub(super) fn client(ca_files: &[PathBuf]) -> Result<HttpClient, Error> {
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(CONNECT_TIMEOUT));
    http.set_keepalive(Some(KEEPALIVE));
    let connector = Connector { http, proxies: Arc::new(Matcher::from_env()) };
    let https = HttpsConnectorBuilder::new()
        .with_tls_config(tls(ca_files)?)
        .https_or_http()
        .enable_http1()
        .wrap_connector(connector);
    Ok(Client::builder(TokioExecutor::new()).build(https))
}

fn tls(ca_files: &[PathBuf]) -> Result<ClientConfig, Error> {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    for error in &native.errors {
        tracing::debug!(%error, "a certificate of the system was left out");
    }
    if native.certs.is_empty() {
        // Minimal containers have none; then those that browsers trust count.
        roots.add_parsable_certificates(webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().cloned());
    }
    roots.add_parsable_certificates(native.certs);
    for path in ca_files {
        let error = |cause: String| Error::Certificates { path: path.clone(), cause };
        let certificates = CertificateDer::pem_file_iter(path).map_err(|cause| error(cause.to_string()))?;
        let mut found = 0;
        for certificate in certificates {
            let certificate = certificate.map_err(|cause| error(cause.to_string()))?;
            roots.add(certificate).map_err(|cause| error(cause.to_string()))?;
            found += 1;
        }
        if found == 0 {
            return Err(error("it has no certificate in PEM".to_owned()));
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|cause| Error::Certificates { path: PathBuf::new(), cause: cause.to_string() })?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// Connects directly, or through the proxy that the usual variables name for the host.
#[derive(Clone)]
pub(super) struct Connector {
    http: HttpConnector,
    proxies: Arc<Matcher>,
}

type BoxError = Box<dyn StdError + Send + Sync>;

impl Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.http.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, destination: Uri) -> Self::Future {
        // Registries without TLS are near, and proxies seldom tunnel to them.
        let encrypted = destination.scheme_str() == Some("https");
        let Some(proxy) = self.proxies.intercept(&destination).filter(|_| encrypted) else {
            let connecting = self.http.call(destination);
            return Box::pin(async move { Ok(connecting.await?) });
        };
        if proxy.uri().scheme_str() != Some("http") {
            let cause = format!("the proxy {} is none that HTTP speaks with", proxy.uri());
            return Box::pin(async move { Err(cause.into()) });
        }
        let mut tunnel = Tunnel::new(proxy.uri().clone(), self.http.clone());
        if let Some(authorization) = proxy.basic_auth() {
            tunnel = tunnel.with_auth(authorization.clone());
        }
        let connecting = tunnel.call(destination);
        Box::pin(async move { Ok(connecting.await?) })
    }
}

//! Connections, direct or through a proxy.

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
use tokio::net::TcpStream;
use tower::Service;
use url::Url;

use super::{Error, address::is_this_machine, trust::tls};

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
        // Registries without TLS are near, and proxies seldom tunnel to them. To this machine no proxy knows the way.
        let encrypted = destination.scheme_str() == Some("https");
        let near = Url::parse(&destination.to_string()).is_ok_and(|url| is_this_machine(&url));
        let Some(proxy) = self.proxies.intercept(&destination).filter(|_| encrypted && !near) else {
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

//! HTTPS: connections, limits, and the way from a request to its review.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ALLOW, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::{GracefulShutdown, Watcher},
};
use kaito_presets::InstanceTypes;
use rustls::{ServerConfig, crypto::ring, server::ResolvesServerCert};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
    time::{Instant, timeout},
};
use tokio_rustls::TlsAcceptor;

use super::{
    Metrics,
    review::{self, Webhook},
};
use crate::Error;

/// Two objects of the most that etcd takes, and what stands around them.
const MAX_BODY: usize = 4 << 20;
/// Bodies that are in memory at once, so that they take no more than 128 MiB.
const MAX_REVIEWS: usize = 32;
/// Connections at once. API servers keep a few each.
const MAX_CONNECTIONS: usize = 256;
/// How long a client may take over the handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may lie idle: longer than clients in Go keep one, so that it is they who close it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a client may take over a body; the API server itself waits ten seconds in all.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long requests may take to end once the server ends.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause after a connection could not be taken, for want of file handles as a rule.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What every request is answered from.
#[derive(Clone)]
pub struct Reviewer {
    pub instance_types: watch::Receiver<Arc<InstanceTypes>>,
    pub metrics: Metrics,
    permits: Arc<Semaphore>,
}

impl Reviewer {
    pub fn new(instance_types: watch::Receiver<Arc<InstanceTypes>>, metrics: Metrics) -> Self {
        Self { instance_types, metrics, permits: Arc::new(Semaphore::new(MAX_REVIEWS)) }
    }
}

/// TLS by the certificate that `resolver` has at each handshake.
pub fn tls(resolver: Arc<dyn ResolvesServerCert>) -> Result<TlsAcceptor, Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(resolver);
    // API servers speak no HTTP/2 to webhooks, lest one connection keep them at one replica.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config).into())
}

/// Serves until `end` completes, then lets the running requests finish.
pub async fn serve(listener: TcpListener, tls: TlsAcceptor, reviewer: Reviewer, end: impl Future<Output = ()>) {
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut end = std::pin::pin!(end);
    loop {
        tokio::select! {
            accepted = accept(&listener, &slots) => if let Some((stream, peer, slot)) = accepted {
                connections.spawn(serve_one(stream, peer, tls.clone(), reviewer.clone(), graceful.watcher(), slot));
            },
            Some(_) = connections.join_next() => {}
            () = &mut end => break,
        }
    }
    drop(listener);
    if timeout(CLOSE_TIMEOUT, graceful.shutdown()).await.is_err() {
        tracing::warn!(connections = connections.len(), "connections of the webhook broken off");
    }
    connections.shutdown().await;
}

/// Takes a connection once there is a slot for it; the others wait with the operating system.
async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let slot = Arc::clone(slots).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, peer)) => Some((stream, peer, slot)),
        Err(error) => {
            tracing::warn!(%error, "the webhook cannot take a connection");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

async fn serve_one(
    stream: TcpStream,
    peer: SocketAddr,
    tls: TlsAcceptor,
    reviewer: Reviewer,
    watcher: Watcher,
    _slot: OwnedSemaphorePermit,
) {
    // Else an answer waits for the client's acknowledgement of the tickets that end a handshake, up to 40 ms.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, %error, "answers may be delayed");
    }
    let stream = match timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        // Probes that only connect, and clients that do not trust the certificate yet.
        Ok(Err(error)) => return tracing::debug!(%peer, %error, "no TLS handshake"),
        Err(_) => return tracing::debug!(%peer, "the TLS handshake took too long"),
    };
    let service = service_fn(move |request| {
        let reviewer = reviewer.clone();
        async move { Ok::<_, Infallible>(respond(request, &reviewer).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = watcher.watch(connection).await {
        tracing::debug!(%peer, %error, "connection to the webhook broken");
    }
}

async fn respond(request: Request<Incoming>, reviewer: &Reviewer) -> Response<Full<Bytes>> {
    let start = Instant::now();
    let Some(webhook) = Webhook::at(request.uri().path()) else {
        let text = format!("there is nothing at {}; reviews go to /validate and /mutate", request.uri().path());
        return plain(StatusCode::NOT_FOUND, text);
    };
    if request.method() != Method::POST {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "reviews are sent by POST".to_owned());
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
        return response;
    }
    // The permit is held for as long as the body is in memory.
    let (response, operation, outcome) = match reviewer.permits.acquire().await {
        Ok(_permit) => answer(webhook, request, reviewer).await,
        Err(_) => (plain(StatusCode::SERVICE_UNAVAILABLE, "the webhook is ending".to_owned()), "none", "failed"),
    };
    reviewer.metrics.count(webhook.name(), operation, outcome, start.elapsed());
    response
}

async fn answer(
    webhook: Webhook,
    request: Request<Incoming>,
    reviewer: &Reviewer,
) -> (Response<Full<Bytes>>, &'static str, &'static str) {
    let failed = |status, text: String| {
        tracing::warn!(webhook = webhook.name(), %status, text, "cannot answer a review");
        (plain(status, text), "none", "failed")
    };
    let body = match timeout(BODY_TIMEOUT, Limited::new(request.into_body(), MAX_BODY).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let text = format!("a review may have {MAX_BODY} bytes at most");
            return failed(StatusCode::PAYLOAD_TOO_LARGE, text);
        }
        Ok(Err(error)) => return failed(StatusCode::BAD_REQUEST, format!("the body cannot be read: {error}")),
        Err(_) => {
            let text = format!("the body took more than {} seconds", BODY_TIMEOUT.as_secs());
            return failed(StatusCode::REQUEST_TIMEOUT, text);
        }
    };
    let instance_types = Arc::clone(&reviewer.instance_types.borrow());
    match review::review(webhook, &body, &instance_types) {
        Ok(answer) => {
            let mut response = Response::new(Full::from(answer.body));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            (response, answer.operation, if answer.is_allowed { "allowed" } else { "refused" })
        }
        Err(text) => failed(StatusCode::BAD_REQUEST, text),
    }
}

fn plain(status: StatusCode, mut text: String) -> Response<Full<Bytes>> {
    text.push('\n');
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

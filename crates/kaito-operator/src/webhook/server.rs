//! The HTTPS server: connections, limits, and routing of requests to reviews.

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

/// Largest body: an old and a new object, each as large as etcd allows, with room for the rest of the review.
const MAX_BODY: usize = 4 << 20;
/// Most bodies in memory at once, so that they take 128 MiB at most.
const MAX_REVIEWS: usize = 32;
/// Most connections at once. An API server keeps a few.
const MAX_CONNECTIONS: usize = 256;
/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may be idle. Clients in Go close idle connections earlier, so that no request meets one that is just
/// being closed here.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a body may take to arrive; the API server itself waits ten seconds for the whole review.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long requests may take to end once the server ends.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause after a connection could not be accepted, as a rule because no file descriptor is free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What reviews depend on.
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
    // No HTTP/2: with it, an API server would send all reviews over one connection to one replica.
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

/// Accepts a connection once there is a slot for it; others wait in the operating system's queue.
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
    // Without it, the first answer would wait up to 40 ms for the client to acknowledge the TLS session tickets.
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

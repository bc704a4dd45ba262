//! Taking connections and seeing them off.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tower::ServiceExt;

use crate::routes::Peer;

/// How long a client may take over the head of a request, and how long a connection may lie idle between two.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// How long connections may take to write what is ready once the server ends.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// The pause after a connection could not be taken, for want of file handles as a rule.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves `router` until `end` completes, then lets the connections finish what they are writing.
pub(crate) async fn serve(listener: TcpListener, router: Router, end: impl Future<Output = ()>) {
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    let mut end = std::pin::pin!(end);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    connections.spawn(serve_one(stream, peer, router.clone(), graceful.watcher()));
                }
                Err(e) => {
                    tracing::warn!(error = %e, "cannot take a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
            () = &mut end => break,
        }
    }
    drop(listener);
    if tokio::time::timeout(CLOSE_TIMEOUT, graceful.shutdown()).await.is_err() {
        tracing::warn!(connections = connections.len(), "connections broken off");
    }
    connections.shutdown().await;
}

async fn serve_one(stream: TcpStream, peer: SocketAddr, router: Router, watcher: Watcher) {
    // Tokens go out one by one; to wait for more would only delay them.
    if let Err(e) = stream.set_nodelay(true) {
        tracing::debug!(error = %e, "cannot set TCP_NODELAY");
    }
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(Peer(peer));
        router.clone().oneshot(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(e) = watcher.watch(connection).await {
        // Clients that go away, or that speak something else than HTTP.
        tracing::debug!(%peer, error = %e, "connection broken");
    }
}

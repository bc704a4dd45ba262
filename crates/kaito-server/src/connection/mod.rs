//! Accepting connections, serving the requests on them, and closing them.

mod exchange;
mod farewell;
mod flow;
mod http_1;
mod http_2;
mod io;
mod lent;

use std::error::Error;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use kaito_engine::Throttle;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::options::ServerOptions;
use crate::state::{App, Phase};
use crate::tls;
use exchange::{Activity, Exchange};
use io::Watched;

/// How long a client may take over the handshake of TLS.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The first byte of a TLS connection: a record of its handshake.
const TLS_HANDSHAKE: u8 = 0x16;
/// How long connections may take to write what is ready once the server ends.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// The pause after a connection could not be accepted, as a rule because the process has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// While requests wait in the queue, a client that streams may read nothing for this long. It is some thousand tokens behind
/// already when writes to it block.
const HURRY: Duration = Duration::from_secs(1);
/// The most that a connection reads ahead or holds back of what it writes; also the longest head of a request.
const BUFFER: usize = 64 << 10;

/// Whether a client is given up that has taken nothing of an answer for `lasted`.
#[derive(Clone)]
struct Judge {
    app: Arc<App>,
}

impl Judge {
    /// `streaming_since` says when the request came, if its answer is a stream. A client that takes nothing of any answer for
    /// the stall limit is given up by its socket, or by its stream.
    fn gives_up(&self, streaming_since: Option<Instant>, lasted: Duration) -> bool {
        let ServerOptions { stall_limit, request_timeout, .. } = self.app.options;
        // A client that reads a little now and then may take as long as a request may, and the stall limit more.
        let overdue = |since: Instant| since.elapsed() > request_timeout + stall_limit;
        let wanted = || self.app.model().is_some_and(|model| model.stats().waiting > 0);
        streaming_since.is_some_and(|since| overdue(since) || (lasted >= HURRY && wanted()))
    }
}

/// Serves `router` until `end` completes, then lets the connections finish what they are writing.
pub(crate) async fn serve(listener: TcpListener, router: Router, app: Arc<App>, end: impl Future<Output = ()>) {
    let mut connections = JoinSet::new();
    let refused = Throttle::default();
    let mut end = std::pin::pin!(end);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    connections.spawn(serve_one(stream, peer, router.clone(), Arc::clone(&app)));
                }
                Err(error) => {
                    if let Some(unlogged) = refused.pass() {
                        tracing::warn!(%error, open = connections.len(), unlogged, "cannot take connections");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
            () = &mut end => break,
        }
    }
    drop(listener);
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(CLOSE_TIMEOUT, all).await.is_err() {
        tracing::warn!(connections = connections.len(), "connections broken off");
    }
    connections.shutdown().await;
}

async fn serve_one(stream: TcpStream, peer: SocketAddr, router: Router, app: Arc<App>) {
    let activity = Arc::new(Activity::default());
    let judge = Judge { app: Arc::clone(&app) };
    let given_up = {
        let (activity, judge) = (Arc::clone(&activity), judge.clone());
        move |lasted| judge.gives_up(activity.streaming_since(), lasted)
    };
    let stream = Watched::new(stream, app.options.stall_limit, given_up);
    let exchange = Exchange { app: Arc::clone(&app), router, peer, activity };
    let Some(config) = app.options.tls.as_ref().map(tls::Tls::config) else {
        return http_1::serve(stream, exchange).await;
    };
    let mut ended = app.phase().subscribe();
    let secured = tokio::select! {
        secured = tokio::time::timeout(HANDSHAKE_TIMEOUT, secure(stream, TlsAcceptor::from(config), peer)) => secured,
        // A client that has not asked for anything yet does not delay the end.
        _ = async { ended.wait_for(|phase| *phase == Phase::Ended).await.map(|_| ()) } => return,
    };
    match secured {
        Ok(Some(stream)) if stream.get_ref().1.alpn_protocol() == Some(tls::HTTP_2) => {
            http_2::serve(stream, exchange, judge).await;
        }
        Ok(Some(stream)) => http_1::serve(stream, exchange).await,
        Ok(None) => {}
        Err(_) => tracing::debug!(%peer, "the TLS handshake took too long"),
    }
}

/// The handshake of TLS; `None` where there is none.
async fn secure(mut stream: Watched, acceptor: TlsAcceptor, peer: SocketAddr) -> Option<TlsStream<Watched>> {
    match stream.first_byte().await {
        Ok(Some(TLS_HANDSHAKE)) => {}
        Ok(Some(first)) if first.is_ascii_uppercase() => {
            tracing::debug!(%peer, "a request without TLS");
            farewell::refuse_plain(&mut stream).await;
            farewell::linger(stream, farewell::SHORT).await;
            return None;
        }
        Ok(_) | Err(_) => return None,
    }
    let secured = acceptor.accept(stream).await;
    secured.inspect_err(|error| tracing::debug!(%peer, %error, "the TLS handshake failed")).ok()
}

/// Logs why a connection broke off; `true` if something can still be written to it.
fn log(error: &hyper::Error, peer: SocketAddr) -> bool {
    let causes = std::iter::successors(error.source(), |error| (*error).source());
    let socket = causes.filter_map(|error| error.downcast_ref::<std::io::Error>()).next();
    match socket {
        Some(socket) if socket.kind() == ErrorKind::TimedOut => {
            tracing::info!(%peer, error = %socket, "connection given up");
        }
        // Clients that disconnect, or that speak another protocol than HTTP.
        _ => tracing::debug!(%peer, error = error as &dyn Error, "connection broken"),
    }
    socket.is_none()
}

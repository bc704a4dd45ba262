//! Accepting connections, serving the requests on them, and closing them.

mod exchange;
mod farewell;
mod io;

use std::error::Error;
use std::future::poll_fn;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::options::ServerOptions;
use crate::state::{App, Phase};
use crate::throttle::Throttle;
use exchange::{Activity, Exchange};
use io::Watched;

/// How long a client may take over the head of a request, and how long a connection may lie idle between two.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// How long connections may take to write what is ready once the server ends.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// The pause after a connection could not be accepted, as a rule because the process has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// While requests wait in the queue, a client that streams may read nothing for this long. It is some thousand tokens behind
/// already when writes to it block.
const HURRY: Duration = Duration::from_secs(1);
/// The most that a connection reads ahead or holds back of what it writes; also the longest head of a request.
const BUFFER: usize = 64 << 10;

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
    let given_up = {
        let (activity, app) = (Arc::clone(&activity), Arc::clone(&app));
        let ServerOptions { stall_limit, request_timeout, .. } = app.options;
        move |lasted| {
            // A client that reads a little now and then may take as long as a request may, and the stall limit more.
            let overdue = |since: Instant| since.elapsed() > request_timeout + stall_limit;
            let wanted = || app.model().is_some_and(|model| model.stats().waiting > 0);
            activity.streaming_since().is_some_and(|since| overdue(since) || (lasted >= HURRY && wanted()))
        }
    };
    let stream = Watched::new(stream, app.options.stall_limit, given_up);
    let exchange = Exchange { app: Arc::clone(&app), router, peer, activity: Arc::clone(&activity) };
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(BUFFER)
        .max_header_size(BUFFER)
        .serve_connection(TokioIo::new(stream), exchange);

    let mut phase = app.phase().subscribe();
    let mut seen = *phase.borrow();
    // What to do with the socket in the end.
    let (mut in_order, mut told_to_end) = (true, None);
    loop {
        tokio::select! {
            biased;
            ended = poll_fn(|cx| connection.poll_without_shutdown(cx)) => {
                if let Err(error) = ended {
                    in_order = log(&error, peer);
                }
                break;
            }
            later = async { phase.wait_for(|phase| *phase > seen).await.map(|phase| *phase) } => {
                // An error means that the server is gone, which `app` rules out.
                seen = later.unwrap_or(Phase::Ended);
                told_to_end = (!activity.is_busy()).then(|| activity.requests());
                // After this request there is no other.
                std::pin::Pin::new(&mut connection).graceful_shutdown();
                let polled = poll_fn(|cx| Poll::Ready(connection.poll_without_shutdown(cx))).await;
                if polled.is_ready() || !activity.is_busy() {
                    break;
                }
            }
        }
    }
    let parts = connection.into_parts();
    let mut stream = parts.io.into_inner().into_inner();
    // No request was open when the server began to end, and none came since: what was read is half the head of one.
    if told_to_end == Some(activity.requests()) && !parts.read_buf.is_empty() {
        farewell::refuse(&mut stream).await;
    }
    if in_order {
        let patience = if *phase.borrow() == Phase::Serving { farewell::USUAL } else { farewell::SHORT };
        farewell::linger(stream, patience).await;
    }
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

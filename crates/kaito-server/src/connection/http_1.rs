//! A connection that speaks HTTP/1: one request after the other.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use super::exchange::Exchange;
use super::{BUFFER, farewell, log};
use crate::state::Phase;

/// Serves the requests on `stream`, and closes it so that the last answer arrives.
pub(super) async fn serve(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, exchange: Exchange) {
    let (app, activity, peer) = (Arc::clone(&exchange.app), Arc::clone(&exchange.activity), exchange.peer);
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(app.options.idle_limit)
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
                Pin::new(&mut connection).graceful_shutdown();
                let polled = poll_fn(|cx| Poll::Ready(connection.poll_without_shutdown(cx))).await;
                if polled.is_ready() || !activity.is_busy() {
                    break;
                }
            }
        }
    }
    let parts = connection.into_parts();
    let mut stream = parts.io.into_inner();
    // No request was open when the server began to end, and none came since: what was read is half the head of one.
    if told_to_end == Some(activity.requests()) && !parts.read_buf.is_empty() {
        farewell::refuse(&mut stream).await;
    }
    if in_order {
        let patience = if *phase.borrow() == Phase::Serving { farewell::USUAL } else { farewell::SHORT };
        farewell::linger(stream, patience).await;
    }
}

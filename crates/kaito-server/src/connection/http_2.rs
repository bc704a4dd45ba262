//! A connection that speaks HTTP/2: many requests at a time, over TLS alone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::MissedTickBehavior;

use super::exchange::{Activity, Exchange};
use super::lent::lend;
use super::{BUFFER, Judge, farewell, log};
use crate::options::ServerOptions;
use crate::state::Phase;

/// Requests that a client may have open on a connection.
const STREAMS: u32 = 100;
/// Streams that a client may reset, or the server in answer to its errors, before the connection is given up.
const RESETS: usize = 64;
/// What a client may send of one body, and of all on a connection, before some of it is read.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// How often it is checked whether clients take their answers.
const LOOK: Duration = Duration::from_millis(250);

/// Serves the requests on `stream`, and closes it so that the last answers arrive.
pub(super) async fn serve(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    exchange: Exchange,
    judge: Judge,
) {
    let (app, activity, peer) = (Arc::clone(&exchange.app), Arc::clone(&exchange.activity), exchange.peer);
    let ServerOptions { stall_limit, idle_limit, .. } = app.options;
    let (owner, lent) = lend(stream);
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_local_error_reset_streams(RESETS)
        .max_header_list_size(BUFFER as u32)
        .max_send_buf_size(BUFFER)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        // One half until a silent client is asked whether it is there, one for its answer.
        .keep_alive_interval(idle_limit / 2)
        .keep_alive_timeout(idle_limit / 2)
        .serve_connection(TokioIo::new(lent), exchange);
    let mut connection = Box::pin(connection);

    let mut phase = app.phase().subscribe();
    let mut seen = *phase.borrow();
    let mut look = tokio::time::interval((stall_limit.min(idle_limit) / 4).clamp(Duration::from_millis(10), LOOK));
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut in_order = true;
    let mut idle_since = Some(Instant::now());
    // When the client was told that the connection ends.
    let mut told = None;
    loop {
        tokio::select! {
            biased;
            ended = &mut connection => {
                if let Err(error) = ended {
                    in_order = log(&error, peer);
                }
                break;
            }
            later = async { phase.wait_for(|phase| *phase > seen).await.map(|phase| *phase) } => {
                // An error means that the server is gone, which `app` rules out.
                seen = later.unwrap_or(Phase::Ended);
                connection.as_mut().graceful_shutdown();
                told.get_or_insert_with(Instant::now);
            }
            _ = look.tick() => {
                if give_up(&activity, &judge, stall_limit) {
                    tracing::info!(%peer, "a client took nothing of an answer for too long");
                    if !activity.is_busy() {
                        // Nothing but what it does not take is left on this connection.
                        in_order = false;
                        break;
                    }
                }
            }
        }
        idle_since = if activity.is_busy() { None } else { idle_since.or_else(|| Some(Instant::now())) };
        let Some(since) = idle_since else { continue };
        // Whoever comes while the server ends is told once, by an answer.
        if told.is_none() && (since.elapsed() > idle_limit || (seen != Phase::Serving && activity.requests() > 0)) {
            connection.as_mut().graceful_shutdown();
            told.get_or_insert_with(Instant::now);
        }
        // A client has some time to say that it knows.
        if told.is_some_and(|told: Instant| told.max(since).elapsed() > farewell::SHORT.silence) {
            break;
        }
    }
    drop(connection);
    if let (true, Some(stream)) = (in_order, owner.take()) {
        let patience = if *phase.borrow() == Phase::Serving { farewell::USUAL } else { farewell::SHORT };
        farewell::linger(stream, patience).await;
    }
}

/// Gives up the answers whose clients take nothing of them; whether there were any.
fn give_up(activity: &Activity, judge: &Judge, stall_limit: Duration) -> bool {
    let mut given_up = false;
    for flow in activity.flows() {
        let Some(lasted) = flow.untaken() else { continue };
        if lasted >= stall_limit || judge.gives_up(flow.streaming_since(), lasted) {
            flow.give_up();
            given_up = true;
        }
    }
    given_up
}

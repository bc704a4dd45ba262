//! The routes of a supervisor.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    body::{self, Body},
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time,
};

use crate::{cause, protocol::Report, supervisor::Shared};

/// The longest report, in bytes.
const MAX_REPORT: usize = 64 << 10;
/// How long a request's body may take, and how long a connection may be idle.
const BODY_TIME: Duration = Duration::from_secs(5);
const IDLE_TIME: Duration = Duration::from_secs(30);
/// The most connections; further ones wait with the system. More than there are ranks.
const MAX_CONNECTIONS: usize = 2048;
/// The pause after a connection that could not be taken.
const PAUSE: Duration = Duration::from_millis(100);

/// Answers for as long as it is polled.
pub(crate) async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let router = Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(readyz))
        .route("/ranks", get(ranks))
        .route("/ranks/{rank}", post(report))
        .route("/shutdown", post(shut_down))
        .with_state(shared);
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let router = router.clone();
                connections.spawn(async move {
                    connection(stream, peer, router).await;
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot take a connection");
                time::sleep(PAUSE).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, peer: SocketAddr, router: Router) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIME)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    if let Err(error) = connection.await {
        tracing::debug!(%peer, %error, "connection broken");
    }
}

fn refused(status: StatusCode, error: impl Into<String>) -> Response {
    (status, Json(json!({ "error": error.into() }))).into_response()
}

async fn readyz(State(shared): State<Arc<Shared>>) -> Response {
    match shared.unready() {
        None => "ready\n".into_response(),
        Some(cause) => (StatusCode::SERVICE_UNAVAILABLE, format!("{cause}\n")).into_response(),
    }
}

/// At another rank, who knows of all.
fn elsewhere(shared: &Shared) -> Response {
    let first = shared.first.as_deref().unwrap_or_default();
    refused(StatusCode::NOT_FOUND, format!("this is rank {}; rank 0, at {first}, knows of all ranks", shared.rank))
}

async fn ranks(State(shared): State<Arc<Shared>>) -> Response {
    match shared.coordinator() {
        None => elsewhere(&shared),
        Some(coordinator) => Json(cause::overview(&coordinator, Instant::now())).into_response(),
    }
}

/// A web page cannot send JSON without asking, which nothing here allows.
fn is_json(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| kind == "application/json")
}

async fn shut_down(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    if !is_json(&headers) {
        return refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, "a shutdown is application/json");
    }
    let Some(mut coordinator) = shared.coordinator() else { return elsewhere(&shared) };
    if !shared.has_front {
        return refused(StatusCode::CONFLICT, "without --front nobody would start the engines again");
    }
    coordinator.shut_down(Instant::now());
    drop(coordinator);
    shared.wake();
    Json(json!({})).into_response()
}

async fn report(
    State(shared): State<Arc<Shared>>,
    Path(rank): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    if !is_json(&headers) {
        return refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, "a report is application/json");
    }
    let bytes = match time::timeout(BODY_TIME, body::to_bytes(body, MAX_REPORT)).await {
        Err(_) => return refused(StatusCode::REQUEST_TIMEOUT, format!("no report within {} s", BODY_TIME.as_secs())),
        Ok(Err(_)) => {
            return refused(StatusCode::PAYLOAD_TOO_LARGE, format!("a report has {MAX_REPORT} bytes at most"));
        }
        Ok(Ok(bytes)) => bytes,
    };
    let report: Report = match serde_json::from_slice(&bytes) {
        Ok(report) => report,
        Err(error) => return refused(StatusCode::BAD_REQUEST, format!("not a report: {error}")),
    };
    let Some(mut coordinator) = shared.coordinator() else { return elsewhere(&shared) };
    let others = 1..coordinator.ranks.len();
    let Some(rank) = rank.parse().ok().filter(|rank| others.contains(rank)) else {
        let ranks = others.end;
        return refused(
            StatusCode::NOT_FOUND,
            format!("rank {rank}: {ranks} ranks serve this model, and rank 0 reports to nobody"),
        );
    };
    let before = coordinator.current();
    let order = coordinator.report(rank, report, Instant::now());
    if coordinator.current() != before {
        shared.wake();
    }
    drop(coordinator);
    match order {
        Some(order) => Json(order).into_response(),
        None => refused(StatusCode::NOT_FOUND, "there is no such rank"),
    }
}

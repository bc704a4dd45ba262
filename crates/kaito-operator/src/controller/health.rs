//! The ports for health and metrics.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use axum::{
    Router,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    routing::get,
};
use kaito_metrics::Format;
use tokio::{net::TcpListener, sync::watch};

use super::metrics::Metrics;

/// What readiness depends on.
#[derive(Debug, Clone)]
pub struct Health {
    /// Whether the webhook answers.
    pub webhook: watch::Sender<bool>,
    /// Whether the caches are filled; always true for a replica that is not the leader, which has none.
    pub is_synced: Arc<AtomicBool>,
}

impl Health {
    /// Ready, except for the webhook where there is one.
    pub fn new(has_webhook: bool) -> Self {
        Self { webhook: watch::Sender::new(!has_webhook), is_synced: Arc::new(AtomicBool::new(true)) }
    }

    /// What is missing for readiness.
    fn missing(&self) -> Option<&'static str> {
        if !*self.webhook.borrow() {
            Some("the webhook does not answer yet")
        } else if !self.is_synced.load(Ordering::Relaxed) {
            Some("the caches are not filled yet")
        } else {
            None
        }
    }
}

/// Serves both ports until `end` completes.
pub async fn serve(
    metrics_listener: TcpListener,
    health_listener: TcpListener,
    metrics: Metrics,
    health: Health,
    end: impl Future<Output = ()>,
) {
    let ready = move || async move {
        match health.missing() {
            None => (StatusCode::OK, "ready\n"),
            Some(missing) => (StatusCode::SERVICE_UNAVAILABLE, missing),
        }
    };
    let health_routes = Router::new().route("/healthz", get(|| async { "healthy\n" })).route("/readyz", get(ready));
    let text = move |headers: HeaderMap| async move {
        let format = Format::negotiate(headers.get_all(header::ACCEPT).iter().map(HeaderValue::as_bytes));
        ([(header::CONTENT_TYPE, format.content_type()), (header::VARY, "accept")], metrics.text(format))
    };
    let metrics_routes = Router::new().route("/metrics", get(text));
    tokio::select! {
        _ = async { axum::serve(metrics_listener, metrics_routes).await } => {}
        _ = async { axum::serve(health_listener, health_routes).await } => {}
        () = end => {}
    }
}

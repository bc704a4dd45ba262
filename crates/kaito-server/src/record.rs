//! One line of log and one count in the metrics for each request, written when its answer has been sent or dropped.

use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tracing::{Instrument, Span, field};

use crate::error::ApiError;
use crate::keeping::Keeping;
use crate::routes;
use crate::state::App;
use crate::trace::{TRACEPARENT, Traceparent};

/// Names a request in the log; a client may choose it.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// nginx's status for a client that disconnected before the answer; no client ever sees it.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// The status while the model loads, the server ends, or memory for bodies is used up.
const UNAVAILABLE: u16 = 503;

/// What is known of a request; when the last holder drops it, the request is over.
pub(crate) struct Record {
    app: Arc<App>,
    span: Span,
    route: &'static str,
    /// Whether it is for text to be generated.
    is_work: bool,
    pub(crate) started: Instant,
    /// 0 until there is an answer.
    status: AtomicU16,
    prompt_tokens: AtomicU64,
    generated_tokens: AtomicU64,
    /// What went wrong after the head of the answer was sent.
    failure: OnceLock<&'static str>,
}

impl Record {
    pub(crate) fn count_tokens(&self, prompt: usize, generated: usize) {
        self.prompt_tokens.store(prompt as u64, Ordering::Relaxed);
        self.generated_tokens.store(generated as u64, Ordering::Relaxed);
    }

    /// Notes that a streamed answer broke off.
    pub(crate) fn fail(&self, reason: &'static str) {
        // The first reason is the cause.
        let _ = self.failure.set(reason);
    }
}

impl Record {
    /// While the model loads or the server ends, being unavailable is no fault, and probes ask often.
    fn log_unavailable(&self) {
        if self.is_work {
            tracing::info!("request refused");
        } else if self.app.check_open().is_err() {
            tracing::debug!("request refused");
        } else if let Some(unlogged) = self.app.unfit.pass() {
            tracing::warn!(unlogged, "unfit to answer");
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let duration = self.started.elapsed();
        let status = match self.status.load(Ordering::Relaxed) {
            0 => CLIENT_CLOSED_REQUEST,
            status => status,
        };
        self.app.metrics.count_request(self.route, status, duration);
        let _entered = self.span.enter();
        self.span.record("status", status);
        self.span.record("ms", duration.as_millis() as u64);
        let generated = self.generated_tokens.load(Ordering::Relaxed);
        if generated > 0 {
            self.span.record("prompt_tokens", self.prompt_tokens.load(Ordering::Relaxed));
            self.span.record("generated_tokens", generated);
        }
        match self.failure.get() {
            Some(failure) => tracing::warn!(failure, "answer broken off"),
            None if status == UNAVAILABLE => self.log_unavailable(),
            None if status >= 500 => tracing::warn!("request failed"),
            None if self.is_work => tracing::info!("request done"),
            None => tracing::debug!("request done"),
        }
    }
}

/// Middleware around all routes: gives a request an id, a span of the log and a record.
pub(crate) async fn keep(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let id = request_id(&app, &request);
    let path = request.uri().path();
    let (route, is_work) = (routes::label(path), routes::is_work(path, request.method()));
    let trace = Traceparent::of(request.headers());
    let span = tracing::info_span!(
        "request",
        id = id.to_str().unwrap_or_default(),
        method = %request.method(),
        route,
        trace_id = trace.as_ref().map(Traceparent::trace_id),
        status = field::Empty,
        prompt_tokens = field::Empty,
        generated_tokens = field::Empty,
        ms = field::Empty,
    );
    let record = Arc::new(Record {
        app,
        span: span.clone(),
        route,
        is_work,
        started: Instant::now(),
        status: AtomicU16::new(0),
        prompt_tokens: AtomicU64::new(0),
        generated_tokens: AtomicU64::new(0),
        failure: OnceLock::new(),
    });
    request.extensions_mut().insert(Arc::clone(&record));
    let mut response = next.run(request).instrument(span).await;
    record.status.store(response.status().as_u16(), Ordering::Relaxed);
    response.headers_mut().insert(REQUEST_ID, id);
    if let Some(trace) = trace {
        response.headers_mut().insert(TRACEPARENT, trace.into_value());
    }
    // The request is over when its answer has been sent or dropped.
    response.map(|body| Keeping::wrap(body, record))
}

/// The client's own id if it is harmless in a log, else a number.
fn request_id(app: &App, request: &Request) -> HeaderValue {
    let harmless = |id: &&HeaderValue| {
        let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/".contains(byte);
        (1..=64).contains(&id.len()) && id.as_bytes().iter().all(allowed)
    };
    match request.headers().get(REQUEST_ID).filter(harmless) {
        Some(id) => id.clone(),
        None => app.next_request().into(),
    }
}

/// The answer to a panic, which the engine and the other requests survive.
pub(crate) fn panicked(_: Box<dyn std::any::Any + Send + 'static>) -> Response {
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "The server failed on this request.").into_response()
}

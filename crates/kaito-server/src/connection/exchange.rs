//! The requests of one connection, one after the other, and what the connection must know of them.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderMap, HeaderValue, Request, Response, header};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::service::Service;
use tower::ServiceExt;

use crate::keeping::Keeping;
use crate::routes::Peer;
use crate::state::{App, Phase};

/// What a connection is doing.
#[derive(Debug, Default)]
pub(super) struct Activity {
    /// From the head of a request to the end of its answer.
    busy: AtomicBool,
    /// When the request came whose answer is a stream, while that is sent.
    streaming: Mutex<Option<Instant>>,
    requests: AtomicUsize,
}

impl Activity {
    pub(super) fn is_busy(&self) -> bool {
        self.busy.load(Relaxed)
    }

    /// How many requests have come.
    pub(super) fn requests(&self) -> usize {
        self.requests.load(Relaxed)
    }

    /// When the request came whose answer is a stream that is being sent.
    pub(super) fn streaming_since(&self) -> Option<Instant> {
        *self.streaming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_streaming(&self, since: Option<Instant>) {
        *self.streaming.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }
}

/// Marks the connection as busy while it lives.
struct Busy(Arc<Activity>);

impl Busy {
    fn new(activity: Arc<Activity>) -> Self {
        activity.busy.store(true, Relaxed);
        activity.requests.fetch_add(1, Relaxed);
        Self(activity)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.store(false, Relaxed);
        self.0.set_streaming(None);
    }
}

/// Answers the requests of one connection.
pub(super) struct Exchange {
    pub(super) app: Arc<App>,
    pub(super) router: Router,
    pub(super) peer: SocketAddr,
    pub(super) activity: Arc<Activity>,
}

impl Service<Request<Incoming>> for Exchange {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let came = Instant::now();
        let busy = Busy::new(Arc::clone(&self.activity));
        let ended = Arc::new(AtomicBool::new(request.body().is_end_stream()));
        let mut request = request.map(|body| Body::new(Arriving { body, ended: Arc::clone(&ended) }));
        request.extensions_mut().insert(Peer(self.peer));
        let (app, answer) = (Arc::clone(&self.app), self.router.clone().oneshot(request));
        Box::pin(async move {
            let mut response = answer.await?;
            // What is left of an unread body would be taken for the next request.
            if !ended.load(Relaxed) || *app.phase().borrow() != Phase::Serving {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            busy.0.set_streaming(is_stream(response.headers()).then_some(came));
            Ok(response.map(|body| Keeping::wrap(body, busy)))
        })
    }
}

fn is_stream(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"))
}

/// A request's body, which tells whether all of it was read.
struct Arriving {
    body: Incoming,
    ended: Arc<AtomicBool>,
}

impl HttpBody for Arriving {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(polled, Poll::Ready(None)) || (polled.is_ready() && self.body.is_end_stream()) {
            self.ended.store(true, Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

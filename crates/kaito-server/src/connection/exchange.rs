//! The requests of one connection, and what the connection must know of them.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Instant;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderMap, HeaderValue, Request, Response, Version, header};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::service::Service;
use tower::ServiceExt;

use super::flow::Flow;
use crate::keeping::Keeping;
use crate::routes::Peer;
use crate::state::{App, Phase};

/// What a connection is doing.
#[derive(Debug, Default)]
pub(super) struct Activity {
    /// Requests from their heads to the ends of their answers: one at a time, or in HTTP/2 several.
    open: AtomicUsize,
    requests: AtomicUsize,
    /// Of each open request whose answer is a stream, by its number, when it came.
    streaming: Mutex<BTreeMap<usize, Instant>>,
    /// The answers that an HTTP/2 connection is sending, by the numbers of their requests.
    flows: Mutex<BTreeMap<usize, Weak<Flow>>>,
}

impl Activity {
    pub(super) fn is_busy(&self) -> bool {
        self.open.load(Relaxed) > 0
    }

    /// How many requests have come.
    pub(super) fn requests(&self) -> usize {
        self.requests.load(Relaxed)
    }

    /// When the first request came whose answer is a stream that is being sent.
    pub(super) fn streaming_since(&self) -> Option<Instant> {
        Some(*locked(&self.streaming).first_key_value()?.1)
    }

    /// The answers that are being sent in HTTP/2.
    pub(super) fn flows(&self) -> Vec<Arc<Flow>> {
        locked(&self.flows).values().filter_map(Weak::upgrade).collect()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Marks the connection as busy while it lives.
struct Busy {
    activity: Arc<Activity>,
    number: usize,
}

impl Busy {
    fn new(activity: Arc<Activity>) -> Self {
        activity.open.fetch_add(1, Relaxed);
        let number = activity.requests.fetch_add(1, Relaxed);
        Self { activity, number }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.activity.open.fetch_sub(1, Relaxed);
        locked(&self.activity.streaming).remove(&self.number);
        locked(&self.activity.flows).remove(&self.number);
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
        let (came, version) = (Instant::now(), request.version());
        let busy = Busy::new(Arc::clone(&self.activity));
        let ended = Arc::new(AtomicBool::new(request.body().is_end_stream()));
        let mut request = request.map(|body| Body::new(Arriving { body, ended: Arc::clone(&ended) }));
        request.extensions_mut().insert(Peer(self.peer));
        let (app, answer) = (Arc::clone(&self.app), self.router.clone().oneshot(request));
        let is_http_2 = version == Version::HTTP_2;
        Box::pin(async move {
            let mut response = answer.await?;
            if is_http_2 {
                // A stream has an end of its own, and what is left unread of another one is no request.
                response.headers_mut().remove(header::CONNECTION);
            } else if !ended.load(Relaxed) || *app.phase().borrow() != Phase::Serving {
                // What is left of an unread body would be taken for the next request.
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            let streaming = is_stream(response.headers());
            let (activity, number) = (Arc::clone(&busy.activity), busy.number);
            if streaming {
                locked(&activity.streaming).insert(number, came);
            }
            let response = response.map(|body| Keeping::wrap(body, busy));
            if !is_http_2 {
                return Ok(response);
            }
            Ok(response.map(|body| {
                let (body, flow) = Flow::of(body, streaming.then_some(came));
                locked(&activity.flows).insert(number, flow);
                body
            }))
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

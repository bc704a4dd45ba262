//! The answer of one HTTP/2 stream: whether its client takes it.
//!
//! Where a connection carries many streams, a client that reads one of them and not another leaves the socket free, so that no
//! write blocks. What shows it is that the library, which asks an answer for its next piece only where the client left room for
//! one, does not ask.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};

/// The most that is handed over at once: what the library holds of an answer that is not taken.
const PIECE: usize = 16 << 10;

/// An answer on its way.
pub(super) struct Flow {
    /// When the request came, if its answer is a stream.
    streaming_since: Option<Instant>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// `None` once the client is given up.
    body: Option<Body>,
    /// What is left of a piece that was too large.
    rest: Bytes,
    /// When a piece was handed over, until the next one is asked for.
    handed: Option<Instant>,
}

impl fmt::Debug for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flow").field("streaming_since", &self.streaming_since).finish_non_exhaustive()
    }
}

impl Flow {
    /// The body that is sent in place of `body`, and a handle on it.
    pub(super) fn of(body: Body, streaming_since: Option<Instant>) -> (Body, Weak<Self>) {
        let state = Mutex::new(State { body: Some(body), ..State::default() });
        let flow = Arc::new(Self { streaming_since, state });
        let handle = Arc::downgrade(&flow);
        (Body::new(Paced(flow)), handle)
    }

    /// When the request came, if its answer is a stream.
    pub(super) fn streaming_since(&self) -> Option<Instant> {
        self.streaming_since
    }

    /// How long the client has left no room for more.
    pub(super) fn untaken(&self) -> Option<Duration> {
        let state = self.state();
        state.body.as_ref().and(state.handed).map(|handed| handed.elapsed())
    }

    /// Frees all that the answer holds. If its client ever asks for more, it is told that there is none.
    pub(super) fn give_up(&self) {
        let body = self.state().body.take();
        // Outside of the lock, since it may hold anything.
        drop(body);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the library polls.
struct Paced(Arc<Flow>);

impl HttpBody for Paced {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut state = self.0.state();
        let State { body, rest, handed } = &mut *state;
        *handed = None;
        let Some(body) = body else {
            let said = io::Error::new(io::ErrorKind::TimedOut, "the client took nothing for too long");
            return Poll::Ready(Some(Err(axum::Error::new(said))));
        };
        if rest.is_empty() {
            match ready!(Pin::new(body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => *rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                end => return Poll::Ready(end),
            }
        }
        *handed = Some(Instant::now());
        let piece = rest.split_to(rest.len().min(PIECE));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        let state = self.0.state();
        state.rest.is_empty() && state.body.as_ref().is_some_and(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let state = self.0.state();
        match &state.body {
            Some(body) if state.rest.is_empty() => body.size_hint(),
            _ => SizeHint::default(),
        }
    }
}

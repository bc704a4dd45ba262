//! Answers that stream: how their events are sent, and what they are in Kaito's own dialects.
//!
//! There, each token is a nameless event `{"sequence": 0, "token": 13, "text": "..."}`, where the sequence counts the returned
//! sequences, prompts or dialogs; the text is empty while a character is incomplete. Text that no token completes, what was
//! held back until the end and the refusal of a dialog, is such an event without `token`. The texts of a sequence join to
//! what was generated. Beam search has no such events. Then comes an event `result`, whose data is the body of the answer that
//! does not stream, or an event `error` with `{"status": ..., "detail": ...}`.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use kaito_engine::{Delta, Output, StreamEvent};
use serde_json::json;

use crate::dialect::{Event, Framing, Reply, Streaming};
use crate::error::ApiError;
use crate::job::Job;

/// How often a comment is sent while nothing else is, so that proxies keep the connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The answer to a request that streams. The job is dropped, and so cancelled, with the connection.
pub(crate) fn respond(job: Job) -> Response {
    let framing = job.framing();
    let events = stream::unfold(Some(job), |job| async {
        let mut job = job?;
        let (events, ended) = match next(&mut job).await {
            Ok(next) => next,
            Err(error) => {
                job.record().fail("error");
                (job.failed(&error), true)
            }
        };
        Some((stream::iter(events), (!ended).then_some(job)))
    });
    let events = events.flatten();
    let response = match framing {
        Framing::ServerSentEvents => {
            let events = events.map(|event| Ok::<_, Infallible>(framed(event)));
            Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
        }
        // Clients read every line as JSON, so there is none to keep a connection with.
        Framing::Lines => {
            let lines = events.map(|event| Ok::<_, Infallible>(Bytes::from(event.data + "\n")));
            ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
        }
    };
    // Proxies that collect answers before they pass them on would undo the streaming.
    ([("x-accel-buffering", "no")], response).into_response()
}

/// An event as server-sent events have it.
pub(crate) fn framed(event: Event) -> sse::Event {
    let framed = match event.name {
        Some(name) => sse::Event::default().event(name),
        None => sse::Event::default(),
    };
    framed.data(event.data)
}

/// The events for what happens next, and whether they are the last.
async fn next(job: &mut Job) -> Result<(Vec<Event>, bool), ApiError> {
    Ok(match job.next().await? {
        StreamEvent::Started => (job.streaming().started(), false),
        StreamEvent::PromptScored(scored) => (job.streaming().prompt_scored(&scored), false),
        StreamEvent::Delta(delta) => (job.streaming().delta(&delta), false),
        StreamEvent::Finished(output) => (job.finished(output).await?, true),
    })
}

/// A stream of Kaito's own dialects, whose last event is the body that `reply` writes.
pub(crate) fn kaito(reply: Arc<dyn Reply>) -> Box<dyn Streaming> {
    Box::new(Kaito(reply))
}

struct Kaito(Arc<dyn Reply>);

impl Streaming for Kaito {
    fn delta(&mut self, delta: &Delta) -> Vec<Event> {
        let Delta { sequence, text, token, .. } = delta;
        let data = match token {
            Some(token) => json!({ "sequence": sequence, "text": text, "token": token.id }),
            None if text.is_empty() => return Vec::new(),
            None => json!({ "sequence": sequence, "text": text }),
        };
        vec![Event::data(data.to_string())]
    }

    fn finished(&mut self, output: &Output) -> Vec<Event> {
        vec![Event::named("result", self.0.body(output))]
    }

    fn failed(&mut self, error: &ApiError) -> Vec<Event> {
        let body = json!({ "detail": error.detail(), "status": error.status().as_u16() });
        vec![Event::named("error", body.to_string())]
    }
}

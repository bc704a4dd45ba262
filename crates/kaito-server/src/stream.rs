//! Server-sent events.
//!
//! Each token is a nameless event `{"sequence": 0, "token": 13, "text": "..."}`, where the sequence counts the returned
//! sequences, prompts or dialogs; the text is empty while a character is incomplete. Text that no token completes, what was
//! held back until the end and the refusal of a dialog, is such an event without `token`. The texts of a sequence join to
//! what was generated. Beam search has no such events. Then comes an event `result`, whose data is the body of the answer that
//! does not stream, or an event `error` with `{"status": ..., "detail": ...}`.

use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde_json::json;

use crate::job::{Job, Progress};

/// How often a comment is sent while nothing else is, so that proxies keep the connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The answer to a request that streams. The job is dropped, and so cancelled, with the connection.
pub(crate) fn respond(job: Job) -> Response {
    let events = stream::unfold(Some(job), |job| async {
        let mut job = job?;
        let (event, job) = match job.next().await {
            Ok(Progress::Delta { sequence, token, text }) => {
                let data = match token {
                    Some(token) => json!({ "sequence": sequence, "token": token, "text": text }),
                    None => json!({ "sequence": sequence, "text": text }),
                };
                (Event::default().data(data.to_string()), Some(job))
            }
            Ok(Progress::Answer(body)) => (Event::default().event("result").data(body), None),
            Err(error) => {
                job.record().fail("error");
                let body = json!({ "status": error.status().as_u16(), "detail": error.detail() });
                (Event::default().event("error").data(body.to_string()), None)
            }
        };
        Some((Ok::<_, Infallible>(event), job))
    });
    let sse = Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
    // Proxies that collect answers before they pass them on would undo the streaming.
    ([("x-accel-buffering", "no")], sse).into_response()
}

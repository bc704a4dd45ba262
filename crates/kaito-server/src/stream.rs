//! Server-sent events: how they are sent, and what they are in Kaito's own dialects.
//!
//! There, each token is a nameless event `{"sequence": 0, "token": 13, "text": "..."}`, where the sequence counts the returned
//! sequences, prompts or dialogs; the text is empty while a character is incomplete. Text that no token completes, what was
//! held back until the end and the refusal of a dialog, is such an event without `token`. The texts of a sequence join to
//! what was generated. Beam search has no such events. Then comes an event `result`, whose data is the body of the answer that
//! does not stream, or an event `error` with `{"status": ..., "detail": ...}`.

use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use kaito_engine::{Delta, StreamEvent};
use serde_json::json;

use crate::error::ApiError;
use crate::job::Job;

/// How often a comment is sent while nothing else is, so that proxies keep the connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The answer to a request that streams. The job is dropped, and so cancelled, with the connection.
pub(crate) fn respond(job: Job) -> Response {
    let events = stream::unfold(Some(job), |job| async {
        let mut job = job?;
        let (events, ended) = match next(&mut job).await {
            Ok(next) => next,
            Err(error) => {
                job.record().fail("error");
                (job.reply().failed(&error), true)
            }
        };
        Some((stream::iter(events.into_iter().map(Ok::<_, Infallible>)), (!ended).then_some(job)))
    });
    let sse = Sse::new(events.flatten()).keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
    // Proxies that collect answers before they pass them on would undo the streaming.
    ([("x-accel-buffering", "no")], sse).into_response()
}

/// The events for what happens next, and whether they are the last.
async fn next(job: &mut Job) -> Result<(Vec<Event>, bool), ApiError> {
    Ok(match job.next().await? {
        StreamEvent::Started => (Vec::new(), false),
        StreamEvent::Delta(delta) => (job.reply().delta(&delta).into_iter().collect(), false),
        StreamEvent::Finished(output) => (job.write(output, |reply, output| reply.finished(output)).await?, true),
    })
}

/// The event for new text: none where there is neither text nor token.
pub(crate) fn delta(delta: &Delta) -> Option<Event> {
    let Delta { sequence, text, token, .. } = delta;
    let data = match token {
        Some(token) => json!({ "sequence": sequence, "token": token.id, "text": text }),
        None if text.is_empty() => return None,
        None => json!({ "sequence": sequence, "text": text }),
    };
    Some(Event::default().data(data.to_string()))
}

/// The last event of a stream that came to its end.
pub(crate) fn result(body: String) -> Event {
    Event::default().event("result").data(body)
}

/// The last event of a stream that broke off.
pub(crate) fn error(error: &ApiError) -> Event {
    let body = json!({ "status": error.status().as_u16(), "detail": error.detail() });
    Event::default().event("error").data(body.to_string())
}

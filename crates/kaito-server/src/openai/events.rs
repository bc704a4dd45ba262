//! Server-sent events of the OpenAI dialect: nameless, each with JSON, and `[DONE]` at the end.

use crate::dialect::Event;
use crate::error::ApiError;
use crate::routes::Family;

/// An event with this JSON, which is one line.
pub(crate) fn data(json: &str) -> Event {
    Event::data(json)
}

/// The last event.
pub(crate) fn done() -> Event {
    data("[DONE]")
}

/// The last events of a stream that broke off: clients raise what the first says.
pub(crate) fn failed(error: &ApiError) -> Vec<Event> {
    vec![data(&error.body(Family::OpenAi).to_string()), done()]
}

/// The data of events, as a client reads them.
#[cfg(test)]
pub(crate) async fn read(events: Vec<Event>) -> Vec<String> {
    use axum::response::IntoResponse;
    use axum::response::sse::Sse;

    let framed = events.into_iter().map(|event| Ok::<_, std::convert::Infallible>(crate::stream::framed(event)));
    let events = futures_util::stream::iter(framed);
    let body = Sse::new(events).into_response().into_body();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let body = std::str::from_utf8(&body).unwrap();
    let data = body.split("\n\n").filter(|block| !block.is_empty());
    data.map(|block| block.strip_prefix("data: ").unwrap().to_owned()).collect()
}

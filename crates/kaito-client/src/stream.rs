//! The events of an answer.

use http::{Response, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::{
    Failure,
    http::root_cause,
    sse::{Event, Parser, TooLong},
};

/// An answer that is a stream of server-sent events. To drop it closes its connection, which stops the server's work.
#[derive(Debug)]
pub struct EventStream {
    body: Incoming,
    parser: Parser,
}

impl EventStream {
    /// The events of an answer.
    ///
    /// # Errors
    /// [`Failure::NotAStream`] for an answer of another content type.
    pub fn of(response: Response<Incoming>) -> Result<Self, Failure> {
        let kind = response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        let kind = kind.unwrap_or("nothing that says what it is");
        if !kind.starts_with("text/event-stream") {
            return Err(Failure::NotAStream(format!("the answer is {kind}")));
        }
        Ok(Self { body: response.into_body(), parser: Parser::default() })
    }

    /// Adds the events that come next to `events`, which may be none; `false` when there are no more.
    ///
    /// # Errors
    /// [`Failure::Cut`] where the connection breaks, [`Failure::NotAStream`] for an event without end.
    pub async fn read(&mut self, events: &mut Vec<Event>) -> Result<bool, Failure> {
        let Some(frame) = self.body.frame().await else { return Ok(false) };
        let frame = frame.map_err(|error| Failure::Cut(format!(" ({})", root_cause(&error))))?;
        if let Some(data) = frame.data_ref() {
            self.parser.feed(data, events).map_err(|TooLong| Failure::NotAStream("an event without end".to_owned()))?;
        }
        Ok(true)
    }

    /// Reads to the end, so that the connection can be used again.
    pub async fn finish(mut self) {
        while let Some(Ok(_)) = self.body.frame().await {}
    }
}

//! Asks servers of language models over HTTP: requests with a key, the errors that such servers answer, and their streams of
//! server-sent events. What bodies and events mean in which API is the caller's matter.
#![forbid(unsafe_code)]

mod failure;
mod http;
mod message;
mod sse;
mod stream;

pub use self::http::Http;
pub use failure::{Error, Failure};
pub use message::{brief, message};
pub use sse::Event;
pub use stream::EventStream;

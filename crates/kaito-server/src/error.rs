//! Errors: for the client of the API, and for the caller of this crate.

use std::net::SocketAddr;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use kaito_engine::{ErrorKind, ParameterError};
use serde_json::json;

/// Seconds after which a client that met a full queue or a loading model may come back.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("2");

/// An answer other than success: a status and one sentence for the person who sent the request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct ApiError {
    status: StatusCode,
    detail: String,
}

impl ApiError {
    /// An error with `status` whose body is `{"detail": detail}`.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: sentence(detail.into()) }
    }

    /// 400: the request is understood and cannot be done.
    pub(crate) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    /// 422: the body is not JSON, or JSON of the wrong shape.
    pub(crate) fn wrong_shape(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
    }

    /// 500: a fault of the server.
    pub(crate) fn internal(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, detail)
    }

    /// 503: the same request may succeed later.
    pub(crate) fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, detail)
    }

    /// The status of the answer.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The sentence.
    pub fn detail(&self) -> &str {
        &self.detail
    }
}

/// The longest sentence, in bytes: names and values in it are the client's, and may be as long as its request.
const MAX_DETAIL: usize = 600;

/// Errors of libraries begin with a small letter and end without a full stop; a client reads a whole sentence.
fn sentence(mut text: String) -> String {
    if text.len() > MAX_DETAIL {
        text.truncate(text.floor_char_boundary(MAX_DETAIL));
        text.push_str("...");
    }
    if let Some(first) = text.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    if !text.ends_with(['.', '?', '!']) {
        text.push('.');
    }
    text
}

impl From<ParameterError> for ApiError {
    fn from(error: ParameterError) -> Self {
        Self::bad_request(error.to_string())
    }
}

/// What the command line calls a setting of the model.
fn flag(setting: &str) -> String {
    format!("--{}", setting.replace('_', "-"))
}

impl From<kaito_engine::Error> for ApiError {
    fn from(error: kaito_engine::Error) -> Self {
        let status = match error.kind() {
            ErrorKind::InvalidRequest => StatusCode::BAD_REQUEST,
            ErrorKind::TooBusy => StatusCode::TOO_MANY_REQUESTS,
            ErrorKind::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::Load | ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.sentence(&flag))
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(json!({ "detail": self.detail }))).into_response();
        let headers = response.headers_mut();
        match self.status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, RETRY_AFTER);
            }
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            _ => {}
        }
        response
    }
}

/// Why the server could not start, or ended other than by request.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is taken, or not ours to listen on.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address asked for.
        address: SocketAddr,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// The handlers of SIGTERM and ctrl-c could not be set up.
    #[error("cannot listen for signals: {0}")]
    Signals(#[source] std::io::Error),
    /// The model could not be loaded.
    #[error("{0}")]
    Load(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The loader ended without a result.
    #[error("the thread that loads the model could not start, or died")]
    LoaderLost,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detail_is_a_sentence_of_bounded_length() {
        for (text, detail) in [
            ("unknown parameter `a`", "Unknown parameter `a`."),
            ("did you mean `a`?", "Did you mean `a`?"),
            ("`a` is 1: it must be 2", "`a` is 1: it must be 2."),
            ("", "."),
        ] {
            assert_eq!(ApiError::bad_request(text).detail(), detail);
        }
        let over = kaito_engine::Error::OverLimit {
            what: "the request asks for 9 beams, but at most 8 run here".to_owned(),
            setting: "max_batch_size",
        };
        let error = ApiError::from(over);
        assert_eq!(error.detail(), "The request asks for 9 beams, but at most 8 run here (--max-batch-size).");
        assert_eq!(error.status(), StatusCode::BAD_REQUEST);
        let long = ApiError::bad_request("é".repeat(1000));
        assert_eq!(long.detail(), format!("{}...", "é".repeat(300)));
    }
}

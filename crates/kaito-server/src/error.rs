//! Errors: for the client of the API, and for the caller of this crate.

use std::net::SocketAddr;

use axum::Json;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use kaito_engine::{ErrorKind, ParameterError};
use serde_json::{Value, json};

use crate::routes::{self, Family};

/// Seconds after which a client that met a full queue or a loading model may come back.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("2");

/// An answer other than success: a status and one sentence for the person who sent the request. Where it is sent, the request's
/// path decides which shape it gets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct ApiError {
    status: StatusCode,
    detail: String,
    /// What programs of the OpenAI API tell errors apart by, where the status alone does not say it.
    code: Option<&'static str>,
    /// The field of the request that is to blame, as a path: `messages[1].content`.
    param: Option<String>,
}

impl ApiError {
    /// An error with `status` and the sentence `detail`.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: sentence(detail.into()), code: None, param: None }
    }

    /// The same with a code for programs.
    pub(crate) fn with_code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    /// The same, naming the field that is to blame.
    pub(crate) fn with_param(self, param: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..self }
    }

    /// The same, for a client that calls fields otherwise: pairs of a part of our names and of what stands in its place.
    pub(crate) fn renamed(self, names: &[(&str, &str)]) -> Self {
        let rename = |name: &str| names.iter().fold(name.to_owned(), |name, (ours, theirs)| name.replace(ours, theirs));
        // Names stand in backticks, every other part of the sentence.
        let parts = self.detail.split('`').enumerate();
        let parts = parts.map(|(i, part)| if i % 2 == 1 { rename(part) } else { part.to_owned() });
        Self { detail: parts.collect::<Vec<_>>().join("`"), param: self.param.as_deref().map(rename), ..self }
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

    /// The status that clients of a family get. Kaito's own routes alone know 422.
    fn status_for(&self, family: Family) -> StatusCode {
        match (family, self.status) {
            (Family::OpenAi | Family::Anthropic | Family::Ollama, StatusCode::UNPROCESSABLE_ENTITY) => {
                StatusCode::BAD_REQUEST
            }
            (_, status) => status,
        }
    }

    /// The body that clients of a family get.
    pub(crate) fn body(&self, family: Family) -> Value {
        match family {
            Family::Kaito => json!({ "detail": self.detail }),
            Family::OpenAi => json!({
                "error": {
                    "message": self.detail,
                    "type": openai_type(self.status),
                    "param": self.param,
                    "code": self.code.or(openai_code(self.status)),
                }
            }),
            Family::Anthropic => json!({
                "type": "error",
                "error": { "type": anthropic_type(self.status), "message": self.detail },
            }),
            Family::Ollama => json!({ "error": self.detail }),
        }
    }
}

/// The `type` of an error in the OpenAI API.
fn openai_type(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        StatusCode::REQUEST_TIMEOUT => "server_error",
        status if status.is_server_error() => "server_error",
        _ => "invalid_request_error",
    }
}

/// The `code` of an error in the OpenAI API, where the status says it.
fn openai_code(status: StatusCode) -> Option<&'static str> {
    match status {
        StatusCode::UNAUTHORIZED => Some("invalid_api_key"),
        StatusCode::REQUEST_TIMEOUT => Some("timeout"),
        StatusCode::TOO_MANY_REQUESTS => Some("queue_full"),
        _ => None,
    }
}

/// The `type` of an error in Anthropic's API.
fn anthropic_type(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::FORBIDDEN => "permission_error",
        StatusCode::NOT_FOUND => "not_found_error",
        StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
        StatusCode::REQUEST_TIMEOUT => "api_error",
        status if status.is_server_error() => "api_error",
        _ => "invalid_request_error",
    }
}

/// Middleware around all routes: gives errors the shape that clients of their paths read.
pub(crate) async fn shape(request: Request, next: Next) -> Response {
    let family = routes::family(request.uri().path());
    let mut response = next.run(request).await;
    let Some(error) = response.extensions_mut().remove::<ApiError>().filter(|_| family != Family::Kaito) else {
        return response;
    };
    let mut shaped = (error.status_for(family), Json(error.body(family))).into_response();
    // What else the error's answer says, such as when to come back, stays.
    for (name, value) in response.headers() {
        if !shaped.headers().contains_key(name) && name != header::CONTENT_LENGTH {
            shaped.headers_mut().append(name, value.clone());
        }
    }
    shaped
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
        let sentence = error.to_string();
        let code = matches!(error, ParameterError::PromptTooLong { .. }).then_some("context_length_exceeded");
        Self { code, param: error.parameter().map(str::to_owned), ..Self::bad_request(sentence) }
    }
}

/// What the command line calls a setting of the model.
fn flag(setting: &str) -> String {
    format!("--{}", setting.replace('_', "-"))
}

impl From<kaito_engine::Error> for ApiError {
    fn from(error: kaito_engine::Error) -> Self {
        let (status, code) = match error.kind() {
            ErrorKind::InvalidRequest => (StatusCode::BAD_REQUEST, None),
            ErrorKind::TooBusy => (StatusCode::TOO_MANY_REQUESTS, Some("queue_full")),
            ErrorKind::ShuttingDown => (StatusCode::SERVICE_UNAVAILABLE, Some("shutting_down")),
            ErrorKind::Load | ErrorKind::Internal => (StatusCode::INTERNAL_SERVER_ERROR, None),
            ErrorKind::Upstream => (StatusCode::BAD_GATEWAY, Some("engine_failed")),
            ErrorKind::UpstreamAway => (StatusCode::SERVICE_UNAVAILABLE, Some("engine_away")),
        };
        if let kaito_engine::Error::Parameter(error) = error {
            return error.into();
        }
        Self { code, ..Self::new(status, error.sentence(&flag)) }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body(Family::Kaito))).into_response();
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
        response.extensions_mut().insert(self);
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

    #[test]
    fn names_are_exchanged_and_words_are_not() {
        let error = ApiError::bad_request("`a.function.b` is \"x.function.y\"").with_param("a.function.b");
        let expected = ApiError::bad_request("`a.b` is \"x.function.y\"").with_param("a.b");
        assert_eq!(error.renamed(&[(".function.", ".")]), expected);
    }

    #[test]
    fn an_error_has_the_shape_of_its_family() {
        let error = ApiError::wrong_shape("`n` is 1.5: it must be a whole number").with_param("n").with_code("c");
        let sentence = "`n` is 1.5: it must be a whole number.";
        for (family, status, body) in [
            (Family::Kaito, 422, json!({ "detail": sentence })),
            (
                Family::OpenAi,
                400,
                json!({ "error": {
                    "message": sentence, "type": "invalid_request_error", "param": "n", "code": "c",
                } }),
            ),
            (
                Family::Anthropic,
                400,
                json!({ "type": "error", "error": { "type": "invalid_request_error", "message": sentence } }),
            ),
            (Family::Ollama, 400, json!({ "error": sentence })),
        ] {
            assert_eq!(error.status_for(family), status, "{family:?}");
            assert_eq!(error.body(family), body, "{family:?}");
        }
    }

    #[test]
    fn types_and_codes_follow_from_the_status() {
        for (status, kind, code, anthropic) in [
            (400, "invalid_request_error", None, "invalid_request_error"),
            (401, "authentication_error", Some("invalid_api_key"), "authentication_error"),
            (403, "invalid_request_error", None, "permission_error"),
            (404, "invalid_request_error", None, "not_found_error"),
            (405, "invalid_request_error", None, "invalid_request_error"),
            (408, "server_error", Some("timeout"), "api_error"),
            (413, "invalid_request_error", None, "request_too_large"),
            (415, "invalid_request_error", None, "invalid_request_error"),
            (429, "rate_limit_error", Some("queue_full"), "rate_limit_error"),
            (500, "server_error", None, "api_error"),
            (503, "server_error", None, "overloaded_error"),
        ] {
            let error = ApiError::new(StatusCode::from_u16(status).unwrap(), "a");
            let openai = &error.body(Family::OpenAi)["error"];
            assert_eq!((&openai["type"], &openai["code"]), (&json!(kind), &json!(code)), "{status}");
            assert_eq!(error.body(Family::Anthropic)["error"]["type"], anthropic, "{status}");
        }
    }
}

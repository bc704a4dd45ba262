//! What a request may look like before anyone reads its meaning.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, StatusCode, header};
use futures_util::StreamExt;
use tokio::time::Instant;

use crate::error::ApiError;

/// How much of a body that is over the limit is read and thrown away, so that the client hears the answer rather than
/// a broken connection.
const DISCARD_LIMIT: usize = 64 << 20;
/// How long that may take.
const DISCARD_TIME: Duration = Duration::from_secs(2);

/// The body is plain JSON according to its headers.
///
/// # Errors
/// 415 with what the headers say instead.
pub(crate) fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let unsupported = |detail: String| Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail));
    let shown = |name| headers.get(name).map(|value: &header::HeaderValue| String::from_utf8_lossy(value.as_bytes()));
    match shown(header::CONTENT_TYPE) {
        None => return unsupported("Content-Type is missing; it must be application/json.".to_owned()),
        Some(given) if !is_json(&given) => {
            return unsupported(format!("Content-Type is {given}; it must be application/json."));
        }
        Some(_) => {}
    }
    match shown(header::CONTENT_ENCODING) {
        Some(coding) if !coding.eq_ignore_ascii_case("identity") => {
            unsupported(format!("Content-Encoding is {coding}; the body must not be encoded."))
        }
        _ => Ok(()),
    }
}

/// `application/json`, or one of its relatives such as `application/problem+json`, with or without parameters.
fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

/// Reads the whole body of at most `limit` bytes.
///
/// # Errors
/// 413 over the limit, 408 at the deadline, 400 when the client breaks off.
pub(crate) async fn read_body(
    headers: &HeaderMap,
    body: Body,
    limit: usize,
    deadline: Instant,
    timeout: Duration,
) -> Result<Bytes, ApiError> {
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    let mut chunks = body.into_data_stream();
    if announced.is_some_and(|length| length > limit as u64) {
        // A client that waits for leave to send has sent nothing yet.
        if !headers.contains_key(header::EXPECT) {
            discard(&mut chunks).await;
        }
        return Err(too_large(announced, limit));
    }
    let mut whole = Vec::with_capacity(announced.and_then(|length| usize::try_from(length).ok()).unwrap_or(0));
    loop {
        match tokio::time::timeout_at(deadline, chunks.next()).await {
            Err(_) => return Err(timed_out(timeout)),
            Ok(None) => return Ok(whole.into()),
            Ok(Some(Err(e))) => return Err(ApiError::bad_request(format!("The body broke off: {e}."))),
            Ok(Some(Ok(chunk))) if whole.len() + chunk.len() > limit => {
                discard(&mut chunks).await;
                return Err(too_large(None, limit));
            }
            Ok(Some(Ok(chunk))) => whole.extend_from_slice(&chunk),
        }
    }
}

async fn discard(chunks: &mut axum::body::BodyDataStream) {
    let mut left = DISCARD_LIMIT;
    let all = async {
        while let Some(Ok(chunk)) = chunks.next().await
            && let Some(rest) = left.checked_sub(chunk.len())
        {
            left = rest;
        }
    };
    // At the end of the time the answer goes out all the same.
    let _ = tokio::time::timeout(DISCARD_TIME, all).await;
}

fn too_large(announced: Option<u64>, limit: usize) -> ApiError {
    let detail = match announced {
        Some(length) => format!("The body has {length} bytes; the limit is {limit}."),
        None => format!("The body is over the limit of {limit} bytes."),
    };
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, detail)
}

/// 408: the request took longer than `timeout`.
pub(crate) fn timed_out(timeout: Duration) -> ApiError {
    ApiError::new(
        StatusCode::REQUEST_TIMEOUT,
        format!("The request took longer than the limit of {} s.", timeout.as_secs_f64()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_goes_by_several_names() {
        for (content_type, json) in [
            ("application/json", true),
            ("Application/JSON; charset=utf-8", true),
            ("application/vnd.api+json", true),
            ("application/x-www-form-urlencoded", false),
            ("text/json", false),
            ("application/jsonl", false),
            ("", false),
        ] {
            assert_eq!(is_json(content_type), json, "{content_type}");
        }
    }
}

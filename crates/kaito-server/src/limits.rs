//! Checks of a request's headers before its body is read, and the answer to requests that take too long.

use std::time::Duration;

use axum::http::{HeaderMap, StatusCode, header};

use crate::error::ApiError;
use crate::framing;
use crate::routes::Family;

/// The body is plain JSON according to its headers.
///
/// Ollama's clients may leave out what it is, as LiteLLM does. A web page may not, since that is what keeps pages of others from having
/// this server work for them: a page needs nobody's leave to send a body without a type, as a form or as plain text, and needs it
/// for JSON. A browser tells by two headers that a page sends something, and a page can leave out neither: `Origin`, which every
/// POST to another place has (the Fetch Standard, "append a request `Origin` header"; `null` where it is not to be known), and
/// `Sec-Fetch-Site` (Fetch Metadata). Other clients send neither of themselves. A form's or a text's type is refused in any case,
/// since browsers were slower to name the origin of forms.
///
/// # Errors
/// 415 with what the headers say instead.
pub(crate) fn check_content_type(headers: &HeaderMap, family: Family) -> Result<(), ApiError> {
    let unsupported = |detail: String| Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail));
    let mut types = headers.get_all(header::CONTENT_TYPE).iter();
    match types.next().map(|value| String::from_utf8_lossy(value.as_bytes())) {
        None if family == Family::Ollama && !is_of_a_page(headers) => {}
        None => return unsupported("Content-Type is missing; it must be application/json.".to_owned()),
        Some(_) if types.next().is_some() => {
            return unsupported("Content-Type stands in several lines; give it once.".to_owned());
        }
        Some(given) if !is_json(&given) => {
            return unsupported(format!("Content-Type is {given}; it must be application/json."));
        }
        Some(_) => {}
    }
    match framing::elements(headers, header::CONTENT_ENCODING).find(|coding| coding != "identity") {
        Some(coding) => unsupported(format!("Content-Encoding is {coding}; the body must not be encoded.")),
        None => Ok(()),
    }
}

/// Whether a browser says that a web page sends this.
fn is_of_a_page(headers: &HeaderMap) -> bool {
    headers.contains_key(header::ORIGIN) || headers.contains_key("sec-fetch-site")
}

/// `application/json`, or one of its relatives such as `application/problem+json`, with or without parameters.
fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
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
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn an_encoding_is_found_in_any_line() {
        for (encodings, allowed) in [
            (&[][..], true),
            (&["identity"], true),
            (&["Identity", "identity"], true),
            (&["gzip"], false),
            (&["identity", "gzip"], false),
            (&["identity, gzip"], false),
            (&["", "br"], false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            for encoding in encodings {
                headers.append(header::CONTENT_ENCODING, HeaderValue::from_static(encoding));
            }
            assert_eq!(check_content_type(&headers, Family::Kaito).is_ok(), allowed, "{encodings:?}");
        }
    }

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

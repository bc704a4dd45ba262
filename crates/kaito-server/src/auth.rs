//! Who may ask for what.

use std::net::SocketAddr;

use axum::http::{HeaderMap, StatusCode, header};

use crate::error::ApiError;
use crate::options::ApiKey;

/// Lets a request for work pass when no key is set, or when it shows the right one.
///
/// # Errors
/// 401.
pub(crate) fn check_key(key: Option<&ApiKey>, headers: &HeaderMap) -> Result<(), ApiError> {
    match key {
        None => Ok(()),
        Some(key) if bearer(headers).is_some_and(|offered| key.matches(offered)) => Ok(()),
        Some(_) => Err(ApiError::new(
            StatusCode::UNAUTHORIZED,
            match bearer(headers) {
                None => "This route needs an API key, as the header `Authorization: Bearer KEY`.",
                Some(_) => "The API key is wrong.",
            },
        )),
    }
}

/// Lets a shutdown pass that comes from this machine, or that shows the key.
///
/// # Errors
/// 403.
pub(crate) fn check_shutdown(key: Option<&ApiKey>, peer: SocketAddr, headers: &HeaderMap) -> Result<(), ApiError> {
    let shows_key = key.is_some_and(|key| bearer(headers).is_some_and(|offered| key.matches(offered)));
    // A web page that a local browser shows may send a POST here, but not without saying where the page is from.
    let from_page = headers.contains_key(header::ORIGIN);
    if shows_key || (peer.ip().to_canonical().is_loopback() && !from_page) {
        return Ok(());
    }
    Err(ApiError::new(
        StatusCode::FORBIDDEN,
        if from_page {
            "A web page may not shut the server down without the API key."
        } else {
            "Only this machine, or a request with the API key, may shut the server down."
        },
    ))
}

/// The token of `Authorization: Bearer TOKEN`.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn headers(pairs: &[(header::HeaderName, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn the_key_is_asked_for_only_when_set() {
        let key = ApiKey::new("secret").unwrap();
        let check = |value| check_key(Some(&key), &headers(&[(header::AUTHORIZATION, value)])).is_ok();
        assert!(check_key(None, &HeaderMap::new()).is_ok());
        assert!(check_key(Some(&key), &HeaderMap::new()).is_err());
        assert!(check("Bearer secret"));
        assert!(check("bearer  secret"));
        for wrong in ["Bearer secre", "Bearer secrets", "Bearer ", "Bearer", "Basic secret", "secret", ""] {
            assert!(!check(wrong), "{wrong}");
        }
    }

    #[test]
    fn a_shutdown_comes_from_this_machine_or_with_the_key() {
        let key = ApiKey::new("secret").unwrap();
        let shown = headers(&[(header::AUTHORIZATION, "Bearer secret")]);
        let none = HeaderMap::new();
        let page = headers(&[(header::ORIGIN, "http://example.com")]);
        for (key, peer, headers, allowed) in [
            (None, "127.0.0.1:1", &none, true),
            (None, "[::1]:1", &none, true),
            (None, "[::ffff:127.0.0.1]:1", &none, true),
            (None, "127.0.0.1:1", &page, false),
            (None, "10.0.0.1:1", &none, false),
            (None, "10.0.0.1:1", &shown, false),
            (Some(&key), "10.0.0.1:1", &none, false),
            (Some(&key), "10.0.0.1:1", &shown, true),
            (Some(&key), "127.0.0.1:1", &none, true),
        ] {
            assert_eq!(check_shutdown(key, peer.parse().unwrap(), headers).is_ok(), allowed, "{peer} {headers:?}");
        }
    }
}

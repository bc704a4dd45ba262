//! Checks of a request as an HTTP message, against request smuggling: where servers and proxies could disagree about what a
//! message says or where it ends, and the HTTP library lets it pass, it is refused here.

use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, Version, header, uri::Authority};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::error::ApiError;

/// Refuses ambiguous requests and closes their connection, since nobody knows where on it the next request begins.
pub(crate) async fn guard(request: Request, next: Next) -> Response {
    let authority = request.uri().authority().map(Authority::as_str);
    match check(request.version(), authority, request.headers()) {
        Ok(()) => next.run(request).await,
        Err(error) => ([(header::CONNECTION, "close")], error).into_response(),
    }
}

/// `authority` is that of the request's target.
fn check(version: Version, authority: Option<&str>, headers: &HeaderMap) -> Result<(), ApiError> {
    check_host(version, authority, headers)?;
    check_transfer_encoding(headers)?;
    if elements(headers, header::TE).any(|coding| name(&coding) == "chunked") {
        return Err(ApiError::bad_request("TE names chunked, which must not stand there."));
    }
    Ok(())
}

/// RFC 9112, 3.2, and RFC 9113, 8.3.1: in HTTP/2 the authority takes the place of Host, and where both are there they agree.
fn check_host(version: Version, authority: Option<&str>, headers: &HeaderMap) -> Result<(), ApiError> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let http_2 = version == Version::HTTP_2;
    let Some(host) = hosts.next() else {
        let dispensable = version < Version::HTTP_11 || (http_2 && authority.is_some());
        return if dispensable { Ok(()) } else { Err(ApiError::bad_request("Host is missing.")) };
    };
    if let Some(authority) =
        authority.filter(|authority| http_2 && !authority.as_bytes().eq_ignore_ascii_case(host.as_bytes()))
    {
        let shown = String::from_utf8_lossy(host.as_bytes());
        return Err(ApiError::bad_request(format!("Host is {shown:?}, but the request is for {authority:?}.")));
    }
    let lines = 1 + hosts.count();
    if lines > 1 {
        return Err(ApiError::bad_request(format!("Host stands in {lines} lines; give it once.")));
    }
    let valid = |authority: Authority| {
        let host = authority.host();
        let port = authority.as_str().strip_prefix(host);
        let plain = !host.is_empty() && !authority.as_str().contains('@');
        plain && port.is_some_and(|port| ["", ":"].contains(&port) || authority.port_u16().is_some())
    };
    // It may be empty where there is no name to tell.
    if host.is_empty() || Authority::try_from(host.as_bytes()).is_ok_and(valid) {
        return Ok(());
    }
    let shown = String::from_utf8_lossy(host.as_bytes());
    Err(ApiError::bad_request(format!("Host is {shown:?}; it must be a name or an address, and a port or none.")))
}

/// RFC 9112, 6.1 and 7.
fn check_transfer_encoding(headers: &HeaderMap) -> Result<(), ApiError> {
    let codings: Vec<_> = elements(headers, header::TRANSFER_ENCODING).collect();
    if codings.is_empty() || codings == ["chunked"] {
        return Ok(());
    }
    let shown = codings.join(", ");
    let detail = format!("Transfer-Encoding is {shown}; it must be chunked alone, or absent.");
    let repeated = codings.iter().all(|coding| coding == "chunked");
    Err(ApiError::new(if repeated { StatusCode::BAD_REQUEST } else { StatusCode::NOT_IMPLEMENTED }, detail))
}

/// The elements of a list that may stand in several lines, in lower case.
pub(crate) fn elements(headers: &HeaderMap, name: header::HeaderName) -> impl Iterator<Item = String> {
    headers
        .get_all(name)
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .map(|element| String::from_utf8_lossy(element.trim_ascii()).to_ascii_lowercase())
        .filter(|element| !element.is_empty())
}

/// An element without its parameters.
fn name(element: &str) -> &str {
    element.split(';').next().unwrap_or_default().trim()
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    /// The status of the answer to such headers, or 0.
    fn status(version: Version, lines: &[(HeaderName, &'static str)]) -> u16 {
        let headers = lines.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value)));
        let mut map = HeaderMap::new();
        headers.for_each(|(name, value)| {
            map.append(name, value);
        });
        check(version, None, &map).map_or_else(|error| error.status().as_u16(), |()| 0)
    }

    #[test]
    fn a_host_is_given_once_and_valid() {
        for (version, hosts, expected) in [
            (Version::HTTP_11, &[][..], 400),
            (Version::HTTP_10, &[], 0),
            (Version::HTTP_11, &["a"], 0),
            (Version::HTTP_11, &["a.example:80"], 0),
            (Version::HTTP_11, &["[::1]:5000"], 0),
            (Version::HTTP_11, &["127.0.0.1"], 0),
            (Version::HTTP_11, &[""], 0),
            (Version::HTTP_11, &["a", "a"], 400),
            (Version::HTTP_10, &["a", "b"], 400),
            (Version::HTTP_11, &["a, b"], 400),
            (Version::HTTP_11, &["a b"], 400),
            (Version::HTTP_11, &["a/b"], 400),
            (Version::HTTP_11, &["http://a"], 400),
            (Version::HTTP_11, &["user@a"], 400),
            (Version::HTTP_11, &["a:1@a:80"], 400),
            (Version::HTTP_11, &["a:b"], 400),
            (Version::HTTP_11, &["a:70000"], 400),
            (Version::HTTP_11, &[":80"], 400),
            (Version::HTTP_11, &["a:"], 0),
        ] {
            let lines: Vec<_> = hosts.iter().map(|host| (header::HOST, *host)).collect();
            assert_eq!(status(version, &lines), expected, "{version:?} {hosts:?}");
        }
    }

    #[test]
    fn a_body_is_chunked_or_plain() {
        for (codings, expected) in [
            (&["chunked"][..], 0),
            (&["Chunked"], 0),
            (&["gzip, chunked"], 501),
            (&["gzip", "chunked"], 501),
            (&["chunked", "gzip"], 501),
            (&["identity, chunked"], 501),
            (&["chunked;q=1"], 501),
            (&["xchunked"], 501),
            (&["chunked, chunked"], 400),
            (&["chunked", "chunked"], 400),
        ] {
            let host = [(header::HOST, "a")];
            let lines: Vec<_> =
                host.into_iter().chain(codings.iter().map(|coding| (header::TRANSFER_ENCODING, *coding))).collect();
            assert_eq!(status(Version::HTTP_11, &lines), expected, "{codings:?}");
        }
        for (te, expected) in
            [("trailers", 0), ("gzip;q=0.5, deflate", 0), ("gzip, chunked", 400), ("chunked;q=0", 400)]
        {
            assert_eq!(status(Version::HTTP_11, &[(header::HOST, "a"), (header::TE, te)]), expected, "{te}");
        }
    }
}

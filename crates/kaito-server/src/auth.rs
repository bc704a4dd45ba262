//! Which requests need an API key, and what a server without one lets pass.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::Response;

use crate::error::ApiError;
use crate::host::Hosts;
use crate::keys::ApiKeys;
use crate::state::App;

/// Headers that proxies add to a request, and what the names of the others begin with.
const FORWARDED: [&str; 21] = [
    "via",
    "client-ip",
    "real-ip",
    "true-client-ip",
    "x-true-client-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "fastly-client-ip",
    "fly-client-ip",
    "proxy-client-ip",
    "wl-proxy-client-ip",
    "x-real-ip",
    "x-real-port",
    "x-remote-ip",
    "x-remote-addr",
    "x-originating-ip",
    "x-proxyuser-ip",
    "x-appengine-user-ip",
    "x-amzn-trace-id",
    "cdn-loop",
    "max-forwards",
];
const FORWARDED_PREFIXES: [&str; 6] = ["forward", "x-forward", "x-original-", "x-envoy-", "x-azure-", "cf-"];

/// The headers that carry a key as their whole value, beside `Authorization: Bearer KEY`: Anthropic's and Azure's.
const KEY_HEADERS: [&str; 2] = ["x-api-key", "api-key"];

/// Lets a request pass when no key is set, or when it shows one of them.
///
/// # Errors
/// 401.
pub(crate) fn check_key(keys: &ApiKeys, headers: &HeaderMap) -> Result<(), ApiError> {
    if !keys.are_asked_for() {
        return Ok(());
    }
    match offered(headers)? {
        None => Err(refused("This route needs an API key, as the header `Authorization: Bearer KEY`.")),
        Some(offered) if keys.accept(offered) => Ok(()),
        Some(_) => Err(refused("The API key is wrong.")),
    }
}

fn refused(detail: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::UNAUTHORIZED, detail)
}

/// The one key that a request shows, in whatever headers.
///
/// # Errors
/// 401 where it shows two that differ: a proxy could check one of them, and this server the other.
fn offered(headers: &HeaderMap) -> Result<Option<&[u8]>, ApiError> {
    for name in [header::AUTHORIZATION.as_str()].into_iter().chain(KEY_HEADERS) {
        if headers.get_all(name).iter().nth(1).is_some() {
            let shown = if name == header::AUTHORIZATION { "Authorization" } else { name };
            return Err(refused(format!("The header {shown} is there more than once.")));
        }
    }
    let plain = KEY_HEADERS.map(|name| Some((name, headers.get(name)?.as_bytes().trim_ascii())));
    let bearer = bearer(headers).map(|key| ("Authorization", key));
    let mut found: Option<(&str, &[u8])> = None;
    for (name, key) in [bearer].into_iter().chain(plain).flatten() {
        match found {
            Some((first, other)) if other != key => {
                return Err(refused(format!("The headers {first} and {name} hold different API keys.")));
            }
            _ => found = Some((name, key)),
        }
    }
    Ok(found.map(|(_, key)| key))
}

/// Middleware around routes that need a key.
pub(crate) async fn require_key(
    State(app): State<Arc<App>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    check_key(&app.options.api_keys, request.headers())?;
    Ok(next.run(request).await)
}

/// Lets a request for shutdown pass that shows a key. If the server has none, the request must come from this machine: from a
/// loopback address, for one of this machine's own names, and neither through a proxy nor from a web page, since both send
/// requests from here on behalf of others.
///
/// # Errors
/// 401 and 403.
pub(crate) fn check_shutdown(
    keys: &ApiKeys,
    hosts: &Hosts,
    peer: SocketAddr,
    uri: &Uri,
    headers: &HeaderMap,
) -> Result<(), ApiError> {
    if keys.are_asked_for() {
        return check_key(keys, headers);
    }
    let refused = |detail: String| Err(ApiError::new(StatusCode::FORBIDDEN, detail));
    if !peer.ip().to_canonical().is_loopback() {
        return refused("Without an API key, only this machine may shut the server down.".to_owned());
    }
    if let Some(name) = headers.keys().map(|name| name.as_str()).find(|name| is_of_a_proxy(name)) {
        return refused(format!(
            "The request came through a proxy, as its header {name} says; without an API key, only this machine may shut the \
             server down."
        ));
    }
    let other_site = |value: &[u8]| ![&b"same-origin"[..], b"none"].iter().any(|own| value.eq_ignore_ascii_case(own));
    if headers.contains_key(header::ORIGIN)
        || headers.get_all("sec-fetch-site").iter().any(|value| other_site(value.as_bytes()))
    {
        return refused("A web page may not shut the server down without an API key.".to_owned());
    }
    if hosts.foreign_host(uri, headers).is_some() {
        return refused(
            "Without an API key, the server is shut down by one of this machine's own names only.".to_owned(),
        );
    }
    Ok(())
}

/// Whether a header, by its name in lower case, is one that proxies add.
fn is_of_a_proxy(name: &str) -> bool {
    FORWARDED.contains(&name) || FORWARDED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// The token of `Authorization: Bearer TOKEN`.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;
    use crate::keys::ApiKey;
    use crate::options::ServerOptions;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        headers
    }

    fn keys() -> ApiKeys {
        ApiKeys::new(ApiKey::parse_all("secret,other").unwrap(), None).unwrap()
    }

    #[test]
    fn the_key_is_asked_for_only_when_set() {
        let keys = keys();
        let check = |value| check_key(&keys, &headers(&[("authorization", value)])).is_ok();
        assert!(check_key(&ApiKeys::default(), &HeaderMap::new()).is_ok());
        assert!(check_key(&keys, &HeaderMap::new()).is_err());
        for right in ["Bearer secret", "Bearer other", "bearer  secret", "BEARER secret "] {
            assert!(check(right), "{right}");
        }
        for wrong in [
            "Bearer secre",
            "Bearer secrets",
            "Bearer ",
            "Bearer",
            "Basic secret",
            "secret",
            "",
            "Bearer secret,other",
            "Bearer secret, other",
        ] {
            assert!(!check(wrong), "{wrong}");
        }
        let twice = headers(&[("authorization", "Bearer secret"), ("authorization", "Bearer secret")]);
        assert!(check_key(&keys, &twice).is_err());
    }

    #[test]
    fn the_key_comes_in_any_of_three_headers_and_is_the_same_in_all() {
        const NEEDED: &str = "This route needs an API key, as the header `Authorization: Bearer KEY`.";
        const WRONG: &str = "The API key is wrong.";
        let keys = keys();
        for (pairs, refusal) in [
            (&[("x-api-key", "secret")][..], None),
            (&[("api-key", "other")], None),
            (&[("x-api-key", " secret ")], None),
            (&[("authorization", "Bearer secret"), ("x-api-key", "secret"), ("api-key", "secret")], None),
            // What is no bearer token is no key.
            (&[("authorization", "Basic dXNlcjpwYXNz"), ("x-api-key", "secret")], None),
            (&[("authorization", "Basic secret")], Some(NEEDED)),
            (&[("key", "secret")], Some(NEEDED)),
            (&[("x-api-key", "Bearer secret")], Some(WRONG)),
            (&[("x-api-key", "")], Some(WRONG)),
            (&[("api-key", "secret,other")], Some(WRONG)),
            (
                &[("authorization", "Bearer secret"), ("x-api-key", "other")],
                Some("The headers Authorization and x-api-key hold different API keys."),
            ),
            (
                &[("x-api-key", "secret"), ("api-key", "wrong")],
                Some("The headers x-api-key and api-key hold different API keys."),
            ),
            (&[("api-key", "secret"), ("api-key", "secret")], Some("The header api-key is there more than once.")),
            (
                &[("authorization", "Basic a"), ("authorization", "Bearer secret")],
                Some("The header Authorization is there more than once."),
            ),
        ] {
            let outcome = check_key(&keys, &headers(pairs));
            assert_eq!(outcome.as_ref().err().map(ApiError::detail), refusal, "{pairs:?}");
        }
    }

    /// The rule "from loopback or with the key" opened it to the internet behind a proxy on the same host.
    #[test]
    fn a_shutdown_comes_from_this_machine_or_with_the_key() {
        const HERE: &str = "127.0.0.1:1";
        let status = |keys: &ApiKeys, peer: &str, pairs: &[(&'static str, &'static str)]| {
            let hosts = Hosts::of(&ServerOptions { address: "0.0.0.0:0".parse().unwrap(), ..ServerOptions::default() });
            let uri = Uri::from_static("/shutdown");
            let outcome = check_shutdown(keys, &hosts, peer.parse().unwrap(), &uri, &headers(pairs));
            outcome.map_or_else(|error| error.status().as_u16(), |()| 200)
        };
        let none = ApiKeys::default();
        for (keys, peer, pairs, expected) in [
            (&none, HERE, &[][..], 200),
            (&none, HERE, &[("host", "localhost:5000")], 200),
            (&none, "[::1]:1", &[], 200),
            (&none, "[::ffff:127.0.0.1]:1", &[], 200),
            (&none, "10.0.0.1:1", &[], 403),
            (&none, "10.0.0.1:1", &[("authorization", "Bearer secret")], 403),
            (&none, HERE, &[("origin", "http://example.com")], 403),
            (&none, HERE, &[("origin", "null")], 403),
            (&none, HERE, &[("origin", "http://localhost:5000")], 403),
            (&none, HERE, &[("host", "evil.example")], 403),
            (&none, HERE, &[("sec-fetch-site", "same-origin")], 200),
            (&none, HERE, &[("sec-fetch-site", "none")], 200),
            (&none, HERE, &[("sec-fetch-site", "same-site")], 403),
            (&none, HERE, &[("sec-fetch-site", "cross-site")], 403),
            (&none, HERE, &[("sec-fetch-site", "")], 403),
            (&none, HERE, &[("sec-fetch-site", "none"), ("sec-fetch-site", "cross-site")], 403),
            (&keys(), HERE, &[], 401),
            (&keys(), HERE, &[("authorization", "Bearer wrong")], 401),
            (&keys(), HERE, &[("authorization", "Bearer secret")], 200),
            (&keys(), HERE, &[("x-api-key", "secret")], 200),
            (&keys(), HERE, &[("authorization", "Bearer secret"), ("api-key", "wrong")], 401),
            (&keys(), "10.0.0.1:1", &[], 401),
            (
                &keys(),
                "10.0.0.1:1",
                &[("authorization", "Bearer other"), ("via", "1.1 proxy"), ("host", "example.com")],
                200,
            ),
        ] {
            assert_eq!(status(keys, peer, pairs), expected, "{peer} {pairs:?}");
        }
        for name in [
            "forwarded",
            "x-forwarded-for",
            "x-forwarded-host",
            "x-forwarded-proto",
            "x-forwarded-port",
            "x-forwarded-anything",
            "x-forwarded",
            "forwarded-for",
            "x-forwarder-for",
            "via",
            "x-real-ip",
            "x-client-ip",
            "true-client-ip",
            "cf-connecting-ip",
            "x-original-forwarded-for",
            "x-envoy-external-address",
            "x-amzn-trace-id",
            "fly-client-ip",
            "x-cluster-client-ip",
        ] {
            for value in ["203.0.113.9", "127.0.0.1", ""] {
                assert_eq!(status(&none, HERE, &[(name, value)]), 403, "{name}");
            }
        }
        for name in ["accept", "user-agent", "x-request-id", "content-type", "viable", "x-for"] {
            assert_eq!(status(&none, HERE, &[(name, "x")]), 200, "{name}");
        }
    }
}

//! Requests to the hub: where the token may go, which redirects are followed, what a status means, when to try again.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant, SystemTime},
};

use kaito_net::{Retries, RetryPolicy, is_transient, retry_after, same_origin};
use ureq::{
    Agent, Body,
    http::{Method, Request, Response, StatusCode, header},
    tls::{Certificate, RootCerts, TlsConfig},
};
use url::Url;

use crate::{Error, Event, HubOptions, Progress, Repo};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection on which nothing arrives for so long is given up.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
const MAX_REDIRECTS: usize = 10;
const STOP_POLL: Duration = Duration::from_millis(100);

pub(crate) struct Http {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
}

/// Which redirects to follow.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Follow {
    /// All: for contents, which may lie on another host.
    All,
    /// Those that stay on the hub: for headers, which the hub itself has.
    OnHub,
}

/// Why one attempt failed.
pub(crate) enum Failure {
    /// It may work next time.
    Transient {
        cause: String,
        /// How long the hub asks to wait.
        retry_after: Option<Duration>,
        /// Bytes came before it failed, so the count of attempts begins anew.
        progressed: bool,
    },
    /// It will not.
    Fatal(Error),
}

impl Failure {
    pub(crate) fn transient(cause: impl Into<String>) -> Self {
        Failure::Transient { cause: cause.into(), retry_after: None, progressed: false }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Fatal(error)
    }
}

/// An answer, and whether the hub itself gave it.
pub(crate) struct Answer {
    pub(crate) response: Response<Body>,
    pub(crate) from_hub: bool,
}

impl Http {
    pub(crate) fn new(options: &HubOptions) -> Self {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(STALL_TIMEOUT))
            .timeout_per_read(Some(STALL_TIMEOUT))
            .user_agent(concat!("kaito/", env!("CARGO_PKG_VERSION")))
            .tls_config(TlsConfig::builder().root_certs(root_certs()).build())
            .build()
            .new_agent();
        Self { agent, endpoint: options.endpoint.clone(), token: options.token.clone() }
    }

    /// One request; with `from`, for the bytes from there on.
    pub(crate) fn send(&self, method: Method, url: &str, from: Option<u64>, follow: Follow) -> Result<Answer, Failure> {
        let mut url = url.to_owned();
        for _ in 0..=MAX_REDIRECTS {
            let from_hub = self.is_on_hub(&url);
            // Compressed bytes could be neither counted nor resumed.
            let mut request =
                Request::builder().method(method.clone()).uri(&url).header(header::ACCEPT_ENCODING, "identity");
            if let Some(token) = self.token.as_ref().filter(|_| from_hub) {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            if let Some(from) = from {
                request = request.header(header::RANGE, format!("bytes={from}-"));
            }
            let protocol = |what: String| Failure::Fatal(Error::Protocol { url: url.clone(), what });
            let request = request.body(()).map_err(|error| protocol(error.to_string()))?;
            let response = self.agent.run(request).map_err(|error| failure_of(error, &url))?;
            let location = match response.status().as_u16() {
                301 | 302 | 303 | 307 | 308 => response.headers().get(header::LOCATION),
                _ => None,
            };
            let Some(location) = location else { return Ok(Answer { response, from_hub }) };
            let next = location
                .to_str()
                .ok()
                .and_then(|location| redirect_target(&url, location))
                .ok_or_else(|| protocol(format!("redirects to {location:?}, which is no URL")))?;
            if follow == Follow::OnHub && !self.is_on_hub(&next) {
                return Ok(Answer { response, from_hub });
            }
            url = next;
        }
        Err(Failure::Fatal(Error::Protocol { url, what: format!("more than {MAX_REDIRECTS} redirects") }))
    }

    /// Whether an address is the hub's own, where the token may go.
    fn is_on_hub(&self, url: &str) -> bool {
        matches!((Url::parse(url), Url::parse(&self.endpoint)), (Ok(url), Ok(hub)) if same_origin(&url, &hub))
    }

    /// What an answer without success means for a request about `repo`.
    pub(crate) fn refusal(&self, repo: &Repo, url: &str, answer: &Answer) -> Failure {
        let status = answer.response.status();
        let token_given = self.token.is_some();
        let id = repo.id();
        let code = answer.response.headers().get("x-error-code").and_then(|code| code.to_str().ok());
        let not_found = || Error::RepoNotFound { repo: id.clone(), endpoint: self.endpoint.clone(), token_given };
        if is_transient(status.as_u16()) {
            let value = text_header(&answer.response, header::RETRY_AFTER.as_str());
            let retry_after = value.and_then(|value| retry_after(value, SystemTime::now()));
            return Failure::Transient { cause: format!("status {status}"), retry_after, progressed: false };
        }
        let error = match (status.as_u16(), code) {
            // A signed address may have expired; the next attempt asks the hub for a new one.
            (401 | 403 | 404 | 410, _) if !answer.from_hub => {
                return Failure::transient(format!("status {status} from the storage behind the hub"));
            }
            (401 | 403, Some("GatedRepo")) => {
                Error::Gated { page: format!("{}/{id}", self.endpoint), repo: id.clone(), token_given }
            }
            (401 | 403 | 404, Some("RepoNotFound")) => not_found(),
            (404, Some("RevisionNotFound")) => {
                Error::RevisionNotFound { repo: id.clone(), revision: repo.revision().to_owned() }
            }
            (401 | 403, _) if token_given => Error::TokenRefused { repo: id.clone(), status: status.as_u16() },
            (401 | 403, _) => not_found(),
            (404, None) if url.contains("/api/models/") => not_found(),
            _ => Error::Protocol { url: url.to_owned(), what: format!("status {status}") },
        };
        Failure::Fatal(error)
    }
}

/// Repeats an attempt, with growing waits between, until it succeeds, fails for good or has failed too often in a row, or until
/// `stop` says that the result is no longer needed.
pub(crate) fn with_retries<T>(
    policy: RetryPolicy,
    url: &str,
    progress: &dyn Progress,
    stop: &AtomicBool,
    mut attempt: impl FnMut() -> Result<T, Failure>,
) -> Result<T, Error> {
    let mut retries = Retries::new(policy);
    loop {
        let (cause, retry_after, progressed) = match attempt() {
            Ok(value) => return Ok(value),
            Err(Failure::Fatal(error)) => return Err(error),
            Err(Failure::Transient { cause, retry_after, progressed }) => (cause, retry_after, progressed),
        };
        if progressed {
            retries.progressed();
        }
        let delay = match retries.failed(retry_after) {
            Ok(delay) => delay,
            Err(attempts) => return Err(Error::Unreachable { url: url.to_owned(), attempts, cause }),
        };
        tracing::debug!(url, cause, ?delay, "request failed, trying again");
        progress.event(Event::Retrying { cause: &cause, delay });
        let end = Instant::now() + delay;
        while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            if stop.load(Ordering::Relaxed) {
                return Err(Error::Unreachable { url: url.to_owned(), attempts: retries.failures(), cause });
            }
            thread::sleep(left.min(STOP_POLL));
        }
    }
}

/// The certificate authorities that all our clients trust.
fn root_certs() -> RootCerts {
    let authorities = kaito_net::authorities();
    RootCerts::from(authorities.iter().map(|authority| Certificate::from_der(authority).to_owned()).collect::<Vec<_>>())
}

fn failure_of(error: ureq::Error, url: &str) -> Failure {
    match error {
        ureq::Error::Io(_)
        | ureq::Error::Timeout(_)
        | ureq::Error::HostNotFound
        | ureq::Error::ConnectionFailed
        | ureq::Error::Protocol(_) => Failure::transient(error.to_string()),
        error => Failure::Fatal(Error::Protocol { url: url.to_owned(), what: error.to_string() }),
    }
}

/// A `Location` header, resolved against the URL that answered with it.
fn redirect_target(base: &str, location: &str) -> Option<String> {
    let target = Url::parse(base).ok()?.join(location).ok()?;
    matches!(target.scheme(), "http" | "https").then(|| target.into())
}

/// A header as text.
pub(crate) fn text_header<'a>(response: &'a Response<Body>, name: &str) -> Option<&'a str> {
    response.headers().get(name).and_then(|value| value.to_str().ok())
}

/// Whether an answer carries what was asked for.
pub(crate) fn is_success(status: StatusCode) -> bool {
    status.is_success() || status.is_redirection()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_resolved() {
        let base = "https://hub.test/a/b/resolve/main/file.json?x=1";
        for (location, target) in [
            ("https://cdn.test/x?sig=1", "https://cdn.test/x?sig=1"),
            ("//cdn.test/x", "https://cdn.test/x"),
            ("/api/cache/file.json", "https://hub.test/api/cache/file.json"),
            ("other.json", "https://hub.test/a/b/resolve/main/other.json"),
        ] {
            assert_eq!(redirect_target(base, location).as_deref(), Some(target));
        }
        for location in ["ftp://cdn.test/x", "file:///etc/passwd", "http://", "https://["] {
            assert_eq!(redirect_target(base, location), None, "{location}");
        }
    }
}

//! One request: where credentials may go, which redirects are followed, what a status means, when to try again.

use std::{
    error::Error as StdError,
    io,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use oci_spec::distribution::ErrorResponse;
use tokio::time::{Instant, MissedTickBehavior};
use url::Url;

use super::{
    Error, RetryPolicy,
    address::{resolve, same_origin},
    auth::Auth,
    body::{Content, Meter},
    connect::HttpClient,
};

const USER_AGENT: &str = concat!("kaito/", env!("CARGO_PKG_VERSION"));
const MAX_REDIRECTS: usize = 10;
const MAX_ERROR_BODY: usize = 64 << 10;
const MAX_ERROR_TEXT: usize = 500;
/// How often the one who waits is told how far a transfer is.
const TICK: Duration = Duration::from_millis(100);
/// Attempts to connect to a registry that never answered: its name may be wrong, and somebody waits to be told.
const FIRST_CONNECTS: u32 = 5;
/// The longest wait that a registry may ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// Why an attempt failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// It may work next time.
    Transient {
        cause: String,
        /// The registry asks to wait so long.
        retry_after: Option<Duration>,
    },
    /// Nobody is there, or cannot be found; that may change.
    NotConnected(String),
    /// It will not.
    Fatal(Error),
}

impl Failure {
    pub(super) fn transient(cause: impl Into<String>) -> Self {
        Self::Transient { cause: cause.into(), retry_after: None }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Fatal(error)
    }
}

/// A request that can be made again.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) content: Content,
    /// How long the answer may take once everything is sent, if longer than a stall.
    pub(super) patience: Duration,
}

impl Call {
    pub(super) fn new(method: Method, url: Url) -> Self {
        Self { method, url, headers: HeaderMap::new(), content: Content::Nothing, patience: Duration::ZERO }
    }

    pub(super) fn header(mut self, name: HeaderName, value: &str) -> Self {
        // Only values that come from a registry could be refused here, and those were headers before.
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.append(name, value);
        }
        self
    }

    pub(super) fn content(mut self, content: Content, media_type: &str) -> Self {
        self.content = content;
        self.header(header::CONTENT_TYPE, media_type)
    }
}

/// An answer that is neither a redirect, nor a refusal for want of credentials, nor a passing failure.
#[derive(Debug)]
pub(super) struct Answer {
    /// Who gave it, after redirects.
    pub(super) url: Url,
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    body: Incoming,
    stall: Duration,
}

/// What a registry says when it refuses.
#[derive(Debug, Default)]
pub(super) struct Refusal {
    pub(super) status: u16,
    /// Codes of the specification, and others.
    pub(super) codes: Vec<String>,
    /// For people, after a colon; empty if there is nothing.
    pub(super) message: String,
}

impl Refusal {
    pub(super) fn has(&self, code: &str) -> bool {
        self.codes.iter().any(|found| found == code)
    }
}

impl Answer {
    pub(super) fn text(&self, name: impl header::AsHeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The next piece of the body.
    pub(super) async fn piece(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            let frame = tokio::time::timeout(self.stall, self.body.frame())
                .await
                .map_err(|_| Failure::transient(format!("nothing came for {:?}", self.stall)))?;
            match frame {
                None => return Ok(None),
                Some(Err(error)) => return Err(Failure::transient(chain(&error))),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// The whole body, which must not be larger than `limit`.
    pub(super) async fn bytes(&mut self, limit: usize) -> Result<Bytes, Failure> {
        let mut bytes = BytesMut::new();
        while let Some(piece) = self.piece().await? {
            if bytes.len() + piece.len() > limit {
                let what = format!("answers with more than {limit} bytes");
                return Err(Error::Protocol { url: self.url.to_string(), what }.into());
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes.freeze())
    }

    /// Reads why it was refused.
    pub(super) async fn refusal(&mut self) -> Refusal {
        let body = self.bytes(MAX_ERROR_BODY).await.unwrap_or_default();
        let mut refusal = Refusal { status: self.status.as_u16(), ..Refusal::default() };
        // The codes of the specification are an enum in oci-spec, but registries have codes of their own.
        let errors = match serde_json::from_slice::<ErrorResponse>(&body) {
            Ok(response) => response
                .detail()
                .iter()
                .map(|error| (error.code().to_string(), error.message().clone().unwrap_or_default()))
                .collect(),
            Err(_) => own_errors(&body),
        };
        let mut texts = Vec::new();
        for (code, message) in errors {
            texts.push(if message.is_empty() { code.clone() } else { format!("{code}: {message}") });
            refusal.codes.push(code);
        }
        let text = if texts.is_empty() { String::from_utf8_lossy(&body).trim().to_owned() } else { texts.join("; ") };
        let printable = text.chars().map(|char| if char.is_control() { ' ' } else { char });
        let text: String = printable.take(MAX_ERROR_TEXT).collect();
        refusal.message = if text.is_empty() { text } else { format!(": {text}") };
        refusal
    }
}

/// Errors in the shape of the specification, with codes that it does not know.
fn own_errors(body: &[u8]) -> Vec<(String, String)> {
    let Ok(serde_json::Value::Object(body)) = serde_json::from_slice(body) else { return Vec::new() };
    let errors = body.get("errors").and_then(serde_json::Value::as_array).cloned().unwrap_or_default();
    let text =
        |error: &serde_json::Value, key| error.get(key).and_then(|value| value.as_str()).unwrap_or("").to_owned();
    errors.iter().map(|error| (text(error, "code"), text(error, "message"))).collect()
}

/// An attempt's outcome, and what it sent.
pub(super) struct Attempt {
    pub(super) outcome: Result<Answer, Failure>,
    /// Bytes of the content that were handed to the network, in every part of the attempt.
    pub(super) sent: u64,
    /// Whether all of the content was.
    pub(super) sent_all: bool,
}

/// Speaks with one registry.
#[derive(Debug)]
pub(super) struct Http {
    pub(super) registry: String,
    pub(super) base: Url,
    pub(super) wire: Wire,
    pub(super) auth: Auth,
    pub(super) retry: RetryPolicy,
}

/// Requests, without any notion of a registry.
#[derive(Debug, Clone)]
pub(super) struct Wire {
    pub(super) client: HttpClient,
    pub(super) stall: Duration,
    /// Whether anything was ever answered.
    pub(super) reached: Arc<AtomicBool>,
}

impl Http {
    /// One attempt. `watch` is told now and then how much of the content is sent.
    pub(super) async fn attempt(&self, call: &Call, watch: &(dyn Fn(u64) + Sync)) -> Attempt {
        let mut sent = 0;
        let mut meter = Arc::new(Meter::default());
        let outcome = self.follow(call, watch, &mut meter, &mut sent).await;
        let last = meter.sent();
        Attempt { outcome, sent: sent + last, sent_all: last == call.content.len() }
    }

    async fn follow(
        &self,
        call: &Call,
        watch: &(dyn Fn(u64) + Sync),
        meter: &mut Arc<Meter>,
        sent: &mut u64,
    ) -> Result<Answer, Failure> {
        let mut url = call.url.clone();
        let mut challenged = false;
        for _ in 0..=MAX_REDIRECTS {
            *sent += meter.sent();
            *meter = Arc::default();
            let on_registry = same_origin(&url, &self.base);
            let authorization = if on_registry { self.auth.authorization(&self.wire).await? } else { None };
            let answer = self.wire.send(call, &url, authorization.as_ref(), meter, watch).await?;
            match answer.status.as_u16() {
                401 if on_registry && !challenged => {
                    challenged = true;
                    self.auth.challenged(&self.wire, &answer.headers, authorization).await?;
                }
                401 if on_registry => return Err(self.auth.refused(401, "").into()),
                301..=303 | 307 | 308 if redirects(&call.method, answer.status) => {
                    let Some(location) = answer.text(header::LOCATION) else { return Ok(answer) };
                    url = resolve(&url, location)?;
                }
                _ => return passing(answer).await,
            }
        }
        Err(Error::Protocol { url: call.url.to_string(), what: format!("more than {MAX_REDIRECTS} redirects") }.into())
    }

    pub(super) fn retries(&self) -> Retries {
        Retries { unknown: !self.wire.reached.load(Ordering::Relaxed), ..Retries::new(self.retry) }
    }

    /// Attempts a request without much content until it is answered. `notify` is told of each failure.
    pub(super) async fn call(&self, call: &Call, notify: Notify<'_>) -> Result<Answer, Error> {
        let mut retries = self.retries();
        loop {
            match self.attempt(call, &|_| {}).await.outcome {
                Ok(answer) => return Ok(answer),
                Err(failure) => retries.wait(failure, &call.url, notify).await?,
            }
        }
    }

    /// The error for an answer that refuses `action`.
    pub(super) async fn refuse(&self, answer: &mut Answer, action: &str) -> Error {
        let refusal = answer.refusal().await;
        self.refused(refusal, action)
    }

    pub(super) fn refused(&self, refusal: Refusal, action: &str) -> Error {
        let hint = match refusal.status {
            401 | 403 if refusal.has("DENIED") || refusal.status == 403 => {
                return self.auth.refused(refusal.status, &refusal.message);
            }
            404 if refusal.has("NAME_UNKNOWN") => "; some registries want a repository to be made before it is used",
            413 => "; it, or a proxy before it, limits the size of requests",
            _ => "",
        };
        Error::Refused {
            registry: self.registry.clone(),
            action: action.to_owned(),
            status: refusal.status,
            message: refusal.message,
            hint,
        }
    }
}

/// Uploads are redirected only by answers that keep the method.
fn redirects(method: &Method, status: StatusCode) -> bool {
    matches!(status.as_u16(), 307 | 308) || matches!(*method, Method::GET | Method::HEAD)
}

/// Answers that may be others the next time are failures.
async fn passing(mut answer: Answer) -> Result<Answer, Failure> {
    if !matches!(answer.status.as_u16(), 408 | 425 | 429 | 500 | 502..=504) {
        return Ok(answer);
    }
    let retry_after = answer.text(header::RETRY_AFTER).and_then(|value| retry_after(value, SystemTime::now()));
    let refusal = answer.refusal().await;
    Err(Failure::Transient { cause: format!("status {}{}", refusal.status, refusal.message), retry_after })
}

/// Seconds, or a date.
fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    let delay = match value.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(value).ok()?.duration_since(now).unwrap_or_default(),
    };
    Some(delay.min(MAX_RETRY_AFTER))
}

impl Wire {
    /// Sends a request and waits for the head of its answer. Gives up when neither a byte goes nor an answer comes.
    pub(super) async fn send(
        &self,
        call: &Call,
        url: &Url,
        authorization: Option<&HeaderValue>,
        meter: &Arc<Meter>,
        watch: &(dyn Fn(u64) + Sync),
    ) -> Result<Answer, Failure> {
        let protocol = |what: String| Failure::Fatal(Error::Protocol { url: url.to_string(), what });
        let mut request = Request::builder().method(call.method.clone()).uri(url.as_str());
        if let Some(headers) = request.headers_mut() {
            headers.clone_from(&call.headers);
            headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
            if !matches!(call.method, Method::GET | Method::HEAD) {
                headers.insert(header::CONTENT_LENGTH, HeaderValue::from(call.content.len()));
            }
            if let Some(authorization) = authorization {
                headers.insert(header::AUTHORIZATION, authorization.clone());
            }
        }
        let request = request.body(call.content.body(meter)).map_err(|error| protocol(error.to_string()))?;
        let response = self.watched(request, call, meter, watch).await?;
        let (head, body) = response.into_parts();
        Ok(Answer { url: url.clone(), status: head.status, headers: head.headers, body, stall: self.stall })
    }

    async fn watched(
        &self,
        request: Request<super::connect::Body>,
        call: &Call,
        meter: &Arc<Meter>,
        watch: &(dyn Fn(u64) + Sync),
    ) -> Result<Response<Incoming>, Failure> {
        let mut responding = pin!(self.client.request(request));
        let mut ticks = tokio::time::interval(TICK.min(self.stall / 4).max(Duration::from_millis(1)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut seen, mut since) = (0, Instant::now());
        loop {
            tokio::select! {
                biased;
                response = &mut responding => {
                    let error = match response {
                        Ok(response) => {
                            self.reached.store(true, Ordering::Relaxed);
                            return Ok(response);
                        }
                        Err(error) => error,
                    };
                    return match (meter.take_source_error(), &call.content) {
                        (Some(source), Content::Part { blob, .. }) => {
                            Err(Error::Source { digest: blob.digest().to_string(), source }.into())
                        }
                        _ => Err(tls_problem(&error, &call.url).unwrap_or_else(|| {
                            if error.is_connect() {
                                Failure::NotConnected(chain(&error))
                            } else {
                                Failure::transient(chain(&error))
                            }
                        })),
                    };
                }
                _ = ticks.tick() => {}
            }
            let sent = meter.sent();
            if sent != seen {
                (seen, since) = (sent, Instant::now());
                watch(sent);
            }
            let patience = if sent == call.content.len() { self.stall.max(call.patience) } else { self.stall };
            if since.elapsed() > patience {
                return Err(Failure::transient(format!("no answer, and nothing sent, for {patience:?}")));
            }
        }
    }
}

/// What no repetition helps against: a certificate that is not trusted, or a registry without TLS.
fn tls_problem(error: &(dyn StdError + 'static), url: &Url) -> Option<Failure> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(cause) = error.downcast_ref::<rustls::Error>() {
            let hint = match cause {
                rustls::Error::InvalidCertificate(_) => "name the registry's certificate authority with --ca-file",
                rustls::Error::InvalidMessage(_) => "if the registry speaks no TLS, give --plain-http",
                _ => return None,
            };
            let url = url.origin().ascii_serialization();
            return Some(Failure::Fatal(Error::Tls { url, cause: cause.to_string(), hint }));
        }
        // What such an error wraps is not its source, but what it is.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = wrapped.map(|error| error as &(dyn StdError + 'static)).or_else(|| error.source());
    }
    None
}

/// An error with what caused it, as one line.
fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        source = error.source();
    }
    text
}

/// Told why an attempt failed, and after which time it is made again.
pub(super) type Notify<'a> = &'a (dyn Fn(&str, Duration) + Sync);

/// Counts failures in a row, and waits a growing time after each.
#[derive(Debug)]
pub(super) struct Retries {
    policy: RetryPolicy,
    failed: u32,
    /// Whether nobody ever answered there.
    unknown: bool,
}

impl Retries {
    pub(super) fn new(policy: RetryPolicy) -> Self {
        Self { policy, failed: 0, unknown: false }
    }

    /// Something went well: failures are counted anew.
    pub(super) fn progressed(&mut self) {
        self.failed = 0;
    }

    /// Waits before the next attempt, or says that there is none.
    pub(super) async fn wait(&mut self, failure: Failure, url: &Url, notify: Notify<'_>) -> Result<(), Error> {
        let attempts = self.policy.attempts;
        let (cause, retry_after, attempts) = match failure {
            Failure::Fatal(error) => return Err(error),
            Failure::Transient { cause, retry_after } => (cause, retry_after, attempts),
            Failure::NotConnected(cause) if self.unknown => (cause, None, attempts.min(FIRST_CONNECTS)),
            Failure::NotConnected(cause) => (cause, None, attempts),
        };
        self.failed += 1;
        if self.failed >= attempts {
            // Its parameters may be as good as a password.
            let mut url = url.clone();
            url.set_query(None);
            return Err(Error::Unreachable { url: url.to_string(), attempts: self.failed, cause });
        }
        let doubled = self.policy.first_delay.saturating_mul(1 << (self.failed - 1).min(16));
        let delay = retry_after.unwrap_or(doubled.min(self.policy.max_delay));
        tracing::debug!(host = url.host_str(), cause, ?delay, "request failed, trying again");
        notify(&cause, delay);
        tokio::time::sleep(delay).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_wait_is_seconds_or_a_date() {
        // The date is RFC 9110's own example, 784111777 seconds after the epoch.
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777 - 37);
        for (value, delay) in [
            ("120", Some(120)),
            (" 0 ", Some(0)),
            ("999999", Some(300)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(37)),
            ("Tue, 06 Nov 1990 08:49:37 GMT", Some(0)),
            ("-1", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(retry_after(value, now), delay.map(Duration::from_secs), "{value}");
        }
    }

    #[test]
    fn registries_have_error_codes_of_their_own() {
        let body = br#"{"errors": [{"code": "TAG_INVALID", "message": "immutable"}, {"message": 5}, 7]}"#;
        let none = (String::new(), String::new());
        assert_eq!(own_errors(body), [("TAG_INVALID".to_owned(), "immutable".to_owned()), none.clone(), none]);
        assert_eq!(own_errors(b"<html>"), []);
    }

    proptest! {
        #[test]
        fn any_wait_is_read_or_passed_over(value in "[ -~]{0,40}") {
            let delay = retry_after(&value, SystemTime::UNIX_EPOCH);
            prop_assert!(delay.is_none_or(|delay| delay <= MAX_RETRY_AFTER));
        }

        #[test]
        fn any_error_body_is_read(body in ".{0,200}") {
            let _ = own_errors(body.as_bytes());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn failures_in_a_row_wait_longer_and_end() {
        let policy =
            RetryPolicy { attempts: 6, first_delay: Duration::from_secs(1), max_delay: Duration::from_secs(5) };
        let url = "https://r.test/v2/a?secret=1".parse().unwrap();
        let mut retries = Retries::new(policy);
        let delays = std::sync::Mutex::new(Vec::new());
        let notify = |_: &str, delay: Duration| delays.lock().unwrap().push(delay.as_secs());
        for _ in 0..4 {
            retries.wait(Failure::transient("x"), &url, &notify).await.unwrap();
        }
        let asked = Failure::Transient { cause: "x".to_owned(), retry_after: Some(Duration::from_secs(60)) };
        retries.wait(asked, &url, &notify).await.unwrap();
        let error = retries.wait(Failure::transient("down"), &url, &notify).await.unwrap_err().to_string();
        assert_eq!(error, "https://r.test/v2/a: down; gave up after 6 attempts in a row without progress");
        assert_eq!(*delays.lock().unwrap(), [1, 2, 4, 5, 60]);
        retries.progressed();
        retries.wait(Failure::transient("x"), &url, &notify).await.unwrap();
    }
}

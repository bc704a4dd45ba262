//! Sends one request and reads its answer.

use std::{
    error::Error as StdError,
    io,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use rustls::AlertDescription;
use tokio::time::{Instant, MissedTickBehavior};
use url::Url;

use super::{
    Error,
    body::{Content, Meter},
    connect::HttpClient,
    refusal::Refusal,
    retry::Failure,
    trust,
};

const USER_AGENT: &str = concat!("kaito/", env!("CARGO_PKG_VERSION"));
const MAX_ERROR_BODY: usize = 64 << 10;
/// How often the one who waits is told how far a transfer is.
const TICK: Duration = Duration::from_millis(100);
/// How long it is waited for TLS from a registry that does not speak without.
const TLS_PATIENCE: Duration = Duration::from_secs(5);

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
        let mut refusal = Refusal::read(self.status.as_u16(), &body);
        if let Some(location) = self.text(header::LOCATION).filter(|_| self.status.is_redirection()) {
            // Its parameters may be as good as a password.
            let location = location.split('?').next().unwrap_or_default();
            refusal.message = format!(": it redirects to {location:?}");
        }
        refusal
    }
}

/// Requests, without any notion of a registry.
#[derive(Debug, Clone)]
pub(super) struct Wire {
    pub(super) client: HttpClient,
    pub(super) stall: Duration,
    /// Whether anything was ever answered.
    pub(super) reached: Arc<AtomicBool>,
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
        let response = self.watched(request, call, url, meter, watch).await?;
        let (head, body) = response.into_parts();
        Ok(Answer { url: url.clone(), status: head.status, headers: head.headers, body, stall: self.stall })
    }

    /// Whether somebody speaks TLS there, trusted or not.
    pub(super) async fn speaks_tls(&self, url: &Url) -> bool {
        let request = Request::head(url.as_str()).body(Content::Nothing.body(&Arc::default()));
        let Ok(request) = request else { return false };
        match tokio::time::timeout(TLS_PATIENCE, self.client.request(request)).await {
            Ok(Ok(_)) => true,
            Ok(Err(error)) => match tls_error(&error) {
                Some(cause) => !matches!(cause, rustls::Error::InvalidMessage(_)),
                // Once connected, TLS was agreed on.
                None => !error.is_connect(),
            },
            Err(_) => false,
        }
    }

    async fn watched(
        &self,
        request: Request<super::connect::Body>,
        call: &Call,
        url: &Url,
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
                        _ => Err(tls_problem(&error, url).unwrap_or_else(|| {
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
    let cause = tls_error(error)?;
    let hint = match cause {
        rustls::Error::InvalidCertificate(cause) => trust::hint(cause),
        rustls::Error::InvalidMessage(_) => "if the registry speaks no TLS, give --plain-http",
        rustls::Error::PeerIncompatible(_)
        | rustls::Error::AlertReceived(
            AlertDescription::HandshakeFailure
            | AlertDescription::ProtocolVersion
            | AlertDescription::InsufficientSecurity
            | AlertDescription::CertificateRequired
            | AlertDescription::UnrecognisedName,
        ) => "the registry wants another version of TLS than 1.2 and 1.3, another name, or a certificate of the client",
        _ => return None,
    };
    let url = url.origin().ascii_serialization();
    Some(Failure::Fatal(Error::Tls { url, cause: cause.to_string(), hint }))
}

fn tls_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(cause) = error.downcast_ref::<rustls::Error>() {
            return Some(cause);
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

//! One request: where credentials may go, which redirects are followed, what a status means.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use http::{Method, StatusCode, header};
use kaito_net::{RetryPolicy, is_transient, retry_after, same_origin};
use url::Url;

use super::{
    Error,
    address::resolve,
    auth::Auth,
    body::Meter,
    refusal::Refusal,
    retry::{Failure, Notify, Retries},
    wire::{Answer, Call, Wire},
};

pub(super) const MAX_REDIRECTS: usize = 10;
/// After so long without an answer, a registry that is asked without TLS is tried with TLS.
const SILENCE: Duration = Duration::from_secs(3);
/// Attempts at another host to which the registry redirects, for requests whose answer is not necessary.
const ATTEMPTS_ELSEWHERE: u32 = 3;

/// An attempt's outcome, and what it sent.
pub(super) struct Attempt {
    pub(super) outcome: Result<Answer, Failure>,
    /// Bytes of the content that were handed to the network, in every part of the attempt.
    pub(super) sent: u64,
    /// Whether all of the content was.
    pub(super) sent_all: bool,
    /// Whether it ended at another host, to which the registry had sent.
    pub(super) elsewhere: bool,
}

/// The outcome of asking whether something is there.
pub(super) enum Look {
    /// What the registry answers, or the host that it sends to, if that does not refuse.
    Answer(Box<Answer>),
    /// The registry sends to a host that does not say; here is what it does instead.
    Refused(String),
}

/// Speaks with one registry.
#[derive(Debug)]
pub(super) struct Http {
    pub(super) registry: String,
    pub(super) base: Url,
    pub(super) wire: Wire,
    pub(super) auth: Auth,
    pub(super) retry: RetryPolicy,
    /// Whether the user wants no TLS.
    pub(super) plain_http: bool,
    /// Whether the registry ever answered as one does that speaks without TLS.
    pub(super) spoke_plainly: Arc<AtomicBool>,
}

impl Http {
    /// The same, with tokens that allow more.
    pub(super) async fn asking_also(&self, scope: String) -> Self {
        Self {
            registry: self.registry.clone(),
            base: self.base.clone(),
            wire: self.wire.clone(),
            auth: self.auth.asking_also(scope).await,
            retry: self.retry,
            plain_http: self.plain_http,
            spoke_plainly: self.spoke_plainly.clone(),
        }
    }

    /// One attempt. `watch` is told now and then how much of the content is sent.
    pub(super) async fn attempt(&self, call: &Call, watch: &(dyn Fn(u64) + Sync)) -> Attempt {
        let mut sent = 0;
        let mut meter = Arc::new(Meter::default());
        let mut url = call.url.clone();
        let outcome = self.follow(call, watch, &mut meter, &mut sent, &mut url).await;
        let last = meter.sent();
        let elsewhere = !self.is_here(&url);
        Attempt { outcome, sent: sent + last, sent_all: last == call.content.len(), elsewhere }
    }

    async fn follow(
        &self,
        call: &Call,
        watch: &(dyn Fn(u64) + Sync),
        meter: &mut Arc<Meter>,
        sent: &mut u64,
        url: &mut Url,
    ) -> Result<Answer, Failure> {
        let mut challenged = false;
        for _ in 0..=MAX_REDIRECTS {
            *sent += meter.sent();
            *meter = Arc::default();
            let on_registry = self.is_here(url);
            let authorization = if on_registry { self.auth.authorization(&self.wire).await? } else { None };
            let sending = self.wire.send(call, url, authorization.as_ref(), meter, watch);
            let answer = tokio::select! {
                biased;
                answer = sending => answer,
                error = self.found_to_speak_tls(on_registry) => return Err(error.into()),
            };
            let answer = match answer {
                Ok(answer) => answer,
                Err(failure) if on_registry => return Err(self.unless_it_speaks_tls(failure).await),
                Err(failure) => return Err(failure),
            };
            if on_registry {
                self.check_that_it_speaks_plainly(&answer).await?;
            }
            match answer.status.as_u16() {
                401 if on_registry && !challenged => {
                    challenged = true;
                    self.auth.challenged(&self.wire, &answer.headers, authorization).await?;
                }
                401 if on_registry => return Err(self.auth.refused(401, "").into()),
                _ if redirects(&call.method, answer.status) => {
                    let Some(location) = answer.text(header::LOCATION) else { return Ok(answer) };
                    *url = resolve(url, location)?;
                }
                _ => return passing(answer, "").await,
            }
        }
        Err(Error::Protocol { url: call.url.to_string(), what: format!("more than {MAX_REDIRECTS} redirects") }.into())
    }

    /// Whether an address is of the registry itself.
    pub(super) fn is_here(&self, url: &Url) -> bool {
        same_origin(url, &self.base)
    }

    /// Whether it is asked without TLS and never answered so.
    fn may_speak_tls(&self) -> bool {
        self.base.scheme() == "http" && !self.spoke_plainly.load(Ordering::Relaxed)
    }

    /// Something before a registry with TLS may wait for its client to begin, without a word. Never ends unless that is
    /// found.
    async fn found_to_speak_tls(&self, on_registry: bool) -> Error {
        if on_registry && self.may_speak_tls() {
            tokio::time::sleep(SILENCE.min(self.wire.stall / 4)).await;
            let encrypted = self.encrypted_base();
            if self.wire.speaks_tls(&encrypted).await {
                return self.wants_tls(&encrypted);
            }
        }
        std::future::pending().await
    }

    /// A registry that is asked without TLS and speaks it ends the connection, or answers that it does.
    async fn unless_it_speaks_tls(&self, failure: Failure) -> Failure {
        let unclear = matches!(failure, Failure::Transient { .. }) && self.may_speak_tls();
        let encrypted = self.encrypted_base();
        if unclear && self.wire.speaks_tls(&encrypted).await { self.wants_tls(&encrypted).into() } else { failure }
    }

    async fn check_that_it_speaks_plainly(&self, answer: &Answer) -> Result<(), Error> {
        if !self.may_speak_tls() {
            return Ok(());
        }
        let encrypted = match answer.status.as_u16() {
            // The last is nginx's own, for this.
            400 | 426 | 497 => {
                let encrypted = self.encrypted_base();
                if self.wire.speaks_tls(&encrypted).await { Some(encrypted) } else { None }
            }
            300..=399 => {
                let target = answer.text(header::LOCATION).and_then(|location| answer.url.join(location).ok());
                target.filter(|target| {
                    let same = target.host() == answer.url.host() && target.path() == answer.url.path();
                    target.scheme() == "https" && same
                })
            }
            _ => None,
        };
        if let Some(encrypted) = encrypted {
            return Err(self.wants_tls(&encrypted));
        }
        self.spoke_plainly.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// The registry's address, if the same port speaks TLS.
    fn encrypted_base(&self) -> Url {
        let mut url = self.base.clone();
        let port = url.port_or_known_default();
        // Neither can fail: http becomes https, and an address of either has a host.
        let _ = url.set_scheme("https");
        let _ = url.set_port(port);
        url
    }

    fn wants_tls(&self, encrypted: &Url) -> Error {
        let hint = if self.plain_http {
            "leave --plain-http out"
        } else {
            "registries on this machine are asked without unless --ca-file names their certificate, or its authority's"
        };
        let cause = "the registry speaks TLS, and was asked without".to_owned();
        Error::Tls { url: encrypted.origin().ascii_serialization(), cause, hint }
    }

    pub(super) fn retries(&self) -> Retries {
        Retries::new(self.retry, !self.wire.reached.load(Ordering::Relaxed))
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

    /// Asks by `head` until it is answered and, where that is redirected to a host that refuses it or is not known to the
    /// registry, by `get`: addresses of storage are often signed for one method alone. What such a host says is no
    /// refusal by the registry.
    pub(super) async fn look(&self, head: &Call, get: Option<&Call>, notify: Notify<'_>) -> Result<Look, Error> {
        let mut retries = self.retries();
        let mut elsewhere_retries = self.retries().at_most(ATTEMPTS_ELSEWHERE);
        let mut call = head;
        loop {
            let Attempt { outcome, elsewhere, .. } = self.attempt(call, &|_| {}).await;
            let said = match outcome {
                Ok(answer) if answer.status.is_success() => return Ok(Look::Answer(Box::new(answer))),
                Ok(answer) if elsewhere || answer.status.is_redirection() => {
                    format!("status {} from {}", answer.status, host(&answer.url))
                }
                Ok(answer) if call.method == Method::HEAD && matches!(answer.status.as_u16(), 405 | 501) => {
                    format!("status {} for HEAD", answer.status)
                }
                Ok(answer) => return Ok(Look::Answer(Box::new(answer))),
                Err(failure) if !elsewhere => {
                    retries.wait(failure, &call.url, notify).await?;
                    continue;
                }
                Err(failure) => {
                    let said = failure.cause();
                    if call.method == Method::GET && elsewhere_retries.wait(failure, &call.url, notify).await.is_ok() {
                        continue;
                    }
                    said
                }
            };
            tracing::debug!(url = %call.url, method = %call.method, said, "no answer by this method");
            match get.filter(|_| call.method == Method::HEAD) {
                Some(get) => call = get,
                None => return Ok(Look::Refused(said)),
            }
        }
    }

    /// The error for an answer that refuses `action`.
    pub(super) async fn refuse(&self, answer: &mut Answer, action: &str) -> Error {
        let refusal = answer.refusal().await;
        if self.is_here(&answer.url) {
            return self.refused(refusal, action);
        }
        // Not the registry refuses; other credentials would not help.
        Error::Refused {
            registry: format!("{}, to which {} redirects,", host(&answer.url), self.registry),
            action: action.to_owned(),
            status: refusal.status,
            message: refusal.message,
            hint: "",
        }
    }

    pub(super) fn refused(&self, refusal: Refusal, action: &str) -> Error {
        let hint = match refusal.status {
            _ if refusal.is_over_quota() => "; its place for images is used up: delete some, or have the quota raised",
            _ if refusal.is_invalid_manifest() => "; it does not take a manifest of this kind, under whatever tag",
            _ if refusal.lacks_blob() => "; it lost a blob that it had confirmed",
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

/// The host of an address, and its port where that is not the usual one.
fn host(url: &Url) -> &str {
    &url[url::Position::BeforeHost..url::Position::AfterPort]
}

/// Uploads are redirected only by answers that keep the method.
pub(super) fn redirects(method: &Method, status: StatusCode) -> bool {
    match status.as_u16() {
        307 | 308 => true,
        301..=303 => matches!(*method, Method::GET | Method::HEAD),
        _ => false,
    }
}

/// Answers that may be others the next time are failures. `from` says whose they are.
pub(super) async fn passing(mut answer: Answer, from: &str) -> Result<Answer, Failure> {
    if !is_transient(answer.status.as_u16()) {
        return Ok(answer);
    }
    let retry_after = answer.text(header::RETRY_AFTER).and_then(|value| retry_after(value, SystemTime::now()));
    let refusal = answer.refusal().await;
    let cause = format!("status {}{from}{}", refusal.status, refusal.message);
    Err(Failure::Transient { cause, retry_after, answered: true })
}

//! Authentication: anonymous, by user and password, or by tokens, which expire and are fetched again.

use std::{sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header};
use kaito_net::{RetryPolicy, same_origin};
use serde::Deserialize;
use tokio::{sync::Mutex, time::Instant};
use url::{Url, form_urlencoded};

use super::{
    Error,
    address::resolve,
    body::Content,
    challenge::Challenge,
    credentials::{Credentials, Found},
    http::{MAX_REDIRECTS, passing, redirects},
    retry::{Failure, Retries},
    wire::{Answer, Call, Wire},
};

const MAX_TOKEN_BODY: usize = 1 << 20;
/// How long a token is valid if its service does not say, by the token specification.
const DEFAULT_EXPIRY: Duration = Duration::from_secs(60);
const MAX_EXPIRY: Duration = Duration::from_secs(24 * 60 * 60);
/// The share of its validity for which a token is used; the rest is a margin for the way to the registry.
const USED_LIFE: f32 = 0.8;

/// Attempts to get a token that allows more than is necessary.
const ATTEMPTS_FOR_MORE: u32 = 3;

/// Authenticates requests to a registry.
#[derive(Debug)]
pub(super) struct Auth {
    registry: String,
    encrypted: bool,
    found: Option<Found>,
    retry: RetryPolicy,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// What tokens should allow.
    scopes: Vec<String>,
    scheme: Option<Scheme>,
}

#[derive(Debug, Clone)]
enum Scheme {
    Fixed(HeaderValue),
    Bearer { realm: Url, service: Option<String>, token: Option<Token> },
}

#[derive(Debug, Clone)]
struct Token {
    header: HeaderValue,
    until: Instant,
}

#[derive(Deserialize)]
#[cfg_attr(test, derive(Debug))]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    /// Seconds, as a number or, from some services, as text.
    expires_in: Option<serde_json::Value>,
}

impl TokenAnswer {
    fn life(&self) -> Duration {
        let seconds = self.expires_in.as_ref().and_then(|value| match value {
            serde_json::Value::String(text) => text.trim().parse().ok(),
            value => value.as_f64(),
        });
        let life = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        life.filter(|life| !life.is_zero()).unwrap_or(DEFAULT_EXPIRY).min(MAX_EXPIRY).mul_f32(USED_LIFE)
    }
}

impl Auth {
    pub(super) fn new(
        registry: &str,
        encrypted: bool,
        found: Option<Found>,
        scope: String,
        retry: RetryPolicy,
    ) -> Self {
        let scheme = match &found {
            Some(Found { credentials: Credentials::RegistryToken(token), .. }) => {
                secret_header(&format!("Bearer {}", token.reveal())).map(Scheme::Fixed)
            }
            _ => None,
        };
        let state = Mutex::new(State { scopes: vec![scope], scheme });
        Self { registry: registry.to_owned(), encrypted, found, retry, state }
    }

    /// The same, asking for more. Tokens for more are its own: a service that denies them still gives the others.
    pub(super) async fn asking_also(&self, scope: String) -> Self {
        let state = self.state.lock().await;
        let mut scopes = state.scopes.clone();
        scopes.push(scope);
        let mut scheme = state.scheme.clone();
        if let Some(Scheme::Bearer { token, .. }) = &mut scheme {
            *token = None;
        }
        Self {
            registry: self.registry.clone(),
            encrypted: self.encrypted,
            found: self.found.clone(),
            retry: RetryPolicy { attempts: self.retry.attempts.min(ATTEMPTS_FOR_MORE), ..self.retry },
            state: Mutex::new(State { scopes, scheme }),
        }
    }

    /// For the next request; a token that is about to end is fetched again before.
    pub(super) async fn authorization(&self, wire: &Wire) -> Result<Option<HeaderValue>, Error> {
        self.current(&mut *self.state.lock().await, wire).await
    }

    async fn current(&self, state: &mut State, wire: &Wire) -> Result<Option<HeaderValue>, Error> {
        match &mut state.scheme {
            None => Ok(None),
            Some(Scheme::Fixed(header)) => Ok(Some(header.clone())),
            Some(Scheme::Bearer { realm, service, token }) => {
                if let Some(token) = token.as_ref().filter(|token| Instant::now() < token.until) {
                    return Ok(Some(token.header.clone()));
                }
                let fresh = self.fetch(wire, realm, service.as_deref(), &state.scopes).await?;
                Ok(Some(token.insert(fresh).header.clone()))
            }
        }
    }

    /// The registry did not accept `used`: does what it asks for.
    pub(super) async fn challenged(
        &self,
        wire: &Wire,
        headers: &HeaderMap,
        used: Option<HeaderValue>,
    ) -> Result<(), Error> {
        // Held while the token is fetched, so that it is fetched once for all who wait.
        let mut state = self.state.lock().await;
        let known = match &state.scheme {
            None => None,
            Some(Scheme::Fixed(header)) => Some(header),
            Some(Scheme::Bearer { token, .. }) => token.as_ref().map(|token| &token.header),
        };
        if known.is_some() && known != used.as_ref() {
            return Ok(());
        }
        let offered = headers.get_all(header::WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        match Challenge::best(offered) {
            Some(Challenge::Basic) => {
                let Some(Credentials::Password { user, password }) =
                    self.found.as_ref().map(|found| &found.credentials)
                else {
                    return Err(self.refused(401, ""));
                };
                let header = basic(user, password.reveal());
                if header.is_none() || header == used {
                    return Err(self.refused(401, ""));
                }
                state.scheme = header.map(Scheme::Fixed);
            }
            Some(Challenge::Bearer { realm, service, scope }) => {
                if matches!(state.scheme, Some(Scheme::Fixed(_))) {
                    return Err(self.refused(401, ""));
                }
                let realm = self.realm(&realm)?;
                // A registry may name what it wants in a way of its own.
                let wanted = scope.filter(|scope| !state.scopes.iter().any(|known| covers(known, scope)));
                state.scopes.extend(wanted);
                state.scheme = Some(Scheme::Bearer { realm, service, token: None });
                self.current(&mut state, wire).await?;
            }
            None => return Err(self.refused(401, "")),
        }
        Ok(())
    }

    /// Where tokens are given out. Credentials go there, so it must be as private as the registry itself.
    fn realm(&self, realm: &str) -> Result<Url, Error> {
        let error = |what: String| Error::Protocol { url: self.registry.clone(), what };
        let url = Url::parse(realm).map_err(|cause| error(format!("gives tokens at {realm:?}: {cause}")))?;
        let private = url.scheme() == "https" || url.scheme() == "http" && !self.encrypted;
        if private { Ok(url) } else { Err(error(format!("gives tokens at {url}, which is not encrypted"))) }
    }

    async fn fetch(&self, wire: &Wire, realm: &Url, service: Option<&str>, scopes: &[String]) -> Result<Token, Error> {
        let (call, authorization) = self.token_call(realm, service, scopes);
        let mut retries = Retries::new(self.retry, false);
        loop {
            match self.fetch_once(wire, &call, authorization.as_ref()).await {
                Ok(token) => return Ok(token),
                Err(failure) => {
                    retries.wait(failure, realm, &|cause, _| tracing::warn!(%realm, cause, "no token yet")).await?;
                }
            }
        }
    }

    /// The token specification's GET, or, for an identity token, OAuth 2's exchange of a refresh token.
    fn token_call(&self, realm: &Url, service: Option<&str>, scopes: &[String]) -> (Call, Option<HeaderValue>) {
        let service = service.map(|service| ("service", service));
        let scopes_of = || scopes.iter().map(|scope| ("scope", scope.as_str()));
        match self.found.as_ref().map(|found| &found.credentials) {
            Some(Credentials::IdentityToken(token)) => {
                let form = form_urlencoded::Serializer::new(String::new())
                    .append_pair("grant_type", "refresh_token")
                    .append_pair("client_id", "kaito")
                    .append_pair("refresh_token", token.reveal())
                    .append_pair("scope", &scopes.join(" "))
                    .extend_pairs(service)
                    .finish();
                let call = Call::new(Method::POST, realm.clone())
                    .content(Content::Bytes(Bytes::from(form)), "application/x-www-form-urlencoded");
                (call, None)
            }
            credentials => {
                let mut url = realm.clone();
                url.query_pairs_mut().extend_pairs(service).extend_pairs(scopes_of());
                let mut authorization = None;
                if let Some(Credentials::Password { user, password }) = credentials {
                    url.query_pairs_mut().append_pair("account", user);
                    authorization = basic(user, password.reveal());
                }
                (Call::new(Method::GET, url), authorization)
            }
        }
    }

    async fn fetch_once(
        &self,
        wire: &Wire,
        call: &Call,
        authorization: Option<&HeaderValue>,
    ) -> Result<Token, Failure> {
        let asked = Instant::now();
        let mut answer = follow(wire, call, authorization).await?;
        let service = || call.url.host_str().unwrap_or_default().to_owned();
        let protocol = |what: &str| {
            let what = format!("the token service of {} {what}", self.registry);
            Failure::Fatal(Error::Protocol { url: service(), what })
        };
        match answer.status.as_u16() {
            200..=299 => {}
            status @ (400 | 401 | 403) => {
                let refusal = answer.refusal().await;
                return Err(self.refused(status, &refusal.message).into());
            }
            status => return Err(protocol(&format!("answers with status {status}"))),
        }
        let body = answer.bytes(MAX_TOKEN_BODY).await?;
        // What can't be read is not quoted: it may hold a token.
        let answer: TokenAnswer = serde_json::from_slice(&body).map_err(|_| protocol("gives something else"))?;
        let life = answer.life();
        let given = |token: Option<String>| token.filter(|token| !token.is_empty());
        let token = given(answer.token).or(given(answer.access_token));
        let header = token.and_then(|token| secret_header(&format!("Bearer {token}")));
        let header = header.ok_or_else(|| protocol("gives an empty token"))?;
        Ok(Token { header, until: asked.checked_add(life).unwrap_or(asked) })
    }

    /// The error for a registry that refuses the credentials, or that wants some when there are none.
    pub(super) fn refused(&self, status: u16, message: &str) -> Error {
        let registry = &self.registry;
        let login = format!("`docker login {registry}`, or give --username and --password");
        let cause = match &self.found {
            None => format!("wants credentials ({status}{message}) and none are known; run {login}"),
            Some(Found { credentials: Credentials::Password { user, .. }, from }) if status == 401 => {
                format!("refuses user {user:?} with the password from {from} ({status}{message}); run {login}")
            }
            Some(Found { credentials: Credentials::Password { user, .. }, from }) => {
                format!("does not allow this to user {user:?}, known from {from} ({status}{message})")
            }
            Some(Found { from, .. }) => {
                format!("refuses the token from {from} ({status}{message}), which may have ended; run {login}")
            }
        };
        Error::Unauthorized { registry: registry.clone(), cause }
    }

    /// As whom the registry is seen, for messages.
    pub(super) fn viewer(&self) -> String {
        match &self.found {
            None => "to anybody".to_owned(),
            Some(Found { credentials: Credentials::Password { user, .. }, .. }) => format!("to user {user:?}"),
            Some(Found { from, .. }) => format!("to the holder of the token from {from}"),
        }
    }
}

/// Asks the token service, and follows it where it redirects to; the password does not go to another host, nor does the content
/// of the request, which is one.
async fn follow(wire: &Wire, call: &Call, authorization: Option<&HeaderValue>) -> Result<Answer, Failure> {
    let mut url = call.url.clone();
    for _ in 0..=MAX_REDIRECTS {
        let at_home = same_origin(&url, &call.url);
        let shown = authorization.filter(|_| at_home);
        let answer = wire.send(call, &url, shown, &Arc::default(), &|_| {}).await?;
        if !redirects(&call.method, answer.status) {
            return passing(answer, " from the token service").await;
        }
        let Some(location) = answer.text(header::LOCATION) else { return Ok(answer) };
        url = resolve(&answer.url, location)?;
        if call.method == Method::POST && !same_origin(&url, &call.url) {
            let host = url.host_str().unwrap_or_default();
            let what = format!("the token service redirects to {host}, which is not shown the identity token");
            return Err(Error::Protocol { url: call.url.to_string(), what }.into());
        }
    }
    let what = format!("more than {MAX_REDIRECTS} redirects by the token service");
    Err(Error::Protocol { url: call.url.to_string(), what }.into())
}

/// Whether what is asked for already covers what the registry names: the same repository, and no action more.
fn covers(known: &str, wanted: &str) -> bool {
    match (known.rsplit_once(':'), wanted.rsplit_once(':')) {
        (Some((place, allowed)), Some((wanted_place, actions))) => {
            let allowed: Vec<_> = allowed.split(',').collect();
            place == wanted_place && actions.split(',').all(|action| allowed.contains(&action))
        }
        _ => known == wanted,
    }
}

fn basic(user: &str, password: &str) -> Option<HeaderValue> {
    secret_header(&format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
}

fn secret_header(value: &str) -> Option<HeaderValue> {
    let mut header = HeaderValue::from_str(value).ok()?;
    header.set_sensitive(true);
    Some(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_lasts_as_long_as_its_service_says() {
        for (answer, seconds) in [
            (r#"{"expires_in": 300}"#, 300.0),
            (r#"{"expires_in": "300"}"#, 300.0),
            (r#"{"expires_in": 1e9}"#, 24.0 * 3600.0),
            (r#"{"expires_in": null, "token": null, "access_token": "a"}"#, 60.0),
            (r#"{"expires_in": -1}"#, 60.0),
            (r#"{"expires_in": "soon"}"#, 60.0),
            (r#"{"expires_in": [1]}"#, 60.0),
            ("{}", 60.0),
        ] {
            let answer: TokenAnswer = serde_json::from_str(answer).unwrap_or_else(|error| panic!("{answer}: {error}"));
            assert_eq!(answer.life(), Duration::from_secs_f64(seconds).mul_f32(USED_LIFE), "{answer:?}");
        }
    }

    #[test]
    fn a_scope_covers_fewer_actions_on_the_same_repository() {
        for (known, wanted, covered) in [
            ("repository:a:pull,push", "repository:a:pull", true),
            ("repository:a:pull,push", "repository:a:push,pull", true),
            ("repository:a:pull", "repository:a:pull,push", false),
            ("repository:a:pull,push", "repository:b:pull", false),
            ("repository:a:pull", "registry", false),
            ("registry", "registry", true),
        ] {
            assert_eq!(covers(known, wanted), covered, "{known} {wanted}");
        }
    }
}

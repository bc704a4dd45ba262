//! Connections to a server.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;

use crate::{Error, Failure, brief, message};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Longest body that is not a stream of tokens.
const MAX_BODY: usize = 4 << 20;

/// A client that keeps connections open, so that a new one is made only when more requests run at the same time.
#[derive(Debug, Clone)]
pub struct Http {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    authorization: Option<header::HeaderValue>,
}

impl Http {
    /// A client that shows `api_key` as `Authorization: Bearer KEY`.
    ///
    /// # Errors
    /// A key that no header can carry, and a system without TLS.
    pub fn new(api_key: Option<&str>) -> Result<Self, Error> {
        let authorization = match api_key {
            None => None,
            Some(key) => {
                let mut value = header::HeaderValue::from_str(&format!("Bearer {key}")).map_err(|_| Error::Key)?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(CONNECT_TIMEOUT));
        // So that a machine that vanished is missed.
        http.set_keepalive(Some(KEEP_ALIVE));
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(tls()?).https_or_http().enable_http1().wrap_connector(http);
        Ok(Self { client: Client::builder(TokioExecutor::new()).build(connector), authorization })
    }

    /// Sends a request, a POST with `body` and a GET without, and waits for the head of its answer.
    ///
    /// # Errors
    /// No connection, one that breaks, and every status but success.
    pub async fn send(&self, url: &str, body: Option<&Value>) -> Result<Response<Incoming>, Failure> {
        let mut request = Request::builder().uri(url).method(if body.is_some() { Method::POST } else { Method::GET });
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let bytes = body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()));
        let request = request.body(Full::new(bytes)).map_err(|error| Failure::Connect(error.to_string()))?;
        let response = self.client.request(request).await.map_err(|error| {
            let cause = root_cause(&error);
            if error.is_connect() { Failure::Connect(cause) } else { Failure::Broken(cause) }
        })?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = text(response).await.unwrap_or_default();
        let message = match serde_json::from_str(&text) {
            Ok(body) => message(&body),
            Err(_) if text.trim().is_empty() => status.canonical_reason().unwrap_or("no reason given").to_owned(),
            Err(_) => brief(&text),
        };
        Err(Failure::Status { status: status.as_u16(), message })
    }

    /// A small resource.
    ///
    /// # Errors
    /// As for [`Self::send`].
    pub async fn get(&self, url: &str) -> Result<String, Failure> {
        Self::text(self.send(url, None).await?).await
    }

    /// The body of an answer that is no stream, of 4 MiB at most.
    ///
    /// # Errors
    /// [`Failure::Broken`] where it does not come whole.
    pub async fn text(response: Response<Incoming>) -> Result<String, Failure> {
        text(response).await
    }

    /// The body of an answer that is no stream, of `most` bytes at most.
    ///
    /// # Errors
    /// As for [`Self::text`].
    pub async fn text_within(response: Response<Incoming>, most: usize) -> Result<String, Failure> {
        text_within(response, most).await
    }
}

async fn text(response: Response<Incoming>) -> Result<String, Failure> {
    text_within(response, MAX_BODY).await
}

async fn text_within(response: Response<Incoming>, most: usize) -> Result<String, Failure> {
    let body = Limited::new(response.into_body(), most);
    let bytes = body.collect().await.map_err(|error| Failure::Broken(error.to_string()))?.to_bytes();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The innermost cause of an error, which says what happened; the outer ones only say where.
pub(crate) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// TLS that trusts whom all our clients trust.
fn tls() -> Result<rustls::ClientConfig, Error> {
    Ok(kaito_net::tls_config()?.0.with_root_certificates(kaito_net::root_store()).with_no_client_auth())
}

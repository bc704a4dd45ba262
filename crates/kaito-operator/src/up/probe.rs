//! Probes a server, as a kubelet does.

use std::{net::SocketAddr, time::Duration};

use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::{net::TcpStream, time};

const TIMEOUT: Duration = Duration::from_secs(5);
const MAX_BODY: usize = 64 << 10;

/// What a server says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It is ready.
    Ready,
    /// It answers that it is not ready, with the cause if it names one.
    NotReady(String),
    /// Nothing answers.
    Silent(String),
}

/// Sends `GET path`; a status of 200 to 399 is readiness. Without a path, an open port is enough.
pub async fn probe(address: SocketAddr, path: Option<&str>) -> Health {
    let answer = async {
        let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
        match path {
            Some(path) => get(stream, address, path).await,
            None => Ok(Health::Ready),
        }
    };
    match time::timeout(TIMEOUT, answer).await {
        Ok(Ok(health)) => health,
        Ok(Err(error)) => Health::Silent(error),
        Err(_) => Health::Silent(format!("no answer within {} s", TIMEOUT.as_secs())),
    }
}

async fn get(stream: TcpStream, address: SocketAddr, path: &str) -> Result<Health, String> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let request = Request::get(path)
        .header(header::HOST, address.to_string())
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = response.status();
        if status.is_success() || status.is_redirection() {
            return Ok(Health::Ready);
        }
        let body = Limited::new(response.into_body(), MAX_BODY).collect().await;
        let body = body.map(|body| body.to_bytes()).unwrap_or_default();
        Ok(Health::NotReady(detail(&body).unwrap_or_else(|| format!("GET {path} is answered with {status}"))))
    };
    tokio::select! {
        answer = answer => answer,
        Err(error) = connection => Err(error.to_string()),
    }
}

/// The sentence in an error of kaito's server.
fn detail(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Error {
        detail: String,
    }
    serde_json::from_slice::<Error>(body).ok().map(|error| error.detail)
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    async fn answered_with(response: &'static str) -> Health {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut connection, _) = listener.accept().await.unwrap();
            let mut request = String::new();
            while !request.ends_with("\r\n\r\n") {
                request.push(char::from(connection.read_u8().await.unwrap()));
            }
            connection.write_all(response.as_bytes()).await.unwrap();
            request
        });
        let health = probe(address, Some("/healthz")).await;
        assert!(server.await.unwrap().starts_with("GET /healthz HTTP/1.1\r\n"));
        health
    }

    #[tokio::test]
    async fn answers_are_told_apart() {
        for (response, health) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n{\"status\":\"Healthy\"}", Health::Ready),
            ("HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 0\r\n\r\n", Health::Ready),
            (
                "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 30\r\n\r\n{\"detail\":\"loading: 45 percent\"}",
                Health::NotReady("GET /healthz is answered with 503 Service Unavailable".to_owned()),
            ),
            (
                "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 32\r\n\r\n{\"detail\":\"loading: 45 percent\"} ",
                Health::NotReady("loading: 45 percent".to_owned()),
            ),
            (
                "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
                Health::NotReady("GET /healthz is answered with 404 Not Found".to_owned()),
            ),
        ] {
            assert_eq!(answered_with(response).await, health, "{response}");
        }
        assert!(matches!(answered_with("SSH-2.0-x\r\n\r\n").await, Health::Silent(_)));
        assert!(matches!(answered_with("").await, Health::Silent(_)));
    }

    #[tokio::test]
    async fn a_closed_port_is_silent_and_an_open_one_is_enough_without_a_path() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(probe(address, None).await, Health::Ready);
        drop(listener);
        assert!(matches!(probe(address, None).await, Health::Silent(_)));
    }
}

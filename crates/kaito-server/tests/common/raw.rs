//! HTTP by hand, for what no client sends.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use super::TestServer;

/// Longer than any answer takes; only a fault waits for it.
const PATIENCE: Duration = Duration::from_secs(60);

/// What came on a connection until the server closed it.
#[derive(Debug, Clone)]
pub struct Answer {
    pub text: String,
    /// Whether the connection was reset rather than closed.
    pub reset: bool,
}

impl Answer {
    /// The status of the first answer; 0 if there is none.
    pub fn status(&self) -> u16 {
        self.text.get(9..12).and_then(|digits| digits.parse().ok()).unwrap_or(0)
    }

    /// What follows the first head.
    pub fn body(&self) -> &str {
        self.text.split_once("\r\n\r\n").map_or("", |(_, body)| body)
    }
}

impl TestServer {
    pub fn address(&self) -> SocketAddr {
        self.url.strip_prefix("http://").unwrap().parse().unwrap()
    }
}

pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Everything until the server closes.
pub fn read_all(stream: &mut TcpStream) -> Answer {
    let (mut bytes, mut piece) = (Vec::new(), [0; 16 << 10]);
    let reset = loop {
        match stream.read(&mut piece) {
            Ok(0) => break false,
            Ok(read) => bytes.extend_from_slice(&piece[..read]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => break true,
            Err(error) => panic!("{error} after {:?}", String::from_utf8_lossy(&bytes)),
        }
    };
    Answer { text: String::from_utf8_lossy(&bytes).into_owned(), reset }
}

/// Sends `request`, all of it before the first byte of the answer is read, as simple clients do.
pub async fn ask(address: SocketAddr, request: impl Into<Vec<u8>>) -> Answer {
    let request = request.into();
    blocking(move || {
        let mut stream = connect(address);
        stream.write_all(&request).expect("the server takes the whole request");
        // Servers close connections that are asked for nothing more.
        stream.shutdown(Shutdown::Write).ok();
        read_all(&mut stream)
    })
    .await
}

/// Sends `request` and leaves the connection open until the server closes it.
pub async fn ask_and_wait(address: SocketAddr, request: impl Into<Vec<u8>>) -> Answer {
    let request = request.into();
    blocking(move || {
        let mut stream = connect(address);
        stream.write_all(&request).expect("the server takes the whole request");
        read_all(&mut stream)
    })
    .await
}

/// A `POST` of JSON with the lines of a head in `more`.
pub fn post(path: &str, more: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{more}\r\n");
    [head.as_bytes(), body].concat()
}

/// Runs something that blocks.
pub async fn blocking<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(run).await.unwrap()
}

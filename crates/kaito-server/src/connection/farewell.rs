//! A lingering close: ending a connection so that the client receives the last answer.
//!
//! A socket that is closed while bytes of the client are unread is reset, and the reset may overtake the answer. So the server
//! shuts its side down for writing, and reads on for a while, until the client has the answer and closes.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

/// How many bytes are read and thrown away, for how long altogether, and how long nothing may come meanwhile.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    pub(super) bytes: u64,
    pub(super) time: Duration,
    pub(super) silence: Duration,
}

/// While the server serves.
pub(super) const USUAL: Patience =
    Patience { bytes: 64 << 20, time: Duration::from_secs(10), silence: Duration::from_secs(2) };
/// While the server shuts down.
pub(super) const SHORT: Patience =
    Patience { bytes: 64 << 20, time: Duration::from_millis(500), silence: Duration::from_millis(200) };
/// Bytes that are read at once.
const PIECE: usize = 16 << 10;

/// The answer to a client that has sent half the head of a request when the server shuts down.
const SHUTTING_DOWN: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 2\r\n\
                             connection: close\r\ncontent-length: 41\r\n\r\n{\"detail\":\"The server is shutting down.\"}";

/// Answers half a head.
pub(super) async fn refuse(stream: &mut TcpStream) {
    // A client that does not take it within that time goes without.
    let _ = timeout(SHORT.silence, stream.write_all(SHUTTING_DOWN.as_bytes())).await;
}

/// Says that nothing more will be written, and waits until the client closes, within the bounds of `patience`.
pub(super) async fn linger(mut stream: TcpStream, patience: Patience) {
    if stream.shutdown().await.is_err() {
        return;
    }
    let end = Instant::now() + patience.time;
    let mut piece = vec![0; PIECE];
    let mut left = patience.bytes;
    loop {
        let silent = end.min(Instant::now() + patience.silence);
        match timeout_at(silent, stream.read(&mut piece)).await {
            Ok(Ok(bytes)) if bytes > 0 && bytes as u64 <= left => left -= bytes as u64,
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_answer_has_the_length_that_it_announces() {
        let (head, body) = SHUTTING_DOWN.split_once("\r\n\r\n").unwrap();
        assert!(head.ends_with(&format!("content-length: {}", body.len())), "{}", body.len());
    }
}

//! A lingering close: ending a connection so that the client receives the last answer.
//!
//! A socket that is closed while bytes of the client are unread is reset, and the reset may overtake the answer. So the server
//! shuts its side down for writing, and reads on for a while, until the client has the answer and closes.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
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

/// The answer to a request that comes without TLS where the server speaks it.
const TLS_ONLY: &str = "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n\
                        content-length: 65\r\n\r\n{\"detail\":\"This port speaks HTTPS; use https:// in the address.\"}";

/// Answers half a head.
pub(super) async fn refuse(stream: &mut (impl AsyncWrite + Unpin)) {
    say(stream, SHUTTING_DOWN).await;
}

/// Answers a client that speaks no TLS where the server does.
pub(super) async fn refuse_plain(stream: &mut (impl AsyncWrite + Unpin)) {
    say(stream, TLS_ONLY).await;
}

async fn say(stream: &mut (impl AsyncWrite + Unpin), answer: &str) {
    let said = async {
        stream.write_all(answer.as_bytes()).await?;
        stream.flush().await
    };
    // A client that does not take it within that time goes without.
    let _ = timeout(SHORT.silence, said).await;
}

/// Says that nothing more will be written, and waits until the client closes, within the bounds of `patience`.
pub(super) async fn linger(mut stream: impl AsyncRead + AsyncWrite + Unpin, patience: Patience) {
    // With TLS there is something to write, for which a client may leave no room.
    if !matches!(timeout(patience.silence, stream.shutdown()).await, Ok(Ok(()))) {
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
        for answer in [SHUTTING_DOWN, TLS_ONLY] {
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert!(head.ends_with(&format!("content-length: {}", body.len())), "{}", body.len());
        }
    }
}

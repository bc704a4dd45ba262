//! A connection's socket, whose writes fail when the client reads nothing for too long.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

/// How often a write that waits for its client is checked.
const LOOK: Duration = Duration::from_millis(250);
/// Bytes that the system may hold unsent (TCP_NOTSENT_LOWAT). With its default, writes to a client that reads nothing would
/// block only after megabytes.
#[cfg(target_os = "linux")]
const UNSENT: u32 = 16 << 10;
/// TCP keep-alive: when a client has been silent for so long, the system probes it, so often, and so many times.
const PROBE_AFTER: Duration = Duration::from_secs(30);
const PROBE_EVERY: Duration = Duration::from_secs(10);
#[cfg(not(windows))]
const PROBES: u32 = 3;

/// A socket whose writes fail once the client has read nothing for `limit`.
pub(super) struct Watched {
    stream: TcpStream,
    limit: Duration,
    /// Whether a client that has read nothing for this long is given up before the limit.
    given_up: Box<dyn Fn(Duration) -> bool + Send + Sync>,
    blocked: Option<Blocked>,
}

struct Blocked {
    since: Instant,
    look: Pin<Box<Sleep>>,
}

impl Watched {
    pub(super) fn new(
        stream: TcpStream,
        limit: Duration,
        given_up: impl Fn(Duration) -> bool + Send + Sync + 'static,
    ) -> Self {
        if let Err(error) = configure(&stream, limit) {
            tracing::debug!(%error, "cannot set an option of a connection");
        }
        Self { stream, limit, given_up: Box::new(given_up), blocked: None }
    }

    /// The first byte that the client sends, which stays to be read; `None` if it sends none.
    pub(super) async fn first_byte(&self) -> io::Result<Option<u8>> {
        let mut first = [0];
        Ok((self.stream.peek(&mut first).await? > 0).then_some(first[0]))
    }

    /// Passes on the result of a write, or an error if it has waited for the client for too long.
    fn judge(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.blocked = None;
            return written;
        }
        let step = (self.limit / 4).clamp(Duration::from_millis(10), LOOK);
        let blocked = self
            .blocked
            .get_or_insert_with(|| Blocked { since: Instant::now(), look: Box::pin(tokio::time::sleep(step)) });
        while blocked.look.as_mut().poll(cx).is_ready() {
            let lasted = blocked.since.elapsed();
            if lasted >= self.limit || (self.given_up)(lasted) {
                let said = format!("the client took nothing for {lasted:.1?}");
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, said)));
            }
            blocked.look.as_mut().reset(Instant::now() + step);
        }
        Poll::Pending
    }
}

/// Sends tokens at once (TCP_NODELAY), and finds clients that are gone.
fn configure(stream: &TcpStream, limit: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new().with_time(PROBE_AFTER).with_interval(PROBE_EVERY);
    #[cfg(not(windows))]
    let keepalive = keepalive.with_retries(PROBES);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    {
        socket.set_tcp_notsent_lowat(UNSENT)?;
        // Ends connections whose client acknowledges nothing, also before so much is unsent that writes block. The system
        // counts milliseconds in an i32.
        socket.set_tcp_user_timeout(Some(limit.min(Duration::from_millis(i32::MAX as u64))))?;
    }
    #[cfg(not(target_os = "linux"))]
    let _ = limit;
    Ok(())
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.judge(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, parts);
        self.judge(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    /// What comes of writing to a client that reads nothing.
    async fn write_for_ever(limit: Duration, given_up: impl Fn(Duration) -> bool + Send + Sync + 'static) -> io::Error {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut socket = Watched::new(listener.accept().await.unwrap().0, limit, given_up);
        loop {
            if let Err(error) = socket.write_all(&[0; 64 << 10]).await {
                return error;
            }
        }
    }

    #[tokio::test]
    async fn a_client_that_takes_nothing_is_given_up() {
        let hour = Duration::from_secs(3600);
        let patient = |_| false;
        let impatient = |lasted| lasted > Duration::from_millis(50);
        // An hour passes for neither of them.
        assert_eq!(write_for_ever(Duration::from_millis(100), patient).await.kind(), io::ErrorKind::TimedOut);
        assert_eq!(write_for_ever(hour, impatient).await.kind(), io::ErrorKind::TimedOut);
    }
}

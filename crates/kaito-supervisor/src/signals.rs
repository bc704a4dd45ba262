//! The operating system's requests to end.

use std::io;

use tokio::sync::mpsc;

/// The operating system's requests to end.
#[derive(Debug)]
pub struct Signals(mpsc::Receiver<()>);

impl Signals {
    /// SIGTERM and SIGINT.
    ///
    /// # Errors
    /// The system's, when handlers can't be set.
    pub fn of_process() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let (sender, receiver) = mpsc::channel(1);
        for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
            let mut signal = signal(kind)?;
            let sender = sender.clone();
            tokio::spawn(async move { while signal.recv().await.is_some() && sender.send(()).await.is_ok() {} });
        }
        Ok(Self(receiver))
    }

    pub(crate) async fn next(&mut self) {
        if self.0.recv().await.is_none() {
            std::future::pending().await
        }
    }
}

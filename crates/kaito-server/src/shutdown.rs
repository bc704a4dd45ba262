//! Graceful shutdown: take no more requests, let the admitted ones finish within a limit, break off the rest.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::state::{App, Phase};

/// How long requests that are broken off may take to tell their clients.
const BREAK_OFF_TIMEOUT: Duration = Duration::from_secs(1);

/// Waits until someone asks for the end, then until all admitted requests are over.
///
/// `signals` delivers the operating system's requests to end; the second of them ends the waiting.
pub(crate) async fn drained(app: Arc<App>, mut signals: mpsc::Receiver<()>) {
    tokio::select! {
        () = app.drains() => {}
        Some(()) = signals.recv() => tracing::info!("told to end by a signal"),
    }
    app.advance_to(Phase::Draining);
    tracing::info!(requests = app.admitted(), "finishing the admitted requests");
    tokio::select! {
        () = app.idle() => {}
        () = tokio::time::sleep(app.options.drain_limit) => {
            tracing::warn!(requests = app.admitted(), "breaking off requests: the time is up");
        }
        Some(()) = signals.recv() => {
            tracing::warn!(requests = app.admitted(), "breaking off requests: told to end again");
        }
    }
    if let Some(model) = app.model() {
        model.stop_accepting();
    }
    app.advance_to(Phase::Ended);
    // A client that does not take its answer in this time goes without.
    let _ = tokio::time::timeout(BREAK_OFF_TIMEOUT, app.idle()).await;
    if app.end_was_asked_for()
        && let Some(model) = app.model()
    {
        model.end_engine().await;
    }
}

/// Sends `()` for each SIGTERM and ctrl-c.
///
/// # Errors
/// The operating system's, when handlers cannot be set.
#[cfg(unix)]
pub(crate) fn signals() -> std::io::Result<mpsc::Receiver<()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (sender, receiver) = mpsc::channel(1);
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signal = signal(kind)?;
        let sender = sender.clone();
        tokio::spawn(async move { while signal.recv().await.is_some() && sender.send(()).await.is_ok() {} });
    }
    Ok(receiver)
}

/// Sends `()` for each ctrl-c.
///
/// # Errors
/// None on this system.
#[cfg(not(unix))]
pub(crate) fn signals() -> std::io::Result<mpsc::Receiver<()>> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move { while tokio::signal::ctrl_c().await.is_ok() && sender.send(()).await.is_ok() {} });
    Ok(receiver)
}

//! Waits for a state, never for a fixed time.

use std::{
    fmt::Display,
    future::Future,
    time::{Duration, Instant},
};

/// Far longer than any state takes on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(90);

/// The result of `look` once it is `Ok`. Its `Err` says what there is instead, for the failure's message.
pub async fn eventually<T, E: Display, F: Future<Output = Result<T, E>>>(what: &str, look: impl FnMut() -> F) -> T {
    within(LIMIT, what, look).await
}

/// [`eventually`] with a limit of its own.
pub async fn within<T, E: Display, F: Future<Output = Result<T, E>>>(
    limit: Duration,
    what: &str,
    mut look: impl FnMut() -> F,
) -> T {
    let begin = Instant::now();
    loop {
        match look().await {
            Ok(found) => return found,
            Err(instead) if begin.elapsed() > limit => panic!("{what}: not within {limit:?}; instead: {instead}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(150)).await,
        }
    }
}

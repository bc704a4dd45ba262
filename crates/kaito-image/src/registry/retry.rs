//! Failures of single attempts, and the wait before the next one.

use std::time::Duration;

use kaito_net::RetryPolicy;
use url::Url;

use super::Error;

/// Attempts to connect to a registry that has never answered: its name may be wrong, and the user wants to know soon.
const FIRST_CONNECTS: u32 = 5;

/// Why an attempt failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// It may work next time.
    Transient {
        cause: String,
        /// How long the registry asks to wait.
        retry_after: Option<Duration>,
        /// Whether it was answered, with a status that may pass.
        answered: bool,
    },
    /// No connection could be made, which may change.
    NotConnected(String),
    /// It will not.
    Fatal(Error),
}

impl Failure {
    pub(super) fn transient(cause: impl Into<String>) -> Self {
        Self::Transient { cause: cause.into(), retry_after: None, answered: false }
    }

    /// For messages.
    pub(super) fn cause(&self) -> String {
        match self {
            Self::Transient { cause, .. } | Self::NotConnected(cause) => cause.clone(),
            Self::Fatal(error) => error.to_string(),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Fatal(error)
    }
}

/// Called with the cause of a failed attempt and the wait before the next one.
pub(super) type Notify<'a> = &'a (dyn Fn(&str, Duration) + Sync);

/// Counts failures in a row, and waits a growing time after each.
#[derive(Debug)]
pub(super) struct Retries {
    counted: kaito_net::Retries,
    /// Whether the registry has never answered.
    unknown: bool,
}

impl Retries {
    pub(super) fn new(policy: RetryPolicy, unknown: bool) -> Self {
        Self { counted: kaito_net::Retries::new(policy), unknown }
    }

    /// Fewer attempts, for requests whose answer is not necessary.
    pub(super) fn at_most(mut self, attempts: u32) -> Self {
        self.counted = self.counted.at_most(attempts);
        self
    }

    /// Something went well: failures are counted anew.
    pub(super) fn progressed(&mut self) {
        self.counted.progressed();
    }

    /// Waits before the next attempt, or says that there is none.
    pub(super) async fn wait(&mut self, failure: Failure, url: &Url, notify: Notify<'_>) -> Result<(), Error> {
        let (cause, retry_after, attempts) = match failure {
            Failure::Fatal(error) => return Err(error),
            Failure::Transient { cause, retry_after, .. } => (cause, retry_after, u32::MAX),
            Failure::NotConnected(cause) if self.unknown => (cause, None, FIRST_CONNECTS),
            Failure::NotConnected(cause) => (cause, None, u32::MAX),
        };
        let delay = match self.counted.failed_of(attempts, retry_after) {
            Ok(delay) => delay,
            Err(attempts) => {
                // Its parameters may be as good as a password.
                let mut url = url.clone();
                url.set_query(None);
                return Err(Error::Unreachable { url: url.to_string(), attempts, cause });
            }
        };
        tracing::debug!(host = url.host_str(), cause, ?delay, "request failed, trying again");
        notify(&cause, delay);
        tokio::time::sleep(delay).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn failures_in_a_row_wait_longer_and_end() {
        let policy =
            RetryPolicy { attempts: 6, first_delay: Duration::from_secs(1), max_delay: Duration::from_secs(5) };
        let url = "https://r.test/v2/a?secret=1".parse().unwrap();
        let mut retries = Retries::new(policy, false);
        let delays = std::sync::Mutex::new(Vec::new());
        let notify = |_: &str, delay: Duration| delays.lock().unwrap().push(delay.as_secs());
        for _ in 0..4 {
            retries.wait(Failure::transient("x"), &url, &notify).await.unwrap();
        }
        let asked =
            Failure::Transient { cause: "x".to_owned(), retry_after: Some(Duration::from_secs(60)), answered: true };
        retries.wait(asked, &url, &notify).await.unwrap();
        let error = retries.wait(Failure::transient("down"), &url, &notify).await.unwrap_err().to_string();
        assert_eq!(error, "https://r.test/v2/a: down; gave up after 6 attempts in a row without progress");
        assert_eq!(*delays.lock().unwrap(), [1, 2, 4, 5, 60]);
        retries.progressed();
        retries.wait(Failure::transient("x"), &url, &notify).await.unwrap();
    }
}

//! When a request is made again.

use std::time::{Duration, SystemTime};

/// The longest wait that a server may ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// When a request is made again after a failure that may pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Failures in a row, without progress between them, after which it is given up.
    pub attempts: u32,
    /// The wait after the first failure; it doubles with each further one.
    pub first_delay: Duration,
    /// The longest wait, unless the server asks for a longer one.
    pub max_delay: Duration,
}

impl RetryPolicy {
    /// The wait after so many failures in a row, of which there is at least one.
    pub fn backoff(&self, failures: u32) -> Duration {
        self.first_delay.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(self.max_delay)
    }
}

/// Counts failures in a row, and says how long to wait after each.
#[derive(Debug)]
pub struct Retries {
    policy: RetryPolicy,
    failures: u32,
}

impl Retries {
    /// None has failed yet.
    pub fn new(policy: RetryPolicy) -> Self {
        Self { policy, failures: 0 }
    }

    /// Fewer attempts, for what can be done without.
    #[must_use]
    pub fn at_most(mut self, attempts: u32) -> Self {
        self.policy.attempts = self.policy.attempts.min(attempts);
        self
    }

    /// How many failures there were in a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Something went well: failures are counted anew.
    pub fn progressed(&mut self) {
        self.failures = 0;
    }

    /// Counts a failure. Returns the wait before the next attempt, which is the one that the server asked for
    /// (`retry_after`) if it did.
    ///
    /// # Errors
    /// The number of failures in a row, when the policy allows no further attempt.
    pub fn failed(&mut self, retry_after: Option<Duration>) -> Result<Duration, u32> {
        self.failed_of(u32::MAX, retry_after)
    }

    /// [`Self::failed`] for a failure after which no more than so many `attempts` are worth while.
    ///
    /// # Errors
    /// As [`Self::failed`].
    pub fn failed_of(&mut self, attempts: u32, retry_after: Option<Duration>) -> Result<Duration, u32> {
        self.failures += 1;
        if self.failures >= self.policy.attempts.min(attempts) {
            return Err(self.failures);
        }
        Ok(retry_after.unwrap_or_else(|| self.policy.backoff(self.failures)))
    }
}

/// Whether another attempt may have another answer than this status. Those above 519 come from proxies that could not reach
/// what is behind them.
pub fn is_transient(status: u16) -> bool {
    matches!(status, 408 | 425 | 429 | 500 | 502..=504 | 520..=530)
}

/// The wait that a `Retry-After` header asks for, in seconds or as a date; at most five minutes.
pub fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    let delay = match value.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(value).ok()?.duration_since(now).unwrap_or_default(),
    };
    Some(delay.min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_wait_is_seconds_or_a_date() {
        // The date is RFC 9110's own example, 784111777 seconds after the epoch.
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777 - 37);
        for (value, delay) in [
            ("120", Some(120)),
            (" 0 ", Some(0)),
            ("999999", Some(300)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(37)),
            ("Tue, 06 Nov 1990 08:49:37 GMT", Some(0)),
            ("-1", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(retry_after(value, now), delay.map(Duration::from_secs), "{value}");
        }
    }

    #[test]
    fn statuses_that_may_pass() {
        let passing: Vec<u16> = (100..600).filter(|&status| is_transient(status)).collect();
        let expected = [408, 425, 429, 500, 502, 503, 504].into_iter().chain(520..=530).collect::<Vec<_>>();
        assert_eq!(passing, expected);
    }

    #[test]
    fn failures_in_a_row_wait_longer_and_end() {
        let second = Duration::from_secs(1);
        let mut retries = Retries::new(RetryPolicy { attempts: 6, first_delay: second, max_delay: 5 * second });
        let waits: Vec<_> = (0..4).map(|_| retries.failed(None)).collect();
        assert_eq!(waits, [1, 2, 4, 5].map(|seconds| Ok(seconds * second)));
        assert_eq!(retries.failed(Some(60 * second)), Ok(60 * second), "as the server asks");
        assert_eq!(retries.failed(None), Err(6));
        retries.progressed();
        assert_eq!(retries.failed(None), Ok(second));
        assert_eq!(retries.failed_of(2, None), Err(2), "fewer are allowed");
        retries.progressed();
        assert_eq!(retries.at_most(1).failed(None), Err(1));
    }

    proptest! {
        #[test]
        fn any_wait_is_read_or_passed_over(value in "[ -~]{0,40}") {
            let delay = retry_after(&value, SystemTime::UNIX_EPOCH);
            prop_assert!(delay.is_none_or(|delay| delay <= MAX_RETRY_AFTER));
        }

        #[test]
        fn a_wait_grows_up_to_its_limit(failures in any::<u32>(), first in 0_u64..10_000, max in 0_u64..100_000) {
            let policy = RetryPolicy {
                attempts: 1,
                first_delay: Duration::from_millis(first),
                max_delay: Duration::from_millis(max),
            };
            prop_assert!(policy.backoff(failures) <= policy.max_delay);
            prop_assert!(policy.backoff(failures) <= policy.backoff(failures.saturating_add(1)));
        }
    }
}

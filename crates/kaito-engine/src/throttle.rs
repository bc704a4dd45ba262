//! A rate limit for log messages.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often a message that may come many times a second is logged.
const INTERVAL: Duration = Duration::from_secs(60);

/// Lets one message a minute pass, and counts the others.
#[derive(Debug, Default)]
pub struct Throttle(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    passed: Option<Instant>,
    held: u64,
}

impl Throttle {
    /// How many messages were held back since the last one, if this one may pass.
    pub fn pass(&self) -> Option<u64> {
        self.pass_at(Instant::now())
    }

    fn pass_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.passed.is_some_and(|passed| now.saturating_duration_since(passed) < INTERVAL) {
            state.held += 1;
            return None;
        }
        state.passed = Some(now);
        Some(std::mem::take(&mut state.held))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_a_minute_passes_and_counts_the_others() {
        let (throttle, start) = (Throttle::default(), Instant::now());
        let at = |seconds| throttle.pass_at(start + Duration::from_secs(seconds));
        let passed = [0, 1, 59, 60, 61, 200].map(at);
        assert_eq!(passed, [Some(0), None, None, Some(2), None, Some(1)]);
    }
}

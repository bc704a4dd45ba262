//! Exponential backoff after failures, for each object on its own.

use std::{collections::HashMap, hash::Hash, sync::Mutex, time::Duration};

const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(60);

/// Counts the failures of each object since its last success.
#[derive(Debug)]
pub struct Backoff<K> {
    failures: Mutex<HashMap<K, u32>>,
}

impl<K> Default for Backoff<K> {
    fn default() -> Self {
        Self { failures: Mutex::default() }
    }
}

impl<K: Hash + Eq> Backoff<K> {
    /// Counts a failure, and says how long to wait: twice as long each time.
    pub fn failed(&self, object: K) -> Duration {
        let mut failures = lock(&self.failures);
        let count = failures.entry(object).or_insert(0);
        let delay = FIRST.saturating_mul(1_u32.checked_shl(*count).unwrap_or(u32::MAX)).min(LONGEST);
        *count = count.saturating_add(1);
        delay
    }

    /// Forgets its failures.
    pub fn succeeded(&self, object: &K) {
        lock(&self.failures).remove(object);
    }
}

/// Locks, even after a panic: what is locked here is valid after every statement.
pub fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_object_waits_longer_each_time_up_to_a_minute() {
        let backoff = Backoff::default();
        let seconds: Vec<_> = (0..9).map(|_| backoff.failed("a").as_secs_f32()).collect();
        assert_eq!(seconds, [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]);
        for _ in 0..100 {
            assert_eq!(backoff.failed("a"), LONGEST);
        }
        assert_eq!(backoff.failed("b"), FIRST);
        backoff.succeeded(&"a");
        assert_eq!(backoff.failed("a"), FIRST);
    }
}

//! A cancellation token, for work on other threads.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Instant,
};

use crate::Error;

/// Whether somebody still waits for a piece of work; cheap to clone, and all clones agree. Work on a request checks it between
/// one stage and the next, and within a stage that may be long.
#[derive(Debug, Clone, Default)]
pub struct Cancel {
    cancelled: Arc<AtomicBool>,
    deadline: Option<Instant>,
}

impl Cancel {
    /// Work that is of no use after `deadline`.
    pub fn at(deadline: Option<Instant>) -> Self {
        Self { cancelled: Arc::default(), deadline }
    }

    /// Nobody waits any more.
    pub fn cancel(&self) {
        self.cancelled.store(true, Relaxed);
    }

    /// Whether nobody waits any more, or the deadline is over.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Relaxed) || self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// An error if nobody waits any more.
    ///
    /// # Errors
    /// [`Error::Cancelled`].
    pub fn check(&self) -> Result<(), Error> {
        if self.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn work_ends_by_hand_or_by_time() {
        let cancel = Cancel::default();
        let seen_by_a_worker = cancel.clone();
        assert!(seen_by_a_worker.check().is_ok());
        cancel.cancel();
        assert!(matches!(seen_by_a_worker.check(), Err(Error::Cancelled)));
        let now = Instant::now();
        assert!(Cancel::at(Some(now)).is_cancelled());
        assert!(!Cancel::at(Some(now + Duration::from_secs(3600))).is_cancelled());
    }
}

//! Panics on demand, for tests of what outlives them.

use super::{Phase, RequestId};

/// Where tests make a request panic. Clones share what is armed; without the feature `testing` nothing ever is.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    #[cfg(any(test, feature = "testing"))]
    armed: std::sync::Arc<std::sync::Mutex<Vec<(Phase, RequestId)>>>,
}

impl Faults {
    /// Lets a request panic when it next comes to `phase`, once.
    #[cfg(any(test, feature = "testing"))]
    pub fn arm(&self, phase: Phase, id: RequestId) {
        self.armed().push((phase, id));
    }

    /// Whether all that was armed has struck.
    #[cfg(any(test, feature = "testing"))]
    pub fn spent(&self) -> bool {
        self.armed().is_empty()
    }

    #[cfg(any(test, feature = "testing"))]
    fn armed(&self) -> std::sync::MutexGuard<'_, Vec<(Phase, RequestId)>> {
        self.armed.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Panics where `id` is to panic in `phase`.
    #[cfg(any(test, feature = "testing"))]
    #[allow(clippy::panic, reason = "that is what it is for")]
    pub(crate) fn strike(&self, phase: Phase, id: RequestId) {
        let struck = {
            let mut armed = self.armed();
            let found = armed.iter().position(|&fault| fault == (phase, id));
            found.map(|at| armed.swap_remove(at))
        };
        if struck.is_some() {
            panic!("a fault in {phase:?} of request {id}, as asked for");
        }
    }

    #[cfg(not(any(test, feature = "testing")))]
    #[allow(clippy::unused_self, reason = "the same with and without the feature")]
    pub(crate) fn strike(&self, _: Phase, _: RequestId) {}
}

//! Runs the compiling of grammars where it can be left behind.
//!
//! What compiles a grammar cannot be told to stop. So it runs on a thread of its own, with a stack for any depth that the
//! limits allow, and whoever asked for it waits only so long. Such a thread ends by the parser's limits; until then it counts
//! as one of the few that there may be.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use kaito_engine::Cancel;

use crate::Error;

/// How many grammars are compiled at a time, those that nobody waits for any more included.
const MAX_COMPILING: usize = 4;
/// For a chain of references or rules as long as the limits allow. Only what is used of it takes memory.
const STACK: usize = 256 << 20;
/// How often a wait looks whether it is still of use.
const LOOK: Duration = Duration::from_millis(10);

/// The places of threads that compile.
#[derive(Debug)]
pub(crate) struct Places {
    free: Mutex<usize>,
    freed: Condvar,
}

impl Default for Places {
    fn default() -> Self {
        Self { free: Mutex::new(MAX_COMPILING), freed: Condvar::new() }
    }
}

/// One of the places, until it is dropped.
struct Place(Arc<Places>);

impl Places {
    fn lock(&self) -> MutexGuard<'_, usize> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(self: &Arc<Self>, cancel: &Cancel, start: Instant, limit: Duration) -> Result<Place, Error> {
        let mut free = self.lock();
        while *free == 0 {
            check(cancel)?;
            if start.elapsed() >= limit {
                return Err(Error::Busy { limit: MAX_COMPILING, waited: limit });
            }
            (free, _) = self.freed.wait_timeout(free, LOOK).unwrap_or_else(PoisonError::into_inner);
        }
        *free -= 1;
        Ok(Place(self.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *self.0.lock() += 1;
        self.0.freed.notify_one();
    }
}

fn check(cancel: &Cancel) -> Result<(), Error> {
    if cancel.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
}

/// Waits for `work` at most for `limit`, and only while somebody waits for this.
pub(crate) fn within<T: Send + 'static>(
    places: &Arc<Places>,
    limit: Duration,
    cancel: &Cancel,
    what: &'static str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let start = Instant::now();
    let internal = |reason: String| Error::Internal { reason };
    let place = places.take(cancel, start, limit)?;
    let (done, result) = sync_channel(1);
    let run = move || {
        let worked = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(internal("it panicked".to_owned())));
        // Free before anybody can know that it is done.
        drop(place);
        // Nobody may be waiting any more.
        let _ = done.send(worked);
    };
    thread::Builder::new()
        .name("grammar".to_owned())
        .stack_size(STACK)
        .spawn(run)
        .map_err(|error| internal(format!("no thread can be started for it: {error}")))?;
    loop {
        match result.recv_timeout(LOOK) {
            Ok(worked) => return worked,
            Err(RecvTimeoutError::Disconnected) => return Err(internal("its thread is gone".to_owned())),
            Err(RecvTimeoutError::Timeout) => {
                check(cancel)?;
                if start.elapsed() >= limit {
                    return Err(Error::TimedOut { what, limit });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn work_that_takes_too_long_is_left_behind_and_keeps_its_place() {
        let places = Arc::new(Places::default());
        let cancel = Cancel::default();
        let (go_on, waits) = channel::<()>();
        let waits = Arc::new(Mutex::new(waits));
        for _ in 0..MAX_COMPILING {
            let waits = waits.clone();
            let work = move || waits.lock().unwrap().recv().map_err(|_| Error::Cancelled);
            let left = within(&places, Duration::ZERO, &cancel, "it", work).unwrap_err();
            assert_eq!(left, Error::TimedOut { what: "it", limit: Duration::ZERO });
        }
        let busy = within(&places, Duration::ZERO, &cancel, "it", || Ok(())).unwrap_err();
        assert_eq!(busy, Error::Busy { limit: MAX_COMPILING, waited: Duration::ZERO });
        go_on.send(()).unwrap();
        assert_eq!(within(&places, LONG, &cancel, "it", || Ok(1)), Ok(1));
        drop(go_on);
    }

    #[test]
    fn nobody_is_kept_waiting_who_has_left() {
        let places = Arc::new(Places::default());
        let cancel = Cancel::default();
        let (go_on, waits) = channel::<()>();
        let waiting = cancel.clone();
        let work = move || {
            waiting.cancel();
            waits.recv().map_err(|_| Error::Cancelled)
        };
        assert_eq!(within(&places, LONG, &cancel, "it", work), Err(Error::Cancelled));
        drop(go_on);
    }

    #[test]
    fn a_panic_is_an_error() {
        let places = Arc::new(Places::default());
        let error = within::<()>(&places, LONG, &Cancel::default(), "it", || panic!("no")).unwrap_err();
        assert_eq!(error, Error::Internal { reason: "it panicked".to_owned() });
        assert_eq!(*places.lock(), MAX_COMPILING);
    }
}

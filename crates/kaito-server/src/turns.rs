//! The queue of requests that are to be prepared: parsed, rendered and tokenised.
//!
//! At most as many are prepared at one time as there are processors, so that a flood of requests leaves the engine its share of
//! them. Short requests pass long ones, and one place is kept for them. A long request gains priority as it waits, so it is not
//! passed for ever. The bytes that are prepared at one time are bounded, too, since tokenising takes many times the memory of
//! a text.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

/// The longest body that counts as short, in bytes.
const SHORT: usize = 64 << 10;
/// Bytes of long bodies that are prepared at one time, unless one alone has more.
const LONG_BYTES: usize = 4 << 20;
/// How much longer a request waits for each of its bytes, before one that comes later no longer passes it.
const AGE_PER_BYTE: Duration = Duration::from_micros(1);

/// The queue.
#[derive(Debug)]
pub(crate) struct Turns {
    places: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    running: usize,
    long_running: usize,
    long_bytes: usize,
    tickets: u64,
    /// In the order in which they are due.
    waiting: BTreeMap<(Instant, u64), Waiting>,
}

#[derive(Debug)]
struct Waiting {
    bytes: usize,
    go: oneshot::Sender<Turn>,
}

/// The permission to prepare a request. The next one has its turn when it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    turns: Arc<Turns>,
    bytes: usize,
}

impl Turns {
    /// A queue for a machine with so many processors.
    pub(crate) fn new(processors: usize) -> Arc<Self> {
        // One of them is for short requests.
        Arc::new(Self { places: processors.max(2), state: Mutex::default() })
    }

    /// Waits for the turn of a request of `bytes`.
    pub(crate) async fn take(self: &Arc<Self>, bytes: usize) -> Turn {
        let (go, going) = oneshot::channel();
        let due = Instant::now() + AGE_PER_BYTE.saturating_mul(u32::try_from(bytes).unwrap_or(u32::MAX));
        let key = {
            let mut state = self.lock();
            state.tickets += 1;
            let key = (due, state.tickets);
            state.waiting.insert(key, Waiting { bytes, go });
            key
        };
        let _place_in_line = InLine { turns: self, key };
        self.call_next();
        match going.await {
            Ok(turn) => turn,
            // The sender is only taken away to send a turn.
            Err(_) => std::future::pending().await,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls all requests whose turn it is.
    fn call_next(self: &Arc<Self>) {
        let called = self.lock().call(self.places);
        for Waiting { bytes, go } in called {
            // Where nobody waits any more, this drops the turn, which calls the next request.
            let _ = go.send(Turn { turns: Arc::clone(self), bytes });
        }
    }
}

impl State {
    fn call(&mut self, places: usize) -> Vec<Waiting> {
        let mut called = Vec::new();
        let mut long_may_go = true;
        for (&key, waiting) in &self.waiting {
            if self.running == places {
                break;
            }
            if waiting.bytes > SHORT {
                // No long one passes another.
                long_may_go &= self.long_running + 1 < places
                    && (self.long_running == 0 || self.long_bytes.saturating_add(waiting.bytes) <= LONG_BYTES);
                if !long_may_go {
                    continue;
                }
                self.long_running += 1;
                self.long_bytes = self.long_bytes.saturating_add(waiting.bytes);
            }
            self.running += 1;
            called.push(key);
        }
        called.into_iter().filter_map(|key| self.waiting.remove(&key)).collect()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        {
            let mut state = self.turns.lock();
            state.running = state.running.saturating_sub(1);
            if self.bytes > SHORT {
                state.long_running = state.long_running.saturating_sub(1);
                state.long_bytes = state.long_bytes.saturating_sub(self.bytes);
            }
        }
        self.turns.call_next();
    }
}

/// A request's place in the queue, given up when the request is dropped.
struct InLine<'a> {
    turns: &'a Arc<Turns>,
    key: (Instant, u64),
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        self.turns.lock().waiting.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const LONG: usize = SHORT + 1;

    /// Futures of turns that have been asked for in this order.
    macro_rules! asked {
        ($turns:expr, $($bytes:expr),+) => {
            [$({
                let mut turn = Box::pin($turns.take($bytes));
                let ready = (&mut turn).now_or_never();
                (turn, ready)
            }),+]
        };
    }

    #[test]
    fn a_short_request_passes_long_ones() {
        let turns = Turns::new(4);
        // Three places are for long ones.
        let [(_, a), (_, b), (_, c), (mut d, waits), (_, short)] = asked!(turns, LONG, LONG, LONG, LONG, 10);
        assert!(a.is_some() && b.is_some() && c.is_some() && short.is_some());
        assert!(waits.is_none());
        drop(short);
        assert!((&mut d).now_or_never().is_none(), "the last place is for short ones");
        drop(b);
        assert!((&mut d).now_or_never().is_some());
    }

    #[test]
    fn long_requests_wait_for_each_others_bytes() {
        let turns = Turns::new(16);
        let [(_, whole), (mut next, waits), (mut last, waits_too)] = asked!(turns, 2 * LONG_BYTES, LONG, LONG);
        assert!(whole.is_some(), "one alone may have more");
        assert!(waits.is_none() && waits_too.is_none());
        drop(whole);
        assert!((&mut next).now_or_never().is_some());
        assert!((&mut last).now_or_never().is_some());
    }

    #[test]
    fn the_shorter_one_goes_first_unless_the_longer_one_is_old() {
        let mut state = State::default();
        let start = Instant::now();
        let due = |after: u64, bytes: u64| start + Duration::from_millis(after) + AGE_PER_BYTE * bytes as u32;
        let mut ask = |ticket: u64, after: u64, bytes: usize| {
            let (go, going) = oneshot::channel();
            state.waiting.insert((due(after, bytes as u64), ticket), Waiting { bytes, go });
            going
        };
        let _lines = [ask(0, 0, 50_000), ask(1, 10, 100), ask(2, 49, 100), ask(3, 60, 100)];
        let order: Vec<_> = (0..4)
            .map(|_| {
                state.running = 0;
                let (&key, _) = state.waiting.first_key_value().unwrap();
                assert_eq!(state.call(1).len(), 1);
                key.1
            })
            .collect();
        assert_eq!(order, [1, 2, 0, 3]);
    }

    #[test]
    fn who_leaves_the_line_keeps_nobody_waiting() {
        let turns = Turns::new(2);
        let [(_, first), (second, waits), (mut third, waits_too)] = asked!(turns, LONG, LONG, LONG);
        assert!(first.is_some() && waits.is_none() && waits_too.is_none());
        drop(second);
        drop(first);
        assert!((&mut third).now_or_never().is_some());
        drop(third);
        let state = turns.lock();
        assert_eq!((state.waiting.len(), state.long_running), (0, 0));
    }

    #[test]
    fn a_turn_that_comes_too_late_is_passed_on() {
        let turns = Turns::new(2);
        let [(_, first), (second, _)] = asked!(turns, LONG, LONG);
        drop(first);
        // Its turn came, and nobody took it.
        drop(second);
        let [(_, third)] = asked!(turns, LONG);
        assert!(third.is_some());
    }
}

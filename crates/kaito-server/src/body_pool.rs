//! A bound on the memory of all request bodies that are arriving or wait to be prepared.
//!
//! A body takes memory as it arrives, whatever length it announces. Where the memory is used up, a body that grows waits for
//! more, and its client is not read from meanwhile (back-pressure). If the slowest body is slower than an honest client is, it
//! is broken off to make room. A part of the memory is kept for the first bytes of bodies, since most bodies are short.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// The first bytes of a body, for which a part of the memory is kept.
const BEGINNING: usize = 64 << 10;
/// One part in so many is kept for beginnings.
const KEPT: usize = 4;
/// A body gives way to others if it took longer than this over the latest [`BEGINNING`] bytes.
const SLOW: Duration = Duration::from_secs(2);
/// How long a body waits for memory.
const WAIT: Duration = Duration::from_secs(10);
/// How often it looks whether others have become slow.
const LOOK: Duration = Duration::from_millis(250);
/// About what a request takes beside its body.
const OVERHEAD: usize = 2 << 10;

/// The memory of all bodies.
#[derive(Debug)]
pub(crate) struct BodyPool {
    capacity: usize,
    state: Mutex<State>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct State {
    used: usize,
    /// Bytes of bodies that have been told to give way and have not yet done so.
    leaving: usize,
    next: u64,
    bodies: HashMap<u64, Body>,
}

#[derive(Debug)]
struct Body {
    bytes: usize,
    /// When it last had [`BEGINNING`] bytes more, and how many it had then; `None` once it is complete.
    pace: Option<(Instant, usize)>,
    /// Since when it waits for memory. Its client is not read from meanwhile, so it is not slow for that.
    waits: Option<Instant>,
    give_way: Arc<Notify>,
    leaving: bool,
}

/// The memory of one body.
#[derive(Debug)]
pub(crate) struct Held {
    pool: Arc<BodyPool>,
    id: u64,
    give_way: Arc<Notify>,
}

impl BodyPool {
    /// Memory for so many bytes.
    pub(crate) fn new(capacity: usize) -> Arc<Self> {
        Arc::new(Self { capacity, state: Mutex::default(), freed: Notify::new() })
    }

    /// How many bytes all bodies together may have.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// The memory of a body that begins to arrive.
    pub(crate) fn begin(self: &Arc<Self>) -> Held {
        let give_way = Arc::new(Notify::new());
        let mut state = self.lock();
        state.next += 1;
        let id = state.next;
        let body = Body {
            bytes: 0,
            pace: Some((Instant::now(), 0)),
            waits: None,
            give_way: Arc::clone(&give_way),
            leaving: false,
        };
        state.bodies.insert(id, body);
        Held { pool: Arc::clone(self), id, give_way }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Gives the body `id` `more` bytes, or tells slow bodies to give way for it.
    fn grow(&mut self, id: u64, more: usize, capacity: usize, now: Instant) -> bool {
        let has = self.bodies.get(&id).map_or(0, |body| body.bytes);
        let beginning = has.saturating_add(more) <= BEGINNING + OVERHEAD;
        let limit = if beginning { capacity } else { capacity - capacity / KEPT };
        if self.used.saturating_add(more) <= limit {
            self.used += more;
            if let Some(body) = self.bodies.get_mut(&id) {
                body.bytes += more;
                let waited = body.waits.take().map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
                if let Some(pace) = &mut body.pace {
                    pace.0 += waited;
                    if body.bytes - pace.1 >= BEGINNING {
                        *pace = (now, body.bytes);
                    }
                }
            }
            return true;
        }
        if let Some(body) = self.bodies.get_mut(&id) {
            body.waits.get_or_insert(now);
        }
        // Where all of them wait for each other, one must give way nevertheless.
        let all_wait = self.bodies.values().all(|body| body.bytes == 0 || body.waits.is_some() || body.leaving);
        while self.leaving < more {
            let may_leave = |body: &Body| !body.leaving && (all_wait || body.waits.is_none());
            let since = |body: &Body| body.pace.filter(|_| may_leave(body)).map(|(since, _)| since);
            let others = self.bodies.iter_mut().filter(|(other, _)| **other != id);
            let slowest = others.filter_map(|(_, body)| Some((since(body)?, body))).min_by_key(|(since, _)| *since);
            let Some((since, body)) = slowest else { break };
            if now.saturating_duration_since(since) < SLOW {
                break;
            }
            body.leaving = true;
            self.leaving += body.bytes;
            body.give_way.notify_one();
        }
        false
    }
}

impl Held {
    /// What every request takes; to be asked for before the first byte.
    pub(crate) const OVERHEAD: usize = OVERHEAD;

    /// Waits until the body may have so many bytes more; false if that takes too long.
    pub(crate) async fn grow(&self, more: usize) -> bool {
        let grown = async {
            loop {
                let mut freed = std::pin::pin!(self.pool.freed.notified());
                freed.as_mut().enable();
                if self.pool.lock().grow(self.id, more, self.pool.capacity, Instant::now()) {
                    return;
                }
                // By then other bodies may have become slow.
                let _ = tokio::time::timeout(LOOK, freed).await;
            }
        };
        tokio::time::timeout(WAIT, grown).await.is_ok()
    }

    /// Returns when the body is to give way to others.
    pub(crate) async fn gives_way(&self) {
        self.give_way.notified().await;
    }

    /// The body is complete: it no longer gives way.
    pub(crate) fn complete(&self) {
        if let Some(body) = self.pool.lock().bodies.get_mut(&self.id) {
            body.pace = None;
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        {
            let mut state = self.pool.lock();
            if let Some(body) = state.bodies.remove(&self.id) {
                state.used = state.used.saturating_sub(body.bytes);
                if body.leaving {
                    state.leaving = state.leaving.saturating_sub(body.bytes);
                }
            }
        }
        self.pool.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const CAPACITY: usize = 8 * BEGINNING;

    #[tokio::test]
    async fn a_part_is_kept_for_beginnings() {
        let pool = BodyPool::new(CAPACITY);
        let (large, other, small) = (pool.begin(), pool.begin(), pool.begin());
        assert!(large.grow(6 * BEGINNING).await);
        let waits = other.grow(BEGINNING + OVERHEAD + 1).now_or_never();
        assert_eq!(waits, None, "three parts of four are used");
        assert!(small.grow(BEGINNING).await);
        drop(large);
        assert!(other.grow(BEGINNING + OVERHEAD + 1).await);
    }

    #[tokio::test]
    async fn a_body_waits_until_another_is_gone() {
        let pool = BodyPool::new(CAPACITY);
        let (first, second) = (pool.begin(), pool.begin());
        assert!(first.grow(6 * BEGINNING).await);
        first.complete();
        let mut waits = Box::pin(second.grow(2 * BEGINNING));
        assert!((&mut waits).now_or_never().is_none());
        drop(first);
        assert!(waits.await);
    }

    #[test]
    fn the_slowest_body_gives_way_once_it_is_slow() {
        let mut state = State::default();
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        for (id, since) in [(1, at(0)), (2, at(100)), (3, at(200))] {
            let body = Body { bytes: 0, pace: Some((since, 0)), waits: None, give_way: Arc::default(), leaving: false };
            state.bodies.insert(id, body);
        }
        let leaving = |state: &State| {
            let mut ids: Vec<_> = state.bodies.iter().filter(|(_, body)| body.leaving).map(|(id, _)| *id).collect();
            ids.sort_unstable();
            ids
        };
        for id in [1, 2] {
            assert!(state.grow(id, BEGINNING - 1, 2 * BEGINNING, at(200)));
        }
        assert!(!state.grow(3, 2 * BEGINNING, 2 * BEGINNING, at(1900)));
        assert_eq!(leaving(&state), [] as [u64; 0], "nobody is slow yet");
        assert!(!state.grow(3, 100, 2 * BEGINNING - 50, at(2050)));
        assert_eq!(leaving(&state), [1], "one is slow");
        assert!(!state.grow(3, 100, 2 * BEGINNING - 50, at(3000)));
        assert_eq!(leaving(&state), [1], "one is enough");
        assert!(!state.grow(3, 2 * BEGINNING, 2 * BEGINNING - 50, at(3000)));
        assert_eq!(leaving(&state), [1, 2]);
    }

    #[test]
    fn a_body_that_waits_for_memory_is_not_slow_unless_all_wait() {
        let mut state = State::default();
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        for id in [1, 2, 3] {
            let body = Body { bytes: 0, pace: Some((start, 0)), waits: None, give_way: Arc::default(), leaving: false };
            state.bodies.insert(id, body);
        }
        let capacity = 4 * BEGINNING;
        for id in [1, 2] {
            assert!(state.grow(id, BEGINNING, capacity, at(0)));
        }
        assert!(!state.grow(1, 2 * BEGINNING, capacity, at(100)));
        assert!(!state.grow(3, 2 * BEGINNING, capacity, at(3000)));
        assert!(
            !state.bodies[&1].leaving && state.bodies[&2].leaving,
            "the one that is slow, and not the one that waits"
        );
        // The time for which it waited does not count afterwards either.
        state.bodies.remove(&2);
        (state.used, state.leaving) = (BEGINNING, 0);
        assert!(state.grow(1, 2 * BEGINNING, capacity, at(5000)));
        assert!(!state.grow(3, 2 * BEGINNING, capacity, at(6900)));
        assert!(!state.bodies[&1].leaving);
        // Two that wait for each other.
        assert!(!state.grow(1, 2 * BEGINNING, capacity, at(7000)));
        assert!(!state.grow(3, 2 * BEGINNING, capacity, at(9500)));
        assert!(state.bodies[&1].leaving);
    }

    #[test]
    fn a_body_that_arrives_or_is_complete_gives_no_way() {
        let pool = BodyPool::new(2 * BEGINNING);
        let (steady, complete) = (pool.begin(), pool.begin());
        let late = Instant::now() + Duration::from_secs(3);
        let mut state = pool.lock();
        assert!(state.grow(steady.id, BEGINNING, pool.capacity, late));
        drop(state);
        complete.complete();
        let mut state = pool.lock();
        assert!(!state.grow(0, 2 * BEGINNING, pool.capacity, late + Duration::from_secs(1)));
        assert!(state.bodies.values().all(|body| !body.leaving));
        assert_eq!(state.used, BEGINNING);
    }
}

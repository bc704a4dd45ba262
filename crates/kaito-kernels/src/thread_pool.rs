//! Fork and join for kernels of some microseconds.

use std::{
    any::Any,
    cell::{Cell, UnsafeCell},
    hint,
    marker::PhantomData,
    num::NonZeroUsize,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// A worker thread spins so long for the next job before it sleeps: longer than the gap between two kernels of a step.
const SPIN: Duration = Duration::from_micros(50);

/// Threads that do the pieces of one job at a time. The caller is one of them.
///
/// Each thread takes the next piece when it is free, so that a thread which loses its core for a while delays the job by
/// no more than the piece it holds. Idle threads sleep.
pub struct ThreadPool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held while a job runs: a second caller waits.
    turn: Mutex<()>,
}

type Task<'a> = dyn Fn(usize) + Sync + 'a;

/// One call of `for_each`. The lifetime of the task is erased: [`Open`] and [`Inside`] keep workers from using it too long.
#[derive(Clone, Copy)]
struct Job {
    task: *const Task<'static>,
    pieces: usize,
}

struct Shared {
    /// Bit 0: a job is open, workers may join. Bit 1: the caller sleeps until they have left. Bits 2 to 31: workers
    /// inside. The upper half: the job's number, so that nobody joins the same job twice.
    state: AtomicU64,
    job: UnsafeCell<Job>,
    next: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    sleeping: AtomicUsize,
    stop: AtomicBool,
    lock: Mutex<()>,
    opened: Condvar,
    left: Condvar,
}

const OPEN: u64 = 1;
const WAITING: u64 = 2;
const INSIDE: u64 = 4;
const INSIDE_MASK: u64 = 0xffff_fffc;
const NUMBER_SHIFT: u32 = 32;

// SAFETY: `job` is written only while it is closed and nobody is inside (see `Open::new`), and read only by those inside (see
// `Inside::job`); the task it points to is `Sync`.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

thread_local! {
    /// Whether this thread is working on a piece, of any pool.
    static IN_PIECE: Cell<bool> = const { Cell::new(false) };
}

impl ThreadPool {
    /// A pool of `threads` threads, the caller of [`ThreadPool::for_each`] included. Where the system refuses to start
    /// so many, there are fewer: see [`ThreadPool::threads`].
    pub fn new(threads: NonZeroUsize) -> Self {
        fn nothing(_: usize) {}
        let task: &'static Task<'static> = &nothing;
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(Job { task, pieces: 0 }),
            next: AtomicUsize::new(0),
            panic: Mutex::new(None),
            sleeping: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            lock: Mutex::new(()),
            opened: Condvar::new(),
            left: Condvar::new(),
        });
        let spawn = |i: usize| {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name(format!("kernels-{i}")).spawn(move || shared.work()).ok()
        };
        let workers = (1..threads.get()).map_while(spawn).collect();
        Self { shared, workers, turn: Mutex::new(()) }
    }

    /// Number of threads, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task(0)`, .., `task(pieces - 1)`, each once, in any order and on any of the threads, and returns when
    /// all have returned. A panic in a piece goes on in the caller; pieces that nobody began are then left out.
    ///
    /// A call from within a piece does its work on its own thread alone.
    pub fn for_each(&self, pieces: usize, task: &(dyn Fn(usize) + Sync)) {
        if pieces <= 1 || self.workers.is_empty() || IN_PIECE.get() {
            (0..pieces).for_each(task);
            return;
        }
        let panic = {
            let turn = lock(&self.turn);
            self.run(pieces, task, &turn)
        };
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// [`ThreadPool::for_each`] over the `count` items that `items` yields.
    pub(crate) fn for_each_item<T>(
        &self,
        count: usize,
        items: impl Iterator<Item = T> + Send,
        task: impl Fn(T) + Sync,
    ) {
        let items = Mutex::new(items);
        self.for_each(count, &|_| {
            let item = lock(&items).next();
            item.into_iter().for_each(&task);
        });
    }

    /// Does the pieces of a job; `_turn` shows that there is no other. The panic of a piece, if there was one.
    fn run(&self, pieces: usize, task: &Task<'_>, _turn: &MutexGuard<()>) -> Option<Box<dyn Any + Send>> {
        let shared = &*self.shared;
        // SAFETY: `_turn` is held, and so the job before this one is closed and its workers have left.
        let open = unsafe { Open::new(shared, pieces, task) };
        if shared.sleeping.load(Ordering::SeqCst) > 0 {
            let _guard = lock(&shared.lock);
            if pieces > self.workers.len() {
                shared.opened.notify_all();
            } else {
                (1..pieces).for_each(|_| shared.opened.notify_one());
            }
        }
        shared.take_pieces(pieces, task);
        drop(open);
        lock(&shared.panic).take()
    }
}

/// A job that workers may join. To drop it closes it and waits until they have left, so that none uses the task any more.
struct Open<'a> {
    shared: &'a Shared,
    task: PhantomData<&'a Task<'a>>,
}

impl<'a> Open<'a> {
    /// # Safety
    /// No other job is open, or has workers inside, before this one is dropped; and it is dropped.
    unsafe fn new(shared: &'a Shared, pieces: usize, task: &'a Task<'_>) -> Self {
        // SAFETY: only the lifetime changes. The pointer is used by workers inside, and `drop` does not return before all have
        // left and none can enter.
        let task: *const Task<'static> = unsafe { std::mem::transmute(task as *const Task<'_>) };
        // SAFETY: nobody is inside, by contract.
        unsafe { *shared.job.get() = Job { task, pieces } };
        shared.next.store(0, Ordering::Relaxed);
        let number = (shared.state.load(Ordering::Relaxed) >> NUMBER_SHIFT).wrapping_add(1);
        shared.state.store((number << NUMBER_SHIFT) | OPEN, Ordering::SeqCst);
        Self { shared, task: PhantomData }
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        let shared = self.shared;
        let mut state = shared.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut tries = 0;
        while state & INSIDE_MASK != 0 {
            tries += 1;
            match tries {
                0..100 => hint::spin_loop(),
                100..200 => thread::yield_now(),
                _ => shared.sleep_until_left(),
            }
            state = shared.state.load(Ordering::Acquire);
        }
    }
}

/// A worker's part in the open job, which lasts until this is dropped. [`Shared::enter`] alone makes one.
struct Inside<'a> {
    shared: &'a Shared,
    number: u64,
}

impl Inside<'_> {
    fn pieces(&self) -> usize {
        self.job().pieces
    }

    fn task(&self) -> &Task<'_> {
        // SAFETY: `Open` keeps the task alive until this is dropped.
        unsafe { &*self.job().task }
    }

    fn job(&self) -> Job {
        // SAFETY: nobody writes the job while this thread is inside.
        unsafe { *self.shared.job.get() }
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        let before = self.shared.state.fetch_sub(INSIDE, Ordering::AcqRel);
        if before & WAITING != 0 && before & INSIDE_MASK == INSIDE {
            let _guard = lock(&self.shared.lock);
            self.shared.left.notify_all();
        }
    }
}

impl Shared {
    fn work(&self) {
        let mut last = 0;
        while let Some(inside) = self.enter(last) {
            last = inside.number;
            self.take_pieces(inside.pieces(), inside.task());
        }
    }

    /// Waits for a job other than number `last` and joins it; `None` when the pool ends.
    fn enter(&self, last: u64) -> Option<Inside<'_>> {
        let mut spins = 0u32;
        let mut since = None;
        loop {
            let state = self.state.load(Ordering::SeqCst);
            let number = state >> NUMBER_SHIFT;
            if state & OPEN != 0 && number != last {
                let joined = state + INSIDE;
                if self.state.compare_exchange_weak(state, joined, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                    return Some(Inside { shared: self, number });
                }
                continue;
            }
            if self.stop.load(Ordering::SeqCst) {
                return None;
            }
            spins += 1;
            if spins < 64 {
                hint::spin_loop();
            } else if since.get_or_insert_with(Instant::now).elapsed() < SPIN {
                thread::yield_now();
            } else {
                self.sleep_until_opened(last);
                (spins, since) = (0, None);
            }
        }
    }

    fn sleep_until_opened(&self, last: u64) {
        let mut guard = lock(&self.lock);
        self.sleeping.fetch_add(1, Ordering::SeqCst);
        loop {
            // A caller looks at `sleeping` after it has opened its job; a worker looks for a job after it has raised `sleeping`. So at
            // least one of the two sees the other.
            let state = self.state.load(Ordering::SeqCst);
            let opened = state & OPEN != 0 && state >> NUMBER_SHIFT != last;
            if opened || self.stop.load(Ordering::SeqCst) {
                break;
            }
            guard = self.opened.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleeping.fetch_sub(1, Ordering::SeqCst);
    }

    fn sleep_until_left(&self) {
        let mut guard = lock(&self.lock);
        let mut state = self.state.fetch_or(WAITING, Ordering::AcqRel);
        while state & INSIDE_MASK != 0 {
            guard = self.left.wait(guard).unwrap_or_else(PoisonError::into_inner);
            state = self.state.load(Ordering::Acquire);
        }
    }

    fn take_pieces(&self, pieces: usize, task: &Task<'_>) {
        IN_PIECE.set(true);
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let piece = self.next.fetch_add(1, Ordering::Relaxed);
                if piece >= pieces {
                    break;
                }
                task(piece);
            }
        }));
        IN_PIECE.set(false);
        if let Err(panic) = result {
            self.next.store(pieces, Ordering::Relaxed);
            lock(&self.panic).get_or_insert(panic);
        }
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        {
            let _guard = lock(&self.shared.lock);
            self.shared.stop.store(true, Ordering::SeqCst);
            self.shared.opened.notify_all();
        }
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its pieces, so `join` returns no error.
            let _ = worker.join();
        }
    }
}

impl std::fmt::Debug for ThreadPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ThreadPool").field("threads", &self.threads()).finish()
    }
}

/// Nothing here panics while it holds one of these locks, so the data behind a poisoned one is sound.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(threads: usize) -> ThreadPool {
        ThreadPool::new(NonZeroUsize::new(threads).unwrap())
    }

    #[test]
    fn each_piece_runs_once() {
        for threads in [1, 2, 3, 8] {
            let pool = pool(threads);
            assert_eq!(pool.threads(), threads);
            for pieces in [0, 1, 2, 7, 64, 1000] {
                let counts: Vec<AtomicUsize> = (0..pieces).map(|_| AtomicUsize::new(0)).collect();
                pool.for_each(pieces, &|i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1), "{threads} threads, {pieces}");
            }
        }
    }

    #[test]
    fn many_short_jobs_with_pauses() {
        let pool = pool(4);
        let sum = AtomicUsize::new(0);
        for round in 0..3000 {
            pool.for_each(5, &|i| {
                sum.fetch_add(i, Ordering::Relaxed);
            });
            if round % 300 == 0 {
                thread::sleep(Duration::from_millis(1));
            }
        }
        assert_eq!(sum.into_inner(), 3000 * 10);
    }

    #[test]
    fn workers_take_part() {
        let pool = pool(3);
        let ids = Mutex::new(std::collections::HashSet::new());
        let deadline = Instant::now() + Duration::from_secs(20);
        // Pieces wait until three threads are at work, so they must all have come.
        pool.for_each(3, &|_| {
            ids.lock().unwrap().insert(thread::current().id());
            while ids.lock().unwrap().len() < 3 && Instant::now() < deadline {
                thread::yield_now();
            }
        });
        assert_eq!(ids.lock().unwrap().len(), 3);
    }

    #[test]
    fn a_slow_piece_is_waited_for() {
        let pool = pool(2);
        for _ in 0..3 {
            let done = AtomicUsize::new(0);
            let caller = thread::current().id();
            pool.for_each(2, &|_| {
                if thread::current().id() != caller {
                    thread::sleep(Duration::from_millis(20));
                }
                done.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(done.into_inner(), 2);
        }
    }

    #[test]
    fn nested_and_concurrent_calls_do_not_deadlock() {
        let pool = pool(3);
        let sum = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        pool.for_each(4, &|_| {
                            pool.for_each(3, &|j| {
                                sum.fetch_add(j, Ordering::Relaxed);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(sum.into_inner(), 4 * 100 * 4 * 3);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        let pool = pool(3);
        for guilty in [0, 5, 63] {
            let panic = catch_unwind(AssertUnwindSafe(|| {
                pool.for_each(64, &|i| {
                    assert!(i != guilty, "piece {i}");
                });
            }))
            .unwrap_err();
            assert_eq!(panic.downcast_ref::<String>().unwrap(), &format!("piece {guilty}"));
            let count = AtomicUsize::new(0);
            pool.for_each(10, &|_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(count.into_inner(), 10);
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn idle_threads_sleep_and_drop_joins_them() {
        fn workers_named(name: &str) -> Vec<std::path::PathBuf> {
            let tasks = std::fs::read_dir("/proc/self/task").unwrap().filter_map(|entry| Some(entry.ok()?.path()));
            tasks.filter(|path| std::fs::read_to_string(path.join("comm")).is_ok_and(|c| c.trim() == name)).collect()
        }
        // No other test has so many threads: the name is this test's own.
        let pool = pool(12);
        pool.for_each(12, &|_| thread::sleep(Duration::from_millis(1)));
        thread::sleep(Duration::from_millis(200));
        let workers = workers_named("kernels-11");
        assert_eq!(workers.len(), 1);
        let stat = std::fs::read_to_string(workers[0].join("stat")).unwrap();
        assert_eq!(stat.rsplit(") ").next().unwrap().chars().next(), Some('S'), "{stat}");
        drop(pool);
        // The kernel wakes the joiner a moment before the thread is gone from the list.
        let gone = (0..1000).any(|_| {
            thread::sleep(Duration::from_millis(1));
            workers_named("kernels-11").is_empty()
        });
        assert!(gone);
    }
}

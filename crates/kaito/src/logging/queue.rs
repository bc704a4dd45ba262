//! A writer that never blocks: lines go into a bounded queue, from which a thread writes them out.

use std::{
    collections::VecDeque,
    io::{self, Write},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// What may lie in the queue. A pipe has room for 64 KiB beside it.
const MAX_LINES: usize = 8192;
const MAX_BYTES: usize = 4 << 20;
/// The pause before a descriptor that does not wait is tried again.
const RETRY: Duration = Duration::from_millis(20);

/// Lines on their way out.
#[derive(Debug, Default)]
pub struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    dropped: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct State {
    lines: VecDeque<Box<[u8]>>,
    bytes: usize,
    /// Whether the thread has a line in its hands.
    writing: bool,
}

impl Queue {
    /// A queue whose lines a new thread gives to `write`. After lines were dropped and the rest has been written, `told` hears
    /// how many it were.
    pub fn start(
        name: &str,
        mut write: impl FnMut(&[u8]) -> io::Result<()> + Send + 'static,
        told: impl Fn(u64) + Send + 'static,
    ) -> Arc<Self> {
        let queue = Arc::new(Self::default());
        let for_thread = Arc::clone(&queue);
        let started = thread::Builder::new().name(name.to_owned()).spawn(move || {
            let mut known = 0;
            loop {
                let line = for_thread.next();
                if write(&line).is_err() {
                    for_thread.dropped.fetch_add(1, Ordering::Relaxed);
                } else if for_thread.state().lines.is_empty() {
                    let dropped = for_thread.dropped.load(Ordering::Relaxed);
                    if dropped > known {
                        // Before the line counts as written, so that who waits for the last one waits for this too.
                        told(dropped - known);
                    }
                    known = dropped;
                }
                for_thread.written();
            }
        });
        // Without the thread the queue fills, and what comes then is counted as dropped, which it is.
        drop(started);
        queue
    }

    /// Puts a line into the queue, or drops it where there is no room.
    pub fn push(&self, line: &[u8]) {
        let mut state = self.state();
        if state.lines.len() == MAX_LINES || state.bytes + line.len() > MAX_BYTES {
            drop(state);
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        state.bytes += line.len();
        state.lines.push_back(line.into());
        drop(state);
        self.changed.notify_all();
    }

    /// How many lines were dropped.
    pub fn dropped(&self) -> &Arc<AtomicU64> {
        &self.dropped
    }

    /// Waits until everything is written, for this long at most.
    pub fn flush(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut state = self.state();
        while state.writing || !state.lines.is_empty() {
            let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) else {
                return;
            };
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn next(&self) -> Box<[u8]> {
        let mut state = self.state();
        loop {
            if let Some(line) = state.lines.pop_front() {
                state.bytes -= line.len();
                state.writing = true;
                return line;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn written(&self) {
        self.state().writing = false;
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes all of a line, also to a descriptor that was made non-blocking by a program that shares it.
pub fn write_patiently(to: &mut impl Write, mut line: &[u8]) -> io::Result<()> {
    while !line.is_empty() {
        match to.write(line) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => line = line.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(RETRY),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Longer than any of this takes on a busy machine.
    const LIMIT: Duration = Duration::from_secs(60);

    #[test]
    fn lines_come_out_whole_and_in_order() {
        let (sender, lines) = mpsc::channel();
        let write = move |line: &[u8]| sender.send(line.to_vec()).map_err(io::Error::other);
        let queue = Queue::start("test", write, |_| panic!("nothing was dropped"));
        for number in 0..1000 {
            queue.push(number.to_string().as_bytes());
        }
        queue.flush(LIMIT);
        let written: Vec<Vec<u8>> = lines.try_iter().collect();
        assert_eq!(written, (0..1000).map(|number| number.to_string().into_bytes()).collect::<Vec<_>>());
    }

    #[test]
    fn a_reader_that_does_not_read_costs_lines_and_no_time_and_hears_how_many() {
        let (go, wait) = mpsc::channel::<()>();
        let (sender, told) = mpsc::channel();
        let write = move |_: &[u8]| {
            // An error means that the reader reads everything from now on.
            let _ = wait.recv();
            Ok(())
        };
        let queue = Queue::start("test", write, move |dropped| sender.send(dropped).unwrap());
        queue.push(b"the thread has this one");
        while !queue.state().writing {
            thread::yield_now();
        }
        for _ in 0..MAX_LINES + 5 {
            queue.push(b"line");
        }
        assert_eq!(queue.dropped().load(Ordering::Relaxed), 5);
        queue.flush(Duration::from_millis(1));
        assert_eq!(queue.state().lines.len(), MAX_LINES, "to flush waits for a limited time");
        drop(go);
        assert_eq!(told.recv_timeout(LIMIT), Ok(5));
    }

    #[test]
    fn bytes_are_bounded_too() {
        let (_go, wait) = mpsc::channel::<()>();
        let queue = Queue::start("test", move |_| wait.recv().map_err(io::Error::other), |_| {});
        for _ in 0..20 {
            queue.push(&vec![b'x'; MAX_BYTES / 4]);
        }
        let state = queue.state();
        assert!(state.bytes <= MAX_BYTES && queue.dropped().load(Ordering::Relaxed) >= 15, "{} bytes", state.bytes);
        drop(state);
        queue.push(&vec![b'x'; MAX_BYTES + 1]);
        assert!(queue.dropped().load(Ordering::Relaxed) >= 16);
    }

    #[test]
    fn a_reader_that_is_gone_drops_lines_and_one_that_comes_back_hears_of_them() {
        let mut calls = 0;
        let write = move |_: &[u8]| {
            calls += 1;
            if calls <= 3 { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
        };
        let (sender, told) = mpsc::channel();
        let queue = Queue::start("test", write, move |dropped| sender.send(dropped).unwrap());
        for _ in 0..4 {
            queue.push(b"line");
        }
        assert_eq!(told.recv_timeout(LIMIT), Ok(3));
        assert_eq!(queue.dropped().load(Ordering::Relaxed), 3);
    }

    #[test]
    fn a_descriptor_that_does_not_wait_is_tried_again() {
        struct Reluctant(Vec<u8>, u32);
        impl Write for Reluctant {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.1 += 1;
                match self.1 % 3 {
                    0 => Err(io::ErrorKind::WouldBlock.into()),
                    1 => Err(io::ErrorKind::Interrupted.into()),
                    _ => {
                        self.0.extend(bytes.iter().take(2));
                        Ok(bytes.len().min(2))
                    }
                }
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut to = Reluctant(Vec::new(), 0);
        write_patiently(&mut to, b"a line").unwrap();
        assert_eq!(to.0, b"a line");
    }
}

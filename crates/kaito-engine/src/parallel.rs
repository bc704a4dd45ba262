//! Threads of the host, for work that is not the device's: choosing tokens.

use kaito_kernels::ThreadPool;

/// Threads that share out the pieces of a piece of work.
///
/// Where the device is the processor these are the threads that compute, so that there is one set of them.
pub trait Parallel: Send + Sync + 'static {
    /// Calls `task(0)`, .., `task(pieces - 1)`, each once, in any order and on any thread, and returns when all have
    /// returned. A panic in a piece goes on in the caller.
    fn for_each(&self, pieces: usize, task: &(dyn Fn(usize) + Sync));
}

impl Parallel for ThreadPool {
    fn for_each(&self, pieces: usize, task: &(dyn Fn(usize) + Sync)) {
        ThreadPool::for_each(self, pieces, task);
    }
}

//! The processor's time, which other processes do not lengthen.

/// Seconds that this thread has run, where the system knows.
pub fn time_on_core() -> Option<f64> {
    #[cfg(unix)]
    {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the structure is this function's own.
        if unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) } == 0 {
            return Some(time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9);
        }
    }
    None
}

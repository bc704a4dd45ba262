//! Names the mapped file that ends the process because it was truncated.
//!
//! Reading a page beyond the end of a truncated file, or one that the disk cannot read, raises SIGBUS, whose default action ends
//! the process without a message. The handler here writes a line that was prepared when the file was mapped, and then
//! lets the process end as it would have ended. It takes no lock and allocates no memory.

use std::{
    os::unix::ffi::OsStrExt,
    path::Path,
    ptr,
    sync::{
        Mutex, Once, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering},
    },
};

/// Files that can be named at one time; those beyond are not.
const MAX_FILES: usize = 512;
const MAX_LINE: usize = 1024;
const BEFORE: &[u8] = b"error: ";
const AFTER: &[u8] =
    b" was truncated or can no longer be read while its weights are in use, so that the process ends (SIGBUS); \
    write another file and rename it into place instead of changing this one\n";
/// How long a full pipe may keep the process from its end, in milliseconds.
const WRITE_TIMEOUT: libc::c_int = 1000;

/// A mapped range and the line for its loss.
struct Entry {
    /// 0 where the entry is free. Set after all else of the entry.
    start: AtomicUsize,
    end: AtomicUsize,
    line_bytes: AtomicUsize,
    line: [AtomicU8; MAX_LINE],
}

static TABLE: [Entry; MAX_FILES] = [const {
    Entry {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        line_bytes: AtomicUsize::new(0),
        line: [const { AtomicU8::new(0) }; MAX_LINE],
    }
}; MAX_FILES];
/// Held while an entry is taken or given back; the handler does without.
static WRITING: Mutex<()> = Mutex::new(());
/// What the process did on SIGBUS before.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();
static SAID: AtomicBool = AtomicBool::new(false);

/// A file's place in the table, for as long as it is mapped.
#[derive(Debug)]
pub(super) struct Named(usize);

impl Named {
    /// Prepares the line of a file that is mapped to `bytes`. `None` if the table is full or there is nothing to read.
    pub(super) fn new(path: &Path, bytes: &[u8]) -> Option<Self> {
        static INSTALLED: Once = Once::new();
        INSTALLED.call_once(install);
        if bytes.is_empty() {
            return None;
        }
        let _writing = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
        let (index, entry) = TABLE.iter().enumerate().find(|(_, entry)| entry.start.load(Ordering::Relaxed) == 0)?;
        let path = path.as_os_str().as_bytes();
        // If the path is too long, its end says more than its beginning.
        let kept = MAX_LINE - BEFORE.len() - AFTER.len();
        let path = &path[path.len().saturating_sub(kept)..];
        // A name with line ends must not look like further lines of the log.
        let shown = path.iter().map(|byte| if byte.is_ascii_control() { b'?' } else { *byte });
        let mut line_bytes = 0;
        for (place, byte) in entry.line.iter().zip(BEFORE.iter().copied().chain(shown).chain(AFTER.iter().copied())) {
            place.store(byte, Ordering::Relaxed);
            line_bytes += 1;
        }
        entry.line_bytes.store(line_bytes, Ordering::Relaxed);
        let start = bytes.as_ptr().addr();
        entry.end.store(start + bytes.len(), Ordering::Relaxed);
        entry.start.store(start, Ordering::Release);
        Some(Self(index))
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        let _writing = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
        TABLE[self.0].start.store(0, Ordering::Release);
    }
}

fn install() {
    // SAFETY: all bytes zero are a value of this structure of the system, which the call fills.
    let mut previous: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: a null pointer asks for the action alone.
    if unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), &mut previous) } != 0 {
        return;
    }
    // Set before the handler can be called.
    let _ = PREVIOUS.set(previous);
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_bus_error;
    // SAFETY: as above.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as *const () as libc::sighandler_t;
    // A thread that has a stack for signals may have none left of its own.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler has the signature that SA_SIGINFO stands for, and does nothing that a handler must not do.
    unsafe {
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigaction(libc::SIGBUS, &action, ptr::null_mut());
    }
}

extern "C" fn on_bus_error(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the system gives a handler with SA_SIGINFO a valid structure. A positive code says that it is a fault, which
    // has an address; another process may have sent the signal.
    let fault = unsafe { ((*info).si_code > 0).then(|| (*info).si_addr().addr()) };
    match fault.map(lost) {
        Some(Some(entry)) => {
            say(entry);
            restore(None);
        }
        // The fault of another mapping may be for the handler that was installed before.
        Some(None) => restore(PREVIOUS.get()),
        None => restore(None),
    }
    // SAFETY: a call that handlers may make. The signal is blocked here, and so comes when this function returns.
    unsafe { libc::raise(libc::SIGBUS) };
}

/// The mapped file that an address lies in.
fn lost(address: usize) -> Option<&'static Entry> {
    TABLE.iter().find(|entry| {
        let start = entry.start.load(Ordering::Acquire);
        start != 0 && (start..entry.end.load(Ordering::Relaxed)).contains(&address)
    })
}

fn say(entry: &Entry) {
    if SAID.swap(true, Ordering::Relaxed) {
        // Another thread is writing the line, and then ends the process.
        // SAFETY: no descriptors: it waits.
        unsafe { libc::poll(ptr::null_mut(), 0, 2 * WRITE_TIMEOUT) };
        return;
    }
    let mut stderr = libc::pollfd { fd: libc::STDERR_FILENO, events: libc::POLLOUT, revents: 0 };
    // SAFETY: one descriptor. Nobody may be reading the other end of a pipe.
    if unsafe { libc::poll(&mut stderr, 1, WRITE_TIMEOUT) } <= 0 {
        return;
    }
    // SAFETY: atomic bytes have the layout of bytes; the length is within them.
    unsafe { libc::write(stderr.fd, entry.line.as_ptr().cast(), entry.line_bytes.load(Ordering::Relaxed)) };
}

/// Leaves the signal to what was there before; to the system if it was nothing.
fn restore(previous: Option<&libc::sigaction>) {
    // SAFETY: all bytes zero are a value of this structure, and name the system's own action.
    let system: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: a valid action.
    unsafe { libc::sigaction(libc::SIGBUS, previous.unwrap_or(&system), ptr::null_mut()) };
}

//! The log on stderr, and what long-running commands print beside it. No thread that does work waits for a reader.

pub mod escape;
mod queue;

use std::{
    any::Any,
    backtrace::{Backtrace, BacktraceStatus},
    fs::File,
    io::{self, IsTerminal, LineWriter, Write},
    os::fd::AsFd,
    panic::{self, PanicHookInfo},
    sync::{Arc, LazyLock, atomic::AtomicU64},
    thread,
    time::Duration,
};

use anyhow::Context;
use tracing_subscriber::{EnvFilter, fmt};

use self::queue::{Queue, write_patiently};
use crate::{
    args::{LogFormat, LoggingArgs},
    progress,
};

/// How long the end of the process waits for its last lines to be read.
const FLUSH_TIME: Duration = Duration::from_secs(1);

static STDERR: LazyLock<Arc<Queue>> = LazyLock::new(|| {
    let stderr = io::stderr();
    let bars = stderr.is_terminal();
    let mut out = Unlocked::of(&stderr, Box::new(io::stderr()));
    let write = move |line: &[u8]| {
        // Lines go above the progress bars instead of through them.
        if bars { progress::bars().suspend(|| out.write(line)) } else { out.write(line) }
    };
    let told = |lines| tracing::warn!(lines, "lines of the log were dropped, for nobody read them");
    Queue::start("log", write, told)
});

static STDOUT: LazyLock<Arc<Queue>> = LazyLock::new(|| {
    let mut out = Unlocked::of(&io::stdout(), Box::new(io::stdout()));
    Queue::start("output", move |line| out.write(line), |_| {})
});

/// A descriptor of its own: the thread that waits for a reader holds no lock that others may want.
struct Unlocked(Box<dyn Write + Send>);

impl Unlocked {
    fn of(stream: &impl AsFd, otherwise: Box<dyn Write + Send>) -> Self {
        Self(stream.as_fd().try_clone_to_owned().map_or(otherwise, |descriptor| Box::new(File::from(descriptor))))
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        write_patiently(&mut self.0, line)?;
        self.0.flush()
    }
}

/// Sends the log to stderr; `default` is what is logged unless the user says otherwise.
pub fn init(args: &LoggingArgs, default: &str) -> anyhow::Result<()> {
    let filter = args.log.as_deref().unwrap_or(default);
    let filter = EnvFilter::try_new(filter)
        .with_context(|| format!("--log {filter:?} is no level (error, warn, info, debug, trace) nor a filter"))?;
    let builder = fmt().with_env_filter(filter);
    match args.log_format {
        LogFormat::Text => {
            let colours = io::stderr().is_terminal();
            builder.with_writer(move || TextLine { colours }).with_ansi(colours).with_target(false).init();
        }
        LogFormat::Json => builder.with_writer(|| JsonLine).json().flatten_event(true).init(),
    }
    panic::set_hook(Box::new(log_panic));
    Ok(())
}

/// The number of lines that were dropped.
pub fn dropped_lines() -> Arc<AtomicU64> {
    Arc::clone(STDERR.dropped())
}

/// Writes text to stderr between the lines of the log, as it is.
pub fn say(text: &str) {
    STDERR.push(text.as_bytes());
}

/// Passes on lines of another program as they are, to stdout or to stderr.
pub fn pass_on(to_stdout: bool, lines: &[u8]) {
    let queue = if to_stdout { &STDOUT } else { &STDERR };
    queue.push(lines);
}

/// A stdout for commands that go on when nobody reads what they print. It writes whole lines, escaped as those of the log.
pub fn patient_stdout() -> impl Write {
    LineWriter::new(ToStdout)
}

/// When dropped, waits a moment for the last lines to be read.
pub struct FlushAtEnd;

impl Drop for FlushAtEnd {
    fn drop(&mut self) {
        for queue in [&STDOUT, &STDERR] {
            queue.flush(FLUSH_TIME);
        }
    }
}

/// An event in the text format, which comes in one piece.
struct TextLine {
    colours: bool,
}

impl Write for TextLine {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let mut line = escape::log_line(text.strip_suffix('\n').unwrap_or(&text), self.colours).into_owned();
        line.push('\n');
        STDERR.push(line.as_bytes());
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An event as JSON, in which there are no control characters.
struct JsonLine;

impl Write for JsonLine {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        STDERR.push(event);
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct ToStdout;

impl Write for ToStdout {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let shown: Vec<_> = text
            .split(|byte| *byte == b'\n')
            .map(|line| escape::line(&String::from_utf8_lossy(line)).into_owned())
            .collect();
        STDOUT.push(shown.join("\n").as_bytes());
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Panics go into the log as other events do; the default hook would wait until somebody reads stderr.
fn log_panic(info: &PanicHookInfo<'_>) {
    let message = message(info.payload());
    let location = info.location().map(ToString::to_string).unwrap_or_default();
    let current = thread::current();
    let thread = current.name().unwrap_or("unnamed");
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    if tracing::enabled!(tracing::Level::ERROR) {
        tracing::error!(thread, location, backtrace, "panic: {message}");
    } else {
        say(&format!("error: the thread {thread} panicked at {location}: {}\n", escape::line(message)));
    }
}

fn message(payload: &(dyn Any + Send)) -> &str {
    let owned = payload.downcast_ref::<String>().map(String::as_str);
    payload.downcast_ref::<&str>().copied().or(owned).unwrap_or("for an unknown reason")
}

//! An engine's output: passed through, line by line, and its end is kept.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::io::{AsyncRead, AsyncReadExt};

use crate::{
    fault::EngineFault,
    progress::{self, STARTED},
};

/// The longest piece that is passed on at once, in bytes; a longer line comes in several.
const MAX_PIECE: usize = 16 << 10;
/// How many lines are kept, and how many characters of each. A traceback of vLLM's, told by several of its processes, is longer than one
/// thinks.
const KEPT_LINES: usize = 400;
const KEPT_CHARACTERS: usize = 500;

/// Which of its streams a line of an engine belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Its standard output.
    Out,
    /// Its standard error.
    Err,
}

/// Words by which a line says that another one says why.
const ELSEWHERE: [&str; 6] = [
    "See root cause above",
    "See stack trace for root cause",
    "EngineDeadError",
    "EngineCore encountered an issue",
    "resource_tracker",
    "leaked shared_memory",
];

/// What is kept of an engine's output.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    lines: VecDeque<String>,
    phase: Option<String>,
}

impl Kept {
    fn add(&mut self, line: &str) {
        let line: String = line.trim().chars().take(KEPT_CHARACTERS).collect();
        if line.is_empty() {
            return;
        }
        // What it logs once it answers is no start.
        if self.phase.as_deref() != Some(STARTED)
            && let Some(phase) = progress::phase(&line)
        {
            self.phase = Some(phase);
        }
        if self.lines.len() == KEPT_LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    /// How far its start is.
    pub(crate) fn phase(&self) -> Option<&str> {
        self.phase.as_deref()
    }

    /// The line that says most about why it ended: one of a known fault, else the last that names an error, else the last.
    pub(crate) fn last_words(&self) -> Option<String> {
        let known = self.lines.iter().filter_map(|line| EngineFault::of(line).map(|fault| (fault, line)));
        // Of several of one fault it is the first, which caused the others.
        let known = known.reduce(|best, other| if other.0 < best.0 { other } else { best });
        let says = |line: &&String| !ELSEWHERE.iter().any(|words| line.contains(words));
        let names_error =
            |line: &&String| line.contains("Error: ") || line.contains("error: ") || line.contains("Exception: ");
        let chosen = known
            .map(|(_, line)| line)
            .or_else(|| self.lines.iter().filter(says).rfind(names_error))
            .or_else(|| self.lines.iter().rfind(says))
            .or_else(|| self.lines.back());
        chosen.cloned()
    }
}

/// What is kept, for whoever reads an output and whoever asks about it.
#[derive(Debug, Clone, Default)]
pub(crate) struct SharedKept(Arc<Mutex<Kept>>);

impl SharedKept {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Cuts bytes into lines, each with the byte that ends it: a line feed, or the carriage return of a progress bar.
#[derive(Debug, Default)]
struct Lines(Vec<u8>);

impl Lines {
    fn feed(&mut self, bytes: &[u8], mut line: impl FnMut(&[u8])) {
        for &byte in bytes {
            self.0.push(byte);
            if matches!(byte, b'\n' | b'\r') || self.0.len() == MAX_PIECE {
                line(&self.0);
                self.0.clear();
            }
        }
    }

    fn end(&mut self, mut line: impl FnMut(&[u8])) {
        if !self.0.is_empty() {
            self.0.push(b'\n');
            line(&self.0);
            self.0.clear();
        }
    }
}

/// Passes on what comes, until there is no more.
pub(crate) async fn relay(mut from: impl AsyncRead + Unpin, stream: Stream, kept: SharedKept, to: fn(Stream, &[u8])) {
    let mut lines = Lines::default();
    let line = |line: &[u8]| {
        to(stream, line);
        kept.lock().add(&String::from_utf8_lossy(line));
    };
    let mut bytes = [0; 8 << 10];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        lines.feed(bytes.get(..count).unwrap_or_default(), line);
    }
    lines.end(line);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kept(lines: &[&str]) -> Kept {
        let mut kept = Kept::default();
        lines.iter().for_each(|line| kept.add(line));
        kept
    }

    #[test]
    fn last_words_are_those_that_say_why() {
        for (lines, expected) in [
            (&["", "  "][..], None),
            (&["one", "two", ""], Some("two")),
            (&["ValueError: no", "  at line 3"], Some("ValueError: no")),
            (
                &[
                    "ERROR torch.OutOfMemoryError: CUDA out of memory.",
                    "RuntimeError: [pair.cc:544] Connection closed by peer",
                    "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
                    "bye",
                ],
                Some("ERROR torch.OutOfMemoryError: CUDA out of memory."),
            ),
            (
                &[
                    "OSError: [Errno 14] Bad address",
                    "RuntimeError: Engine core initialization failed. See root cause above.",
                ],
                Some("OSError: [Errno 14] Bad address"),
            ),
            (
                &["EngineDeadError: it is dead. See root cause above"],
                Some("EngineDeadError: it is dead. See root cause above"),
            ),
        ] {
            assert_eq!(kept(lines).last_words().as_deref(), expected, "{lines:?}");
        }
    }

    #[test]
    fn the_phase_is_the_last_one_of_the_start() {
        let mut kept =
            kept(&["Starting to load model x", "Loading safetensors checkpoint shards:  43% Completed", "other"]);
        assert_eq!(kept.phase(), Some("loading weights, 43 %"));
        kept.add("INFO: Application startup complete.");
        kept.add("GPU KV cache size: 3");
        assert_eq!(kept.phase(), Some(STARTED));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut kept = Kept::default();
        let long = "é".repeat(2 * KEPT_CHARACTERS);
        (0..2 * KEPT_LINES).for_each(|_| kept.add(&long));
        assert_eq!(kept.lines.len(), KEPT_LINES);
        assert!(kept.lines.iter().all(|line| line.chars().count() == KEPT_CHARACTERS));
    }

    proptest! {
        #[test]
        fn nothing_of_an_output_is_lost_wherever_it_is_cut(
            bytes in prop::collection::vec(prop::sample::select(b"ab\r\n\xff".to_vec()), 0..200),
            size in 1_usize..20,
        ) {
            let mut lines = Lines::default();
            let mut passed = Vec::new();
            for piece in bytes.chunks(size) {
                lines.feed(piece, |line| passed.push(line.to_vec()));
            }
            lines.end(|line| passed.push(line.to_vec()));
            let ends_a_line = bytes.last().is_none_or(|byte| matches!(byte, b'\r' | b'\n'));
            let expected = if ends_a_line { bytes } else { [bytes.as_slice(), b"\n"].concat() };
            prop_assert!(passed.iter().all(|line| line.iter().filter(|byte| matches!(byte, b'\r' | b'\n')).count() == 1));
            prop_assert_eq!(passed.concat(), expected);
        }
    }
}

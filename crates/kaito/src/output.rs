//! What commands print. A reader that goes away early, as in `kaito presets | head`, is no failure of any command.

use std::io::{self, Write};

use anyhow::Context;

/// The reader of the output has closed it, so there is no reason to go on.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads the output any more")]
pub struct ReaderGone;

/// Writes a part of the output to stdout.
///
/// # Errors
///
/// [`ReaderGone`], which ends a command quietly, and the system's errors.
pub fn write(text: &str) -> anyhow::Result<()> {
    write_to(&mut io::stdout().lock(), text)
}

/// Writes the whole output of a command, whose status does not depend on whether anybody reads it.
///
/// # Errors
///
/// The system's.
pub fn print(text: &str) -> anyhow::Result<()> {
    write(text).or_else(|error| if error.is::<ReaderGone>() { Ok(()) } else { Err(error) })
}

/// Writes to stderr, which may have no reader either.
pub fn note(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

fn write_to(out: &mut impl Write, text: &str) -> anyhow::Result<()> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(ReaderGone.into()),
        outcome => outcome.context("cannot write to stdout"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Failing(io::ErrorKind);

    impl Write for Failing {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(self.0.into())
        }
    }

    #[test]
    fn only_the_end_of_the_reader_is_no_failure() {
        for (kind, gone) in [(io::ErrorKind::BrokenPipe, true), (io::ErrorKind::StorageFull, false)] {
            let error = write_to(&mut Failing(kind), "text").unwrap_err();
            assert_eq!(error.is::<ReaderGone>(), gone, "{kind:?}");
        }
        assert!(write_to(&mut Failing(io::ErrorKind::StorageFull), "").is_err(), "what was buffered counts");
    }
}

//! Errors: what Python would raise, and what a limit or a caller ends.

use thiserror::Error;

/// Why a template can't be parsed or rendered.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum Error {
    /// It is not a Jinja2 template.
    #[error("line {line}: {message}")]
    Syntax {
        /// Line of the template, from 1.
        line: u32,
        /// What is wrong there.
        message: String,
    },
    /// The template called `raise_exception`.
    #[error("{message}")]
    Raised {
        /// With this text.
        message: String,
    },
    /// An operation of the template failed, as it does in Python, or is one that is not supported.
    #[error("line {line}: {message}")]
    Failed {
        /// Line of the template, from 1.
        line: u32,
        /// What went wrong.
        message: String,
    },
    /// The template exceeds a limit of steps, memory or depth.
    #[error("{message}")]
    Limit {
        /// Which limit, and its size.
        message: String,
    },
    /// The caller no longer wants the rendering.
    #[error("rendering the template was cancelled")]
    Cancelled,
}

/// The kinds of exceptions that Python code tells apart, and ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Type,
    Value,
    Lookup,
    Overflow,
    ZeroDivision,
    Runtime,
    Undefined,
    Raised,
    Unsupported,
    Limit,
    Cancelled,
}

#[derive(Debug)]
struct Inner {
    kind: Kind,
    message: String,
    line: u32,
}

/// An error inside the evaluator: boxed to the size of a pointer, since it is in every result.
#[derive(Debug)]
pub(crate) struct Fault(Box<Inner>);

pub(crate) type Outcome<T> = Result<T, Fault>;

/// Longest part of a value that a message quotes, in characters.
const QUOTED: usize = 80;

/// A string as an error message quotes it.
pub(crate) fn quoted(text: &str) -> String {
    match text.char_indices().nth(QUOTED) {
        None => format!("'{text}'"),
        Some((at, _)) => format!("'{}...'", &text[..at]),
    }
}

impl Fault {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind, message: message.into(), line: 0 }))
    }

    pub(crate) fn type_error(message: impl Into<String>) -> Self {
        Self::new(Kind::Type, message)
    }

    pub(crate) fn value_error(message: impl Into<String>) -> Self {
        Self::new(Kind::Value, message)
    }

    pub(crate) fn lookup(message: impl Into<String>) -> Self {
        Self::new(Kind::Lookup, message)
    }

    pub(crate) fn runtime(message: impl Into<String>) -> Self {
        Self::new(Kind::Runtime, message)
    }

    pub(crate) fn unsupported(what: impl std::fmt::Display) -> Self {
        Self::new(Kind::Unsupported, format!("{what} is not supported in chat templates here"))
    }

    pub(crate) fn limit(message: impl Into<String>) -> Self {
        Self::new(Kind::Limit, message)
    }

    pub(crate) fn kind(&self) -> Kind {
        self.0.kind
    }

    /// Names the line of the template, unless a line further in was named already.
    pub(crate) fn at(mut self, line: u32) -> Self {
        if self.0.line == 0 {
            self.0.line = line;
        }
        self
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        let Inner { kind, message, line } = *fault.0;
        match kind {
            Kind::Raised => Self::Raised { message },
            Kind::Limit => Self::Limit { message },
            Kind::Cancelled => Self::Cancelled,
            _ => Self::Failed { line, message },
        }
    }
}

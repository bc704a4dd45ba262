use std::{io, path::PathBuf};

/// Why a download failed, and what can be done about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not the name of a repository.
    #[error("{given:?} is not a hub repository (organisation/name): {why}")]
    InvalidRepo {
        /// What was given.
        given: String,
        /// What is wrong with it.
        why: String,
    },
    /// An environment variable or option has a value that cannot be used.
    #[error("{name} cannot be used: {why}")]
    InvalidSetting {
        /// The variable.
        name: &'static str,
        /// What is wrong with its value.
        why: String,
    },
    /// No answer, or none that could be used, after all attempts.
    #[error(
        "{url} could not be fetched in {attempts} attempts: {cause}; check the network (HF_ENDPOINT names another hub, \
         HTTPS_PROXY a proxy), or download the model elsewhere and give its directory"
    )]
    Unreachable {
        /// What was asked for.
        url: String,
        /// How many times in a row.
        attempts: u32,
        /// The last failure.
        cause: String,
    },
    /// The hub has no such repository, or does not show it.
    #[error("the hub at {endpoint} has no model repository {repo}{}", private_hint(*.token_given))]
    RepoNotFound {
        /// The repository.
        repo: String,
        /// The hub.
        endpoint: String,
        /// Whether a token was sent.
        token_given: bool,
    },
    /// The repository has no such branch, tag or commit.
    #[error("{repo} has no revision {revision:?}")]
    RevisionNotFound {
        /// The repository.
        repo: String,
        /// The revision.
        revision: String,
    },
    /// The repository's terms have to be accepted first.
    #[error("{repo} is gated: {}", gated_hint(page, *.token_given))]
    Gated {
        /// The repository.
        repo: String,
        /// Where its terms are.
        page: String,
        /// Whether a token was sent.
        token_given: bool,
    },
    /// The token is wrong, expired, or may not read this.
    #[error(
        "the hub refuses the given token for {repo} (status {status}): check HF_TOKEN or the token file, and that the \
         token may read this repository"
    )]
    TokenRefused {
        /// The repository.
        repo: String,
        /// 401 or 403.
        status: u16,
    },
    /// An answer that breaks the protocol, or an unexpected refusal.
    #[error("{url}: {what}")]
    Protocol {
        /// What was asked for.
        url: String,
        /// What came.
        what: String,
    },
    /// The repository holds nothing that can be loaded.
    #[error("{repo} holds no model that can be served: {why}")]
    NoModel {
        /// The repository.
        repo: String,
        /// What it lacks and what it has.
        why: String,
    },
    /// The contents are not those that the hub announced.
    #[error(
        "{file} of {repo} arrived damaged twice: its SHA-256 is {actual}, the hub announces {expected}; something \
         between this machine and the hub may be changing downloads"
    )]
    Damaged {
        /// The repository.
        repo: String,
        /// The file.
        file: String,
        /// The announced digest.
        expected: String,
        /// The digest of what came.
        actual: String,
    },
    /// Downloads are forbidden, and the cache does not hold the complete model.
    #[error(
        "{repo} is not in the cache at {cache}: {why}; HF_HUB_OFFLINE forbids downloads: run once without it, or give \
         the model's directory"
    )]
    NotCached {
        /// The repository.
        repo: String,
        /// The cache.
        cache: String,
        /// What is missing.
        why: String,
    },
    /// The disk has too little room.
    #[error(
        "the disk of {path} has too little room: {needed} bytes are needed, {available} are free; free some, or set \
         HF_HUB_CACHE to a folder on another disk"
    )]
    DiskFull {
        /// The cache.
        path: PathBuf,
        /// Bytes still to be written.
        needed: u64,
        /// Bytes free.
        available: u64,
    },
    /// The cache could not be read or written.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

fn private_hint(token_given: bool) -> &'static str {
    if token_given {
        ": check the name, and that the given token may read it if it is private"
    } else {
        ": check the name; if it is private, set HF_TOKEN to a token that may read it"
    }
}

fn gated_hint(page: &str, token_given: bool) -> String {
    if token_given {
        format!("the account of the given token has no access to it yet: accept its terms at {page}")
    } else {
        format!("accept its terms at {page}, then set HF_TOKEN to a token of that account")
    }
}

/// `map_err` for operations on the cache.
pub(crate) fn io_error(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
    let path = path.into();
    move |source| Error::Io { action, path, source }
}

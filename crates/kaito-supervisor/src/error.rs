//! Why a supervisor ends with a failure.

use std::{io, net::SocketAddr, path::PathBuf};

use crate::protocol::Ended;

/// Why a supervisor could not do its work, or its engine ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A rank that there is not.
    #[error("--rank {rank}: with --ranks {ranks} the ranks are 0 to {}", .ranks.saturating_sub(1))]
    Rank {
        /// The number that was asked for.
        rank: usize,
        /// How many there are.
        ranks: usize,
    },
    /// A rank other than 0 that does not know where rank 0 is.
    #[error("--rank {rank} needs --first HOST, the name or address of rank 0's supervisor")]
    NoFirst {
        /// Its number.
        rank: usize,
    },
    /// Nothing to run.
    #[error("no program to run: give the engine's command line after --, as in `kaito supervise -- vllm serve MODEL`")]
    NoProgram,
    /// The address can't be listened on.
    #[error("cannot listen on {address}; --host and --port choose another address")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// No requests can be sent.
    #[error(transparent)]
    Client(#[from] kaito_client::Error),
    /// The engine ended although nobody had told it to.
    #[error("the engine {0}")]
    EngineEnded(Ended),
    /// This program can't be copied.
    #[error("cannot copy this program to {}", .path.display())]
    Install {
        /// Where to.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

//! Why a model can't be loaded or a request can't be served, in sentences for people.

use std::time::Duration;

use crate::{
    device::{DeviceError, DeviceErrorKind},
    generate::{GenerateError, ParameterError},
};
use kaito_model::{checkpoint::CheckpointError, tokenizer::TokenizerError};

/// Any failure of the engine.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request can't be served as it stands.
    #[error("{0}")]
    InvalidRequest(String),
    /// The request needs more than the model was loaded with.
    #[error("{}", self.sentence(&own_name))]
    OverLimit {
        /// What it needs, and what there is.
        what: String,
        /// The field of [`LoadOptions`](crate::LoadOptions) that decides what there is.
        setting: &'static str,
    },
    /// A parameter of the request has a wrong name, type or value.
    #[error(transparent)]
    Parameter(#[from] ParameterError),
    /// The scores of this request leave nothing to choose from.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// The tokenizer is damaged, or can't render or encode what was sent.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The model's weights or configuration are missing, damaged or of a kind that isn't supported.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The queue is full.
    #[error("{waiting} requests are waiting and at most {limit} may; try again later")]
    TooBusy {
        /// Requests in the queue.
        waiting: usize,
        /// The most that may wait.
        limit: usize,
    },
    /// No new requests are taken.
    #[error("the server is shutting down and takes no new requests")]
    ShuttingDown,
    /// The request's stream was dropped.
    #[error("the request was cancelled")]
    Cancelled,
    /// The engine's thread is gone.
    #[error("the engine has stopped")]
    EngineStopped,
    /// The model does not fit this machine or these settings.
    #[error("{0}")]
    Load(String),
    /// Not one sequence fits the memory.
    #[error("{}", self.sentence(&own_name))]
    NoRoom {
        /// Length of the sequence.
        tokens: usize,
        /// Memory for its KV cache, in MiB.
        needed_mib: u64,
        /// Memory that there is for them, in MiB.
        available_mib: u64,
    },
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The engine elsewhere that computes failed on the request, or answers what no engine of its kind does.
    #[error("the engine at {engine} {fault}")]
    Upstream {
        /// Where it is.
        engine: String,
        /// What it does, as the rest of a sentence.
        fault: String,
    },
    /// The engine elsewhere that computes did not come back in time.
    #[error("the engine at {engine} is away since {} s: {cause}; try again later", waited.as_secs())]
    UpstreamAway {
        /// Where it should be.
        engine: String,
        /// Why it does not answer.
        cause: String,
        /// How long the request waited for it.
        waited: Duration,
    },
    /// A defect of the engine.
    #[error("{0}")]
    Internal(String),
}

/// What a failure means to the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request must change.
    InvalidRequest,
    /// The same request may succeed later.
    TooBusy,
    /// Another server must take it.
    ShuttingDown,
    /// The model can't be served here.
    Load,
    /// The engine elsewhere that computes is at fault.
    Upstream,
    /// The engine elsewhere that computes is away; the same request may succeed later.
    UpstreamAway,
    /// The engine is at fault.
    Internal,
}

/// A setting, called as the field of `LoadOptions` that it is.
fn own_name(setting: &str) -> String {
    format!("`{setting}`")
}

impl Error {
    /// What this failure says, with settings called as `name` has it: the user of a program may know the field
    /// `max_batch_size` of [`LoadOptions`](crate::LoadOptions) as a flag of the command line.
    pub fn sentence(&self, name: &dyn Fn(&str) -> String) -> String {
        match self {
            Self::OverLimit { what, setting } => format!("{what} ({})", name(setting)),
            Self::NoRoom { tokens, needed_mib, available_mib } => format!(
                "the KV cache of one sequence of {tokens} tokens needs {needed_mib} MiB, but {available_mib} MiB are there; \
                 lower {} or raise {}",
                name("max_seq_len"),
                name("kv_cache_memory")
            ),
            other => other.to_string(),
        }
    }

    /// What this failure means to the caller.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Generate(GenerateError::ConstraintBroken { .. }) => ErrorKind::Internal,
            Self::InvalidRequest(_) | Self::OverLimit { .. } | Self::Parameter(_) | Self::Generate(_) => {
                ErrorKind::InvalidRequest
            }
            Self::Tokenizer(
                TokenizerError::Encode { .. }
                | TokenizerError::NoChatTemplate
                | TokenizerError::ChatRefused { .. }
                | TokenizerError::Unrenderable { .. }
                | TokenizerError::RequestTemplate { .. }
                | TokenizerError::ReservedVariable { .. }
                | TokenizerError::NotContinued { .. },
            ) => ErrorKind::InvalidRequest,
            Self::Tokenizer(TokenizerError::ChatTemplate { .. } | TokenizerError::Cancelled) => ErrorKind::Internal,
            Self::Upstream { .. } => ErrorKind::Upstream,
            Self::UpstreamAway { .. } => ErrorKind::UpstreamAway,
            Self::TooBusy { .. } => ErrorKind::TooBusy,
            Self::ShuttingDown => ErrorKind::ShuttingDown,
            Self::Device(error) if error.kind == DeviceErrorKind::Lost => ErrorKind::ShuttingDown,
            Self::Tokenizer(_) | Self::Checkpoint(_) | Self::Load(_) | Self::NoRoom { .. } => ErrorKind::Load,
            Self::Cancelled | Self::EngineStopped | Self::Device(_) | Self::Internal(_) => ErrorKind::Internal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_called_as_the_caller_knows_them() {
        let flag = |setting: &str| format!("--{}", setting.replace('_', "-"));
        let beams = Error::OverLimit { what: "9 beams, but at most 8 run".to_owned(), setting: "max_batch_size" };
        assert_eq!(beams.to_string(), "9 beams, but at most 8 run (`max_batch_size`)");
        assert_eq!(beams.sentence(&flag), "9 beams, but at most 8 run (--max-batch-size)");
        let room = Error::NoRoom { tokens: 2048, needed_mib: 512, available_mib: 100 };
        assert_eq!(
            room.sentence(&flag),
            "the KV cache of one sequence of 2048 tokens needs 512 MiB, but 100 MiB are there; lower --max-seq-len or \
             raise --kv-cache-memory"
        );
        assert_eq!(Error::Cancelled.sentence(&flag), Error::Cancelled.to_string());
    }
}

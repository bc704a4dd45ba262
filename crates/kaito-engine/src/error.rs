//! Why a model can't be loaded or a request can't be served, in sentences for people.

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
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A defect of the engine.
    #[error("{0}")]
    Internal(String),
}

/// What a failure means to whoever asked.
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
    /// The engine is at fault.
    Internal,
}

impl Error {
    /// What this failure means to whoever asked.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::InvalidRequest(_) | Self::Parameter(_) | Self::Generate(_) => ErrorKind::InvalidRequest,
            Self::Tokenizer(
                TokenizerError::Encode { .. } | TokenizerError::NoChatTemplate | TokenizerError::ChatRefused { .. },
            ) => ErrorKind::InvalidRequest,
            Self::Tokenizer(TokenizerError::ChatTemplate { .. } | TokenizerError::Cancelled) => ErrorKind::Internal,
            Self::TooBusy { .. } => ErrorKind::TooBusy,
            Self::ShuttingDown => ErrorKind::ShuttingDown,
            Self::Device(error) if error.kind == DeviceErrorKind::Lost => ErrorKind::ShuttingDown,
            Self::Tokenizer(_) | Self::Checkpoint(_) | Self::Load(_) => ErrorKind::Load,
            Self::Cancelled | Self::EngineStopped | Self::Device(_) | Self::Internal(_) => ErrorKind::Internal,
        }
    }
}

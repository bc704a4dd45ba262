//! Why a model's directory can't be read.

use crate::{checkpoint::CheckpointError, tokenizer::TokenizerError};

/// Any failure to read a model.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Weights or configuration are missing, damaged or of a kind that isn't supported.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The tokenizer is damaged, or can't render or encode what was given to it.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

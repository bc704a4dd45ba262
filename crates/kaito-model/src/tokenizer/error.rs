//! Why a tokenizer can't be opened or used.

use std::io;
use std::path::PathBuf;

use super::sentencepiece::ModelError;

/// Why a tokenizer can't be opened or used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The directory has no tokenizer file at all.
    #[error("{} has no tokenizer: expected tokenizer.json or tokenizer.model", directory.display())]
    Missing {
        /// The model's directory.
        directory: PathBuf,
    },
    /// A file is there but can't be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file is larger than such files may be.
    #[error("{} has {bytes} bytes, more than the {limit} that a tokenizer file may have", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// A file does not hold what it should.
    #[error("{} is damaged: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        reason: String,
    },
    /// A SentencePiece model is damaged or of a kind that isn't supported.
    #[error("{}: {source}", path.display())]
    SentencePiece {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: ModelError,
    },
    /// The file is sound but uses something that isn't supported.
    #[error("{} uses {what}, which is not supported", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The unsupported thing.
        what: String,
    },
    /// The tokenizer can't encode a text, for lack of an unknown token for instance.
    #[error("the tokenizer cannot encode this text: {reason}")]
    Encode {
        /// What the tokenizer says.
        reason: String,
    },
    /// Messages were sent to a model that has no chat template.
    #[error("this model has no chat template: send `prompt` instead of `messages`")]
    NoChatTemplate,
    /// The model's chat template is broken, or fails on these messages.
    #[error("the model's chat template fails: {reason}")]
    ChatTemplate {
        /// What the template engine says.
        reason: String,
    },
    /// The model's chat template refuses these messages (its `raise_exception`).
    #[error("the model's chat template refuses these messages: {message}")]
    ChatRefused {
        /// The template's own words.
        message: String,
    },
    /// Nobody waited for the rendered conversation any more.
    #[error("rendering the chat template was cancelled")]
    Cancelled,
}

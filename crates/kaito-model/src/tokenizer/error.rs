//! Why a tokenizer can't be opened or used.

use std::io;
use std::path::PathBuf;

use super::sentencepiece::ModelError;
use crate::checkpoint::CheckpointError;

/// Why a tokenizer can't be opened or used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The directory has no tokenizer file at all.
    #[error("{} has no tokenizer: expected tokenizer.json or tokenizer.model", directory.display())]
    Missing {
        /// The model's directory.
        directory: PathBuf,
    },
    /// The GGUF file that has the tokenizer can't be read.
    #[error(transparent)]
    Gguf(#[from] CheckpointError),
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
    /// The chat template fails on this conversation, which has other fields or values than it can handle.
    #[error("the chat template cannot render this conversation: {reason}")]
    Unrenderable {
        /// What the template engine says.
        reason: String,
    },
    /// The template that came with a conversation is none.
    #[error("the request's chat template can't be used: {reason}")]
    RequestTemplate {
        /// What the template engine says.
        reason: String,
    },
    /// The template that was to replace the model's is none.
    #[error("the given chat template can't be used: {reason}")]
    GivenTemplate {
        /// What the template engine says.
        reason: String,
    },
    /// A further variable for the template has the name of a part of the conversation.
    #[error("`{name}` is a part of the conversation and can't be a variable of its own for the chat template")]
    ReservedVariable {
        /// The name.
        name: &'static str,
    },
    /// The last message can't be continued.
    #[error("the last message can't be continued: {reason}")]
    NotContinued {
        /// Why not.
        reason: &'static str,
    },
    /// Nobody waited for the rendered conversation any more.
    #[error("rendering the chat template was cancelled")]
    Cancelled,
}

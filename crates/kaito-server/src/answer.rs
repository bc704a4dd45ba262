//! The answer to a request, as it is written.

use kaito_engine::{ChatMessage, MetaOutput, TextOutput};

use crate::dialect::{llama, text_generation};
use crate::error::ApiError;

/// An answer with more text or tokens than this is written on a thread where that keeps nobody waiting.
const LARGE: usize = 16 << 10;
/// What a token with its scores counts for: a line for itself and each of ten others.
const SCORES: usize = 1 << 10;

/// What came of a request, with what of the request its answer repeats.
pub(crate) enum Answer {
    Text { output: TextOutput, details: bool },
    Completion { prompts: Vec<String>, outputs: Vec<MetaOutput> },
    Dialogs { dialogs: Vec<Vec<ChatMessage>>, outputs: Vec<MetaOutput> },
}

impl Answer {
    /// The body of the answer.
    ///
    /// # Errors
    /// 500 when the thread that writes it is lost.
    pub(crate) async fn into_json(self) -> Result<String, ApiError> {
        if self.size() <= LARGE {
            return Ok(self.write());
        }
        let written = tokio::task::spawn_blocking(move || self.write()).await;
        written.map_err(|_| ApiError::internal("The server failed on this answer."))
    }

    /// How much there is to write, about.
    fn size(&self) -> usize {
        let of_outputs = |outputs: &[MetaOutput]| outputs.iter().map(|output| output.text.len()).sum::<usize>();
        match self {
            Self::Text { output, .. } => {
                let texts: usize = output.texts.iter().map(String::len).sum();
                let tokens: usize = output.sequences.iter().map(Vec::len).sum();
                let scored: usize = output.scores.iter().flatten().map(Vec::len).sum();
                texts + tokens + scored * SCORES
            }
            Self::Completion { prompts, outputs } => {
                prompts.iter().map(String::len).sum::<usize>() + of_outputs(outputs)
            }
            Self::Dialogs { dialogs, outputs } => {
                let messages = dialogs.iter().flatten().map(|message| message.role.len() + message.content.len());
                messages.sum::<usize>() + of_outputs(outputs)
            }
        }
    }

    fn write(self) -> String {
        match self {
            Self::Text { output, details } => text_generation::body(&output, details).to_string(),
            Self::Completion { prompts, outputs } => llama::completion_body(&prompts, &outputs).to_string(),
            Self::Dialogs { dialogs, outputs } => llama::dialogs_body(&dialogs, &outputs).to_string(),
        }
    }
}

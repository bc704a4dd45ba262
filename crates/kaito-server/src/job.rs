//! A request while the model works on it.

use std::mem;
use std::sync::Arc;
use std::time::Duration;

use kaito_engine::{Cancel, ChatMessage, LanguageModel, MetaEvent, MetaOutput, MetaStream, TextEvent, TextStream};
use tokio::time::Instant;

use crate::answer::Answer;
use crate::dialect::Work;
use crate::error::ApiError;
use crate::limits;
use crate::metrics::TokenClock;
use crate::record::Record;
use crate::state::{Admission, App};

/// Work that has been handed to the engine. Dropping it cancels the work and frees its pages.
pub(crate) struct Job {
    app: Arc<App>,
    record: Arc<Record>,
    admission: Admission,
    deadline: Instant,
    clock: TokenClock,
    generating: Generating,
}

/// What comes of a job, in order: any number of deltas, then the answer.
pub(crate) enum Progress {
    /// Text that is final, with the token that completed it; what was held back until the end has none.
    Delta { sequence: usize, token: Option<u32>, text: String },
    /// The body of the answer, in JSON.
    Answer(String),
}

/// The model's stream, with what writing the answer takes.
enum Generating {
    Text { stream: TextStream, details: bool },
    Completion { stream: MetaStream, prompts: Vec<String> },
    Dialogs { stream: MetaStream, dialogs: Vec<Vec<ChatMessage>> },
}

enum Event {
    Started,
    Delta { sequence: usize, token: Option<u32>, text: String },
    Finished { answer: Answer, prompt_tokens: usize, generated_tokens: usize },
}

impl Job {
    /// Hands `work` to the engine, unless it is cancelled before. Tokenises: call it where blocking is allowed.
    ///
    /// # Errors
    /// Whatever the engine objects to.
    pub(crate) fn start(
        app: Arc<App>,
        record: Arc<Record>,
        admission: Admission,
        deadline: Instant,
        work: Work,
        cancel: &Cancel,
    ) -> Result<Self, ApiError> {
        let generating = Generating::start(&admission.model, work, cancel)?;
        let clock = TokenClock::new(record.started);
        Ok(Self { app, record, admission, deadline, clock, generating })
    }

    /// What happens next.
    ///
    /// # Errors
    /// The engine's failure, 408 at the deadline, 503 when the server ends. The job is over then, as it is after the
    /// answer.
    pub(crate) async fn next(&mut self) -> Result<Progress, ApiError> {
        loop {
            // Events that are ready take no budget of the task by themselves.
            tokio::task::coop::consume_budget().await;
            let event = tokio::select! {
                event = self.generating.next() => event?,
                () = tokio::time::sleep_until(self.deadline) => {
                    return Err(limits::timed_out(self.timeout()));
                }
                () = self.admission.revoked() => {
                    return Err(ApiError::unavailable("The server shut down before the answer was complete."));
                }
            };
            match event {
                Event::Started => {}
                Event::Delta { sequence, token, text } => {
                    if token.is_some() {
                        self.clock.tick(sequence, &self.app.metrics);
                    }
                    return Ok(Progress::Delta { sequence, token, text });
                }
                Event::Finished { answer, prompt_tokens, generated_tokens } => {
                    self.record.count_tokens(prompt_tokens, generated_tokens);
                    return answer.into_json().await.map(Progress::Answer);
                }
            }
        }
    }

    /// Waits for the answer.
    ///
    /// # Errors
    /// As [`Job::next`].
    pub(crate) async fn answer(mut self) -> Result<String, ApiError> {
        loop {
            if let Progress::Answer(body) = self.next().await? {
                return Ok(body);
            }
        }
    }

    pub(crate) fn record(&self) -> &Record {
        &self.record
    }

    fn timeout(&self) -> Duration {
        self.app.options.request_timeout
    }
}

impl Generating {
    fn start(model: &LanguageModel, work: Work, cancel: &Cancel) -> Result<Self, ApiError> {
        Ok(match work {
            Work::Text(request) => {
                let flags = [request.options.return_dict_in_generate, request.options.output_scores];
                Self::Text {
                    details: flags.contains(&Some(true)),
                    stream: model.generate_text_unless(cancel, *request)?,
                }
            }
            Work::Completion(request) => {
                Self::Completion { stream: model.text_completion_unless(cancel, &request)?, prompts: request.prompts }
            }
            Work::Dialogs(request) => {
                Self::Dialogs { stream: model.chat_completion_unless(cancel, &request)?, dialogs: request.dialogs }
            }
        })
    }

    async fn next(&mut self) -> Result<Event, ApiError> {
        match self {
            Self::Text { stream, details } => Ok(match stream.next().await.ok_or_else(lost)?? {
                TextEvent::Started => Event::Started,
                TextEvent::Delta { sequence, text, token } => Event::Delta { sequence, token: Some(token), text },
                TextEvent::Rest { sequence, text } => Event::Delta { sequence, token: None, text },
                TextEvent::Finished(output) => Event::Finished {
                    prompt_tokens: output.prompt_tokens,
                    generated_tokens: output.generated_tokens,
                    answer: Answer::Text { output, details: *details },
                },
            }),
            Self::Completion { stream, prompts } => {
                next_of_meta(stream, |outputs| Answer::Completion { prompts: mem::take(prompts), outputs }).await
            }
            Self::Dialogs { stream, dialogs } => {
                next_of_meta(stream, |outputs| Answer::Dialogs { dialogs: mem::take(dialogs), outputs }).await
            }
        }
    }
}

async fn next_of_meta(
    stream: &mut MetaStream,
    answer: impl FnOnce(Vec<MetaOutput>) -> Answer,
) -> Result<Event, ApiError> {
    Ok(match stream.next().await.ok_or_else(lost)?? {
        MetaEvent::Started => Event::Started,
        MetaEvent::Delta { index, text, token } => Event::Delta { sequence: index, token: Some(token), text },
        MetaEvent::Rest { index, text } => Event::Delta { sequence: index, token: None, text },
        MetaEvent::Finished { outputs, prompt_tokens, generated_tokens } => {
            Event::Finished { answer: answer(outputs), prompt_tokens, generated_tokens }
        }
    })
}

fn lost() -> ApiError {
    ApiError::internal("The engine ended before the answer was complete.")
}

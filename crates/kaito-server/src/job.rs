//! A request while the model works on it.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use kaito_engine::{Cancel, Output, Stream, StreamEvent};
use tokio::time::{Instant, Sleep};

use crate::dialect::{Context, Event, Framing, Reply, Streaming, Task, Work};
use crate::error::ApiError;
use crate::limits;
use crate::metrics::RequestClock;
use crate::record::Record;
use crate::state::{Admission, App};

/// Work that has been handed to the model. Dropping it cancels the work and frees its pages.
pub(crate) struct Job {
    app: Arc<App>,
    record: Arc<Record>,
    admission: Admission,
    /// Ends at the deadline. One timer for the whole answer: there is an event for each token.
    expiry: Pin<Box<Sleep>>,
    clock: RequestClock,
    stream: Stream,
    reply: Arc<dyn Reply>,
    /// Who writes the events, where the answer streams; lent out while it writes the last ones.
    streaming: Option<Box<dyn Streaming>>,
}

/// What became of a request that was prepared.
pub(crate) enum Start {
    /// The model works on it.
    Job(Box<Job>),
    /// This is the body of its answer: JSON.
    Known(String),
    /// The same in plain text.
    Text(String),
}

impl Job {
    /// Hands `work` to the model, unless it is cancelled before. Tokenises: call it where blocking is allowed.
    ///
    /// # Errors
    /// Whatever the model objects to.
    pub(crate) fn start(
        app: Arc<App>,
        record: Arc<Record>,
        admission: Admission,
        deadline: Instant,
        work: Box<dyn Work>,
        cancel: &Cancel,
    ) -> Result<Start, ApiError> {
        let model = &admission.model;
        let context = Context {
            request: model.context(),
            info: model.info(),
            options: &app.options,
            grammars: &admission.grammars,
            model: &**model,
        };
        let (prompts, reply) = match work.prepare(&context, cancel)? {
            Task::Generate { prompts, reply } => (prompts, reply),
            Task::Known(answer) => return Ok(Start::Known(answer.to_string())),
            Task::Text(answer) => return Ok(Start::Text(answer)),
        };
        cancel.check()?;
        let mut clock = RequestClock::new(Arc::clone(&app), record.started, &prompts);
        let stream = admission.model.start(prompts).inspect_err(|_| clock.refuse())?;
        let expiry = Box::pin(tokio::time::sleep_until(deadline));
        let job = Self { app, record, admission, expiry, clock, stream, reply, streaming: None };
        Ok(Start::Job(Box::new(job)))
    }

    /// What happens next. After the last event there is no other.
    ///
    /// # Errors
    /// The model's failure, 408 at the deadline, 503 when the server ends. The job is over then.
    pub(crate) async fn next(&mut self) -> Result<StreamEvent, ApiError> {
        // Events that are ready take no budget of the task by themselves.
        tokio::task::coop::consume_budget().await;
        let event = tokio::select! {
            event = self.stream.next() => event,
            () = &mut self.expiry => {
                return Err(limits::timed_out(self.timeout()));
            }
            () = self.admission.revoked() => {
                return Err(ApiError::unavailable("The server shut down before the answer was complete."));
            }
        };
        let lost = || ApiError::internal("The engine ended before the answer was complete.");
        let event = event.ok_or_else(lost).and_then(|event| event.map_err(ApiError::from));
        let event = event.inspect_err(|_| self.clock.fail())?;
        self.reply.note(&event);
        match &event {
            StreamEvent::Started => self.clock.start(),
            StreamEvent::PromptScored(_) => {}
            StreamEvent::Delta(delta) => {
                if delta.token.is_some() {
                    self.clock.tick(delta.sequence);
                }
            }
            StreamEvent::Finished(output) => {
                self.clock.end(output);
                self.record.count_tokens(output.usage.prompt_tokens, output.usage.generated_tokens);
            }
        }
        Ok(event)
    }

    /// Waits for the answer and gives its body.
    ///
    /// # Errors
    /// As [`Job::next`].
    pub(crate) async fn answer(mut self) -> Result<String, ApiError> {
        loop {
            if let StreamEvent::Finished(output) = self.next().await? {
                let reply = Arc::clone(&self.reply);
                let size = self.reply.size(&output);
                return write(size, output, move |output| reply.body(output)).await;
            }
        }
    }

    /// How what a stream sends is told apart.
    pub(crate) fn framing(&self) -> Framing {
        self.reply.framing()
    }

    /// Who writes the events of this answer.
    pub(crate) fn streaming(&mut self) -> &mut dyn Streaming {
        let reply = &self.reply;
        &mut **self.streaming.get_or_insert_with(|| Arc::clone(reply).streaming())
    }

    /// The last events of a stream that came to its end.
    ///
    /// # Errors
    /// 500 when they can't be written.
    pub(crate) async fn finished(&mut self, output: Output) -> Result<Vec<Event>, ApiError> {
        let mut streaming = self.streaming.take().unwrap_or_else(|| Arc::clone(&self.reply).streaming());
        write(self.reply.size(&output), output, move |output| streaming.finished(output)).await
    }

    /// The last events of a stream that broke off.
    pub(crate) fn failed(&mut self, error: &ApiError) -> Vec<Event> {
        self.streaming().failed(error)
    }

    pub(crate) fn record(&self) -> &Record {
        &self.record
    }

    fn timeout(&self) -> Duration {
        self.app.options.request_timeout
    }
}

/// Writes something about the whole answer, which is about `size` bytes; a large one on a thread where that keeps nobody waiting.
///
/// # Errors
/// 500 when that thread is lost.
async fn write<T: Send + 'static>(
    size: usize,
    output: Output,
    write: impl FnOnce(&Output) -> T + Send + 'static,
) -> Result<T, ApiError> {
    /// An answer with more bytes than this is large.
    const LARGE: usize = 16 << 10;
    if size <= LARGE {
        return Ok(write(&output));
    }
    let written = tokio::task::spawn_blocking(move || write(&output)).await;
    written.map_err(|_| ApiError::internal("The server failed on this answer."))
}

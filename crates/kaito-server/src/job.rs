//! A request while the model works on it.

use std::sync::Arc;
use std::time::Duration;

use kaito_engine::{Cancel, Output, Stream, StreamEvent};
use tokio::time::Instant;

use crate::dialect::{Reply, Task, Work};
use crate::error::ApiError;
use crate::limits;
use crate::metrics::TokenClock;
use crate::record::Record;
use crate::state::{Admission, App};

/// Work that has been handed to the model. Dropping it cancels the work and frees its pages.
pub(crate) struct Job {
    app: Arc<App>,
    record: Arc<Record>,
    admission: Admission,
    deadline: Instant,
    clock: TokenClock,
    stream: Stream,
    reply: Arc<dyn Reply>,
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
    ) -> Result<Self, ApiError> {
        let Task { prompts, reply } = work.prepare(admission.model.context(), cancel)?;
        cancel.check()?;
        let stream = admission.model.start(prompts)?;
        let clock = TokenClock::new(record.started);
        Ok(Self { app, record, admission, deadline, clock, stream, reply })
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
            () = tokio::time::sleep_until(self.deadline) => {
                return Err(limits::timed_out(self.timeout()));
            }
            () = self.admission.revoked() => {
                return Err(ApiError::unavailable("The server shut down before the answer was complete."));
            }
        };
        let lost = || ApiError::internal("The engine ended before the answer was complete.");
        let event = event.ok_or_else(lost)??;
        match &event {
            StreamEvent::Started => {}
            StreamEvent::Delta(delta) => {
                if delta.token.is_some() {
                    self.clock.tick(delta.sequence, &self.app.metrics);
                }
            }
            StreamEvent::Finished(output) => {
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
                return self.write(output, |reply, output| reply.body(output)).await;
            }
        }
    }

    /// Writes something about the whole answer, a large one on a thread where that keeps nobody waiting.
    ///
    /// # Errors
    /// 500 when that thread is lost.
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        output: Output,
        write: fn(&dyn Reply, &Output) -> T,
    ) -> Result<T, ApiError> {
        /// An answer with more bytes than this is large.
        const LARGE: usize = 16 << 10;
        if self.reply.size(&output) <= LARGE {
            return Ok(write(&*self.reply, &output));
        }
        let reply = Arc::clone(&self.reply);
        let written = tokio::task::spawn_blocking(move || write(&*reply, &output)).await;
        written.map_err(|_| ApiError::internal("The server failed on this answer."))
    }

    /// Who writes the answer.
    pub(crate) fn reply(&self) -> &dyn Reply {
        &*self.reply
    }

    pub(crate) fn record(&self) -> &Record {
        &self.record
    }

    fn timeout(&self) -> Duration {
        self.app.options.request_timeout
    }
}

//! The thread that turns steps, and the handle that others hold.
//!
//! A step is `schedule -> forward -> advance -> emit`. The handle is cheap to clone; a request's events come through a
//! channel of its own, and dropping the receiving end cancels the request and frees its pages before the next step.
//!
//! Invariant: nothing that a request holds can end this thread. A request that cannot go on fails alone; a step that
//! panics fails the requests of that step.

use std::{
    collections::HashMap,
    future, mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::{Notify, mpsc};

use crate::{
    Error,
    backend::Backend,
    decoder::{Decoder, Span},
    events::{self, EventReceiver, EventSender},
    generate::{Chosen, Generation, GenerationParams, SequenceOutput},
    recycle::recycled,
    scheduler::{RequestId, RowView, Scheduler, Step},
};

/// One request for tokens.
#[derive(Debug, Clone)]
pub struct GenerationRequest {
    /// The prompt's token ids, at least one.
    pub prompt: Vec<u32>,
    /// How to go on from there.
    pub params: GenerationParams,
}

/// What a request's stream carries.
#[derive(Debug)]
pub enum GenerationEvent {
    /// The request left the queue.
    Started,
    /// Tokens that are final, those that came since the last event. Beams have none before the end.
    Chosen(Vec<Chosen>),
    /// The last event of a request that ended.
    Finished(Vec<SequenceOutput>),
    /// The last event of a request that could not go on.
    Failed(Error),
}

/// A snapshot of the engine for health checks and metrics.
#[derive(Debug, Clone, Default)]
pub struct EngineStats {
    /// Whether the engine's thread is gone, so that no request can end any more.
    pub stopped: bool,
    /// Requests in the queue.
    pub waiting: usize,
    /// Sequences that run.
    pub running: usize,
    /// Pages of keys and values, all of them.
    pub pages_total: usize,
    /// Pages that hold something.
    pub pages_used: usize,
    /// Free pages that still hold texts, for requests that begin like them.
    pub pages_known: usize,
    /// Prompt tokens of requests that started.
    pub prompt_tokens_total: u64,
    /// Those of them that were not computed, since an earlier text began alike.
    pub prompt_tokens_reused_total: u64,
    /// Tokens that were generated.
    pub generated_tokens_total: u64,
    /// Tokens that were proposed, to be verified several at once.
    pub proposed_tokens_total: u64,
    /// Proposed tokens that were right.
    pub accepted_tokens_total: u64,
    /// Requests that gave their pages to older ones and were computed again.
    pub preemptions_total: u64,
    /// Steps since the start.
    pub steps_total: u64,
    /// Time since the last step ended, while there is work.
    pub since_progress: Option<Duration>,
}

/// The receiving end of a request. Dropping it cancels the request.
#[derive(Debug)]
pub struct GenerationStream {
    id: RequestId,
    events: EventReceiver,
    commands: mpsc::UnboundedSender<Command>,
    ended: bool,
}

impl GenerationStream {
    /// The next event; `None` after the last one.
    pub async fn next(&mut self) -> Option<GenerationEvent> {
        if self.ended {
            return None;
        }
        let event = future::poll_fn(|context| self.events.poll(context)).await;
        self.ended = matches!(event, GenerationEvent::Finished(_) | GenerationEvent::Failed(_));
        Some(event)
    }

    /// Ends one sequence of the request where it stands; the others go on.
    pub fn stop_sequence(&self, sequence: usize) {
        // A failure means that the engine is gone; `next` reports that.
        let _ = self.commands.send(Command::StopSequence(self.id, sequence));
    }
}

impl Drop for GenerationStream {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.commands.send(Command::Cancel(self.id));
        }
    }
}

enum Command {
    Submit { id: RequestId, generation: Box<Generation>, events: EventSender },
    StopSequence(RequestId, usize),
    Cancel(RequestId),
    Stop,
}

#[derive(Default)]
struct Counters {
    waiting: AtomicUsize,
    running: AtomicUsize,
    pages_used: AtomicUsize,
    pages_known: AtomicUsize,
    prompt_tokens: AtomicU64,
    prompt_tokens_reused: AtomicU64,
    generated_tokens: AtomicU64,
    proposed_tokens: AtomicU64,
    accepted_tokens: AtomicU64,
    preemptions: AtomicU64,
    steps: AtomicU64,
    /// Requests between `submit` and their last event.
    open: AtomicUsize,
    stopped: AtomicBool,
}

struct Shared {
    commands: mpsc::UnboundedSender<Command>,
    counters: Counters,
    limits: EngineLimits,
    next_id: AtomicU64,
    accepting: AtomicBool,
    /// When the last step ended or work arrived at an idle engine; `None` while there is no work.
    progress: Mutex<Option<Instant>>,
    idle: Notify,
}

#[derive(Debug, Clone, Copy)]
struct EngineLimits {
    pages: usize,
    page_size: usize,
    rows: usize,
    waiting: usize,
    vocab_size: usize,
}

/// The handle of a running engine.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
    // Ends the thread with the last handle.
    _thread: Arc<StopOnDrop>,
}

struct StopOnDrop(mpsc::UnboundedSender<Command>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        let _ = self.0.send(Command::Stop);
    }
}

impl Engine {
    /// Starts the engine thread. At most `max_waiting` requests queue.
    pub fn start<B: Backend>(decoder: Decoder<B>, scheduler: Scheduler, max_waiting: usize) -> Result<Self, Error> {
        let (commands, receiver) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            commands: commands.clone(),
            counters: Counters::default(),
            limits: EngineLimits {
                pages: scheduler.cache().total_pages(),
                page_size: scheduler.cache().page_size(),
                rows: scheduler.limits().rows,
                waiting: max_waiting,
                vocab_size: decoder.config().vocab_size,
            },
            next_id: AtomicU64::new(0),
            accepting: AtomicBool::new(true),
            progress: Mutex::new(None),
            idle: Notify::new(),
        });
        let (step_spans, step_logits) = (scheduler.limits().rows, decoder.limits().step_logits);
        let vocab_size = decoder.config().vocab_size;
        let worker = Worker {
            decoder,
            scheduler,
            requests: HashMap::new(),
            commands: receiver,
            shared: shared.clone(),
            step: Step::default(),
            spans: Vec::with_capacity(step_spans),
            logits: Vec::with_capacity(step_logits * vocab_size),
            rows: Vec::with_capacity(step_logits),
        };
        thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || worker.run())
            .map_err(|cause| Error::Internal(format!("the engine thread could not be started: {cause}")))?;
        Ok(Self { shared, _thread: Arc::new(StopOnDrop(commands)) })
    }

    /// Queues a request.
    ///
    /// # Errors
    /// [`Error::TooBusy`] where the queue is full, [`Error::ShuttingDown`] after [`Engine::stop_accepting`], and
    /// [`Error::InvalidRequest`] where the request could never run here.
    pub fn submit(&self, request: GenerationRequest) -> Result<GenerationStream, Error> {
        let shared = &self.shared;
        let limits = &shared.limits;
        if !shared.accepting.load(Relaxed) {
            return Err(Error::ShuttingDown);
        }
        if request.prompt.is_empty() {
            return Err(Error::InvalidRequest("the prompt has no tokens; give it at least one".to_owned()));
        }
        if let Some(id) = request.prompt.iter().find(|&&id| id as usize >= limits.vocab_size) {
            return Err(Error::InvalidRequest(format!(
                "the prompt holds token id {id}, but the model's vocabulary ends at {}",
                limits.vocab_size - 1
            )));
        }
        let prompt = request.prompt.len();
        let generation = Generation::new(request.prompt, request.params);
        let rows = generation.max_rows();
        if rows > limits.rows {
            return Err(Error::InvalidRequest(format!(
                "the request asks for {rows} sequences or beams at once, but at most {} run here (--max-batch-size)",
                limits.rows
            )));
        }
        let total = generation.max_total_len();
        let pages = crate::scheduler::pages_needed(limits.page_size, prompt, total, rows);
        if pages > limits.pages {
            return Err(Error::InvalidRequest(format!(
                "{rows} sequences of up to {total} tokens need {pages} pages of keys and values, but there are {} \
                 (--kv-cache-memory)",
                limits.pages
            )));
        }
        let queued = shared.counters.waiting.fetch_add(1, Relaxed);
        if queued >= limits.waiting {
            shared.counters.waiting.fetch_sub(1, Relaxed);
            return Err(Error::TooBusy { waiting: queued, limit: limits.waiting });
        }
        shared.counters.open.fetch_add(1, Relaxed);
        shared.progress.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(Instant::now);
        let id = shared.next_id.fetch_add(1, Relaxed);
        let (sender, events) = events::queue(rows * total.saturating_sub(prompt));
        let command = Command::Submit { id, generation: Box::new(generation), events: sender };
        shared.commands.send(command).map_err(|_| Error::EngineStopped)?;
        Ok(GenerationStream { id, events, commands: shared.commands.clone(), ended: false })
    }

    /// Refuses requests from now on; those that were accepted run to their end.
    pub fn stop_accepting(&self) {
        self.shared.accepting.store(false, Relaxed);
    }

    /// Waits until no request is open.
    pub async fn drained(&self) {
        loop {
            let notified = self.shared.idle.notified();
            if self.shared.counters.open.load(Relaxed) == 0 {
                return;
            }
            notified.await;
        }
    }

    /// A snapshot of the counters.
    pub fn stats(&self) -> EngineStats {
        let counters = &self.shared.counters;
        let progress = *self.shared.progress.lock().unwrap_or_else(PoisonError::into_inner);
        EngineStats {
            stopped: counters.stopped.load(Relaxed),
            waiting: counters.waiting.load(Relaxed),
            running: counters.running.load(Relaxed),
            pages_total: self.shared.limits.pages,
            pages_used: counters.pages_used.load(Relaxed),
            pages_known: counters.pages_known.load(Relaxed),
            prompt_tokens_total: counters.prompt_tokens.load(Relaxed),
            prompt_tokens_reused_total: counters.prompt_tokens_reused.load(Relaxed),
            generated_tokens_total: counters.generated_tokens.load(Relaxed),
            proposed_tokens_total: counters.proposed_tokens.load(Relaxed),
            accepted_tokens_total: counters.accepted_tokens.load(Relaxed),
            preemptions_total: counters.preemptions.load(Relaxed),
            steps_total: counters.steps.load(Relaxed),
            since_progress: progress.map(|at| at.elapsed()),
        }
    }
}

struct OpenRequest {
    events: EventSender,
    prompt_tokens: usize,
    waiting: bool,
}

struct Worker<B: Backend> {
    decoder: Decoder<B>,
    scheduler: Scheduler,
    requests: HashMap<RequestId, OpenRequest>,
    commands: mpsc::UnboundedReceiver<Command>,
    shared: Arc<Shared>,
    /// Memory that each step uses again.
    step: Step,
    spans: Vec<Span<'static>>,
    logits: Vec<f32>,
    rows: Vec<&'static mut [f32]>,
}

impl<B: Backend> Worker<B> {
    fn run(mut self) {
        loop {
            if self.scheduler.is_idle() {
                self.publish();
                match self.commands.blocking_recv() {
                    None | Some(Command::Stop) => return,
                    Some(command) => self.obey(command),
                }
            }
            while let Ok(command) = self.commands.try_recv() {
                match command {
                    Command::Stop => return,
                    command => self.obey(command),
                }
            }
            let mut step = mem::take(&mut self.step);
            if self.scheduler.schedule(&mut step) {
                // Who has seen a step's tokens must find its pages in the counters.
                self.publish();
                self.turn(&step);
            }
            self.step = step;
            self.publish();
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Submit { id, generation, events } => {
                let prompt_tokens = generation.tokens(0).len();
                self.requests.insert(id, OpenRequest { events, prompt_tokens, waiting: true });
                if generation.is_finished() {
                    self.close(id, GenerationEvent::Finished(generation.outputs()));
                } else {
                    self.scheduler.submit(id, *generation);
                }
            }
            Command::Cancel(id) => {
                self.scheduler.remove(id);
                self.close(id, GenerationEvent::Failed(Error::Cancelled));
            }
            Command::StopSequence(id, sequence) => {
                if self.scheduler.stop_sequence(id, sequence) == Some(true) {
                    self.finish(id);
                }
            }
            Command::Stop => {}
        }
    }

    /// Computes a step, chooses the next tokens of the requests that have their logits now, and tells their clients.
    fn turn(&mut self, step: &Step) {
        for id in &step.started {
            if let Some(request) = self.requests.get_mut(id) {
                request.waiting = false;
                self.shared.counters.waiting.fetch_sub(1, Relaxed);
                self.shared.counters.prompt_tokens.fetch_add(request.prompt_tokens as u64, Relaxed);
                request.events.started();
            }
        }
        let begun = Instant::now();
        let computed = catch_unwind(AssertUnwindSafe(|| {
            self.forward(step);
            self.choose(step);
        }));
        self.scheduler.observe_cost(step, begun.elapsed().as_secs_f64());
        self.shared.counters.steps.fetch_add(1, Relaxed);
        if computed.is_err() {
            let mut failed: Vec<RequestId> = step.spans.iter().map(|span| span.request).collect();
            failed.dedup();
            tracing::error!(requests = failed.len(), "a step of the engine panicked; its requests fail");
            for id in failed {
                self.fail(id, Error::Internal("the computation of this request panicked; see the log".to_owned()));
            }
            return;
        }
        let mut last = None;
        for span in step.spans.iter().filter(|span| span.logits > 0) {
            if last.replace(span.request) != Some(span.request) {
                self.settle(span.request);
            }
        }
    }

    fn forward(&mut self, step: &Step) {
        self.decoder.copy_pages(&step.copies);
        let mut spans = recycled(mem::take(&mut self.spans));
        spans.extend(step.spans.iter().filter_map(|span| {
            let row = self.scheduler.row(span.request, span.row)?;
            let tokens = row.tokens.get(span.start..span.start + span.count - row.draft.len())?;
            let RowView { draft, pages, long, .. } = row;
            Some(Span { tokens, draft, start: span.start, pages, long, logits: span.logits })
        }));
        self.decoder.forward(&spans, &mut self.logits);
        self.spans = recycled(spans);
    }

    fn choose(&mut self, step: &Step) {
        self.scheduler.computed(step);
        let mut rows = recycled(mem::take(&mut self.rows));
        rows.extend(self.logits.chunks_exact_mut(self.shared.limits.vocab_size));
        self.scheduler.choose(self.decoder.host_pool(), step, &mut rows);
        self.rows = recycled(rows);
    }

    /// Tells a request's client what was chosen.
    fn settle(&mut self, id: RequestId) {
        let Self { scheduler, requests, shared, .. } = self;
        let Some(request) = requests.get(&id) else { return };
        match scheduler.settle(id) {
            Some(Ok(advance)) => {
                // Beams have no chosen tokens before their end, but each live one grew by a token.
                let generated = advance.chosen.len().max(advance.parents.len());
                shared.counters.generated_tokens.fetch_add(generated as u64, Relaxed);
                // The client may be gone; its cancellation is on its way.
                if !advance.chosen.is_empty() {
                    request.events.chosen(&mut advance.chosen);
                }
                if advance.finished {
                    self.finish(id);
                }
            }
            Some(Err(cause)) => self.fail(id, cause.into()),
            None => {}
        }
    }

    fn finish(&mut self, id: RequestId) {
        if let Some(generation) = self.scheduler.remove(id) {
            self.close(id, GenerationEvent::Finished(generation.outputs()));
        }
    }

    fn fail(&mut self, id: RequestId, error: Error) {
        self.scheduler.remove(id);
        self.close(id, GenerationEvent::Failed(error));
    }

    /// Ends a request that the scheduler no longer holds.
    fn close(&mut self, id: RequestId, last: GenerationEvent) {
        let Some(request) = self.requests.remove(&id) else { return };
        let counters = &self.shared.clone().counters;
        if request.waiting {
            counters.waiting.fetch_sub(1, Relaxed);
        }
        counters.open.fetch_sub(1, Relaxed);
        // Published first, so that whoever saw the last event sees the pages free.
        self.publish();
        request.events.end(last);
        self.shared.idle.notify_waiters();
    }

    fn publish(&self) {
        let counters = &self.shared.counters;
        let cache = self.scheduler.cache();
        counters.running.store(self.scheduler.running_rows(), Relaxed);
        counters.pages_used.store(cache.total_pages() - cache.free_pages(), Relaxed);
        counters.pages_known.store(cache.known_free_pages(), Relaxed);
        counters.prompt_tokens_reused.store(self.scheduler.reused_tokens(), Relaxed);
        let (proposed, accepted) = self.scheduler.proposed_tokens();
        counters.proposed_tokens.store(proposed, Relaxed);
        counters.accepted_tokens.store(accepted, Relaxed);
        counters.preemptions.store(self.scheduler.preemptions(), Relaxed);
        let now = (counters.open.load(Relaxed) > 0).then(Instant::now);
        *self.shared.progress.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }
}

impl<B: Backend> Drop for Worker<B> {
    fn drop(&mut self) {
        // The engine is gone for whatever reason: nobody waits for a request that will never end.
        self.requests.clear();
        self.shared.counters.stopped.store(true, Relaxed);
        self.shared.counters.open.store(0, Relaxed);
        self.shared.idle.notify_waiters();
    }
}

//! The thread that runs steps one after the other, and the handle that others hold.
//!
//! A step is `schedule -> forward -> choose -> emit`, for all running sequences together (continuous batching). The handle is
//! cheap to clone. A request's events come through a queue of its own; dropping the receiving end cancels the request and
//! frees its pages before the next step.
//!
//! Invariant: nothing that a request holds can end this thread, nor another request. A request that cannot go on fails
//! alone; where the work for one request panics, that request fails, and what others had computed is computed again if it
//! cannot be trusted. Where the device fails in a step, the step's requests fail; where the device is lost, all do.

mod open;
#[cfg(test)]
mod tests;
mod worker;

use std::{
    fmt, future,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::Duration,
};

use self::{
    open::{Closed, OpenRequest, OpenRequests},
    worker::Worker,
};
use kaito_model::adapter::AdapterWeights;

use crate::{
    Error,
    adapters::Adapter,
    device::DeviceError,
    events::{self, EventReceiver, EventSender},
    executor::Executor,
    generate::{Chosen, Generation, GenerationParams, PromptNumbers, SequenceOutput, Strategy},
    parallel::Parallel,
    scheduler::{RequestId, Scheduler, pages_needed},
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
    /// How the device was lost, if it was; no request can succeed any more.
    pub device_lost: Option<DeviceError>,
    /// Requests in the queue.
    pub waiting: usize,
    /// Sequences that run.
    pub running: usize,
    /// Tokens that a page of the KV cache holds.
    pub page_size: usize,
    /// Pages of the KV cache, all of them.
    pub pages_total: usize,
    /// Pages that running sequences hold.
    pub pages_used: usize,
    /// Free pages that are in the prefix cache: they still hold texts, for requests that begin like them.
    pub pages_known: usize,
    /// Prompt tokens of requests that started.
    pub prompt_tokens_total: u64,
    /// Those of them that were found in the prefix cache, and not computed.
    pub prompt_tokens_reused_total: u64,
    /// Tokens that were generated.
    pub generated_tokens_total: u64,
    /// Draft tokens of speculative decoding: proposed, and verified several at once.
    pub proposed_tokens_total: u64,
    /// Draft tokens that were right.
    pub accepted_tokens_total: u64,
    /// How often a request was preempted: it lost its pages to an older one, and was computed again.
    pub preemptions_total: u64,
    /// Adapters that the device holds.
    pub adapters: usize,
    /// Steps since the start.
    pub steps_total: u64,
    /// Time since the last step ended, while there is work.
    pub since_progress: Option<Duration>,
}

/// What a request's client can tell whoever makes the request's tokens: this engine, or one elsewhere.
pub trait GenerationControl: fmt::Debug + Send + Sync {
    /// Ends one sequence of the request where it stands; the others go on.
    fn stop_sequence(&self, sequence: usize);

    /// Nobody waits for the request any more.
    fn cancel(&self);
}

/// Both ends of a request of at most `tokens` tokens, for an engine that is not this one: it sends what it makes, and hears by
/// `control` what the client wants.
pub fn generation_channel(tokens: usize, control: Box<dyn GenerationControl>) -> (EventSender, GenerationStream) {
    let (sender, events) = events::queue(tokens);
    (sender, GenerationStream { events, control, ended: false })
}

/// A request of this engine.
#[derive(Debug)]
struct OwnRequest {
    id: RequestId,
    commands: mpsc::Sender<Command>,
}

// A failure to send means that the engine is gone; the request's events report that.
impl GenerationControl for OwnRequest {
    fn stop_sequence(&self, sequence: usize) {
        let _ = self.commands.send(Command::StopSequence(self.id, sequence));
    }

    fn cancel(&self) {
        let _ = self.commands.send(Command::Cancel(self.id));
    }
}

/// The receiving end of a request. Dropping it cancels the request.
#[derive(Debug)]
pub struct GenerationStream {
    events: EventReceiver,
    control: Box<dyn GenerationControl>,
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

    /// Tokens of the prompt that were taken from the prefix cache, once the request has ended.
    pub fn cached_tokens(&self) -> usize {
        self.events.cached_tokens()
    }

    /// Takes what became known of the prompt, once there is a token or the request has ended.
    pub(crate) fn take_prompt_numbers(&self) -> Option<PromptNumbers> {
        self.events.take_prompt_numbers()
    }

    /// Ends one sequence of the request where it stands; the others go on.
    pub fn stop_sequence(&self, sequence: usize) {
        self.control.stop_sequence(sequence);
    }
}

impl Drop for GenerationStream {
    fn drop(&mut self) {
        if !self.ended {
            self.control.cancel();
        }
    }
}

enum Command {
    Submit {
        id: RequestId,
        generation: Box<Generation>,
        open: OpenRequest,
    },
    StopSequence(RequestId, usize),
    /// Takes an adapter, and answers when it can be used.
    AddAdapter {
        id: u32,
        weights: AdapterWeights,
        answer: mpsc::SyncSender<Result<(), DeviceError>>,
    },
    /// Nobody holds this adapter any more.
    RemoveAdapter(u32),
    Cancel(RequestId),
    Stop,
}

#[derive(Default)]
struct Counters {
    running: AtomicUsize,
    adapters: AtomicUsize,
    pages_used: AtomicUsize,
    pages_known: AtomicUsize,
    prompt_tokens: AtomicU64,
    prompt_tokens_reused: AtomicU64,
    generated_tokens: AtomicU64,
    proposed_tokens: AtomicU64,
    accepted_tokens: AtomicU64,
    preemptions: AtomicU64,
    steps: AtomicU64,
}

/// What handles and the thread share.
struct Shared {
    commands: mpsc::Sender<Command>,
    counters: Counters,
    limits: EngineLimits,
    next_id: AtomicU64,
    open: Arc<OpenRequests>,
}

#[derive(Debug, Clone, Copy)]
struct EngineLimits {
    pages: usize,
    page_size: usize,
    sequences: usize,
    waiting: usize,
    vocab_size: usize,
}

impl EngineLimits {
    /// How many sequences of a request run at the same time. Beams all do; independent samples run as many at a time as there
    /// is room for.
    ///
    /// # Errors
    /// A request that could never run here.
    fn sequences_for(&self, params: &GenerationParams, prompt: usize) -> Result<usize, Error> {
        let total = params.max_total_len.max(prompt);
        let pages_needed = |sequences: usize| pages_needed(self.page_size, prompt, total, sequences);
        let mut sequences = params.max_sequences();
        if matches!(params.strategy, Strategy::Beams(_)) {
            if sequences > self.sequences {
                return Err(Error::OverLimit {
                    what: format!("the request asks for {sequences} beams, but at most {} run here", self.sequences),
                    setting: "max_batch_size",
                });
            }
        } else {
            let shared = prompt / self.page_size;
            let of_one = (pages_needed(1) - shared).max(1);
            let room = self.pages.saturating_sub(shared) / of_one;
            sequences = sequences.min(self.sequences).min(room).max(1);
        }
        let pages = pages_needed(sequences);
        if pages > self.pages {
            return Err(Error::OverLimit {
                what: format!(
                    "{sequences} sequences of up to {total} tokens need {pages} pages of the KV cache, but there are {}",
                    self.pages
                ),
                setting: "kv_cache_memory",
            });
        }
        Ok(sequences)
    }
}

/// The handle of a running engine.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
    // Ends the thread with the last handle.
    _thread: Arc<StopOnDrop>,
}

struct StopOnDrop(mpsc::Sender<Command>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        let _ = self.0.send(Command::Stop);
    }
}

impl Engine {
    /// Starts the engine's thread over `executor`; tokens are chosen on the threads of `host`. At most `max_waiting` requests
    /// queue.
    ///
    /// # Errors
    /// A thread that the system does not give.
    pub fn start(
        executor: Box<dyn Executor>,
        host: Arc<dyn Parallel>,
        scheduler: Scheduler,
        max_waiting: usize,
    ) -> Result<Self, Error> {
        let (commands, receiver) = mpsc::channel();
        let shared = Arc::new(Shared {
            commands: commands.clone(),
            counters: Counters::default(),
            limits: EngineLimits {
                pages: scheduler.cache().total_pages(),
                page_size: scheduler.cache().page_size(),
                sequences: scheduler.limits().sequences,
                waiting: max_waiting,
                vocab_size: executor.vocab_size(),
            },
            next_id: AtomicU64::new(0),
            open: Arc::default(),
        });
        let worker = Worker::new(executor, host, scheduler, receiver, shared.clone());
        thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || worker.run())
            .map_err(|cause| Error::Internal(format!("the engine thread could not be started: {cause}")))?;
        Ok(Self { shared, _thread: Arc::new(StopOnDrop(commands)) })
    }

    /// Queues a request.
    ///
    /// # Errors
    /// [`Error::TooBusy`] where the queue is full, [`Error::ShuttingDown`] after [`Engine::stop_accepting`], [`Error::Device`]
    /// where the device is lost, and [`Error::InvalidRequest`] or [`Error::OverLimit`] where the request could never run here.
    pub fn submit(&self, request: GenerationRequest) -> Result<GenerationStream, Error> {
        self.queue(request, self.shared.limits.waiting)
    }

    /// Queues one more prompt of a request whose first one was queued, also where the queue is full: a request is let in whole, or
    /// not at all.
    ///
    /// # Errors
    /// As for [`Self::submit`], but for a full queue.
    pub fn submit_further(&self, request: GenerationRequest) -> Result<GenerationStream, Error> {
        self.queue(request, usize::MAX)
    }

    fn queue(&self, request: GenerationRequest, waiting: usize) -> Result<GenerationStream, Error> {
        let shared = &self.shared;
        let limits = &shared.limits;
        let GenerationRequest { prompt, params } = request;
        if prompt.is_empty() {
            return Err(Error::InvalidRequest("the prompt has no tokens; give it at least one".to_owned()));
        }
        if let Some(id) = prompt.iter().find(|&&id| id as usize >= limits.vocab_size) {
            return Err(Error::InvalidRequest(format!(
                "the prompt holds token id {id}, but the model's vocabulary ends at {}",
                limits.vocab_size - 1
            )));
        }
        let sequences = limits.sequences_for(&params, prompt.len())?;
        let new = params.max_total_len.saturating_sub(prompt.len());
        let (sender, events) = events::queue(sequences.saturating_mul(new));
        let open = shared.open.open(waiting, sender, params.adapter.clone())?;
        let id = shared.next_id.fetch_add(1, Relaxed);
        let generation = Box::new(Generation::within(prompt, params, sequences));
        // A command that nobody takes closes its request.
        shared.commands.send(Command::Submit { id, generation, open }).map_err(|_| Error::EngineStopped)?;
        let control = Box::new(OwnRequest { id, commands: shared.commands.clone() });
        Ok(GenerationStream { events, control, ended: false })
    }

    /// Loads an adapter between two steps. Waits for that, so call it where blocking is allowed.
    ///
    /// # Errors
    /// What the device objects to, and an engine that is gone.
    pub fn add_adapter(&self, weights: AdapterWeights) -> Result<Adapter, Error> {
        // Of the whole process, so that a handle never names an adapter of another model. The prefix cache relies on it that no
        // number is given twice.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = NEXT.try_update(Relaxed, Relaxed, |id| id.checked_add(1));
        let id = id.map_err(|_| Error::Internal("there have been as many adapters as there are numbers".to_owned()))?;
        let bytes = weights.bytes();
        let (answer, answered) = mpsc::sync_channel(1);
        self.shared.commands.send(Command::AddAdapter { id, weights, answer }).map_err(|_| Error::EngineStopped)?;
        answered.recv().map_err(|_| Error::EngineStopped)??;
        let commands = self.shared.commands.clone();
        Ok(Adapter::new(id, bytes, move |id| {
            // Where the engine is gone, so is its memory.
            let _ = commands.send(Command::RemoveAdapter(id));
        }))
    }

    /// Refuses requests from now on; those that were accepted run to their end.
    pub fn stop_accepting(&self) {
        self.shared.open.close(Closed::ShuttingDown);
    }

    /// Waits until no request is open.
    pub async fn drained(&self) {
        self.shared.open.drained().await;
    }

    /// Ends the thread while handles are there.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn kill(&self) {
        let _ = self.shared.commands.send(Command::Stop);
    }

    /// A snapshot of the counters.
    pub fn stats(&self) -> EngineStats {
        let counters = &self.shared.counters;
        let open = self.shared.open.counts();
        EngineStats {
            stopped: open.stopped,
            device_lost: open.device_lost,
            waiting: open.waiting,
            running: counters.running.load(Relaxed),
            adapters: counters.adapters.load(Relaxed),
            page_size: self.shared.limits.page_size,
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
            since_progress: open.progress.map(|at| at.elapsed()),
        }
    }
}

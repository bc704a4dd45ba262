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
    future,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::Duration,
};

use self::{
    open::{Closed, OpenRequest, OpenRequests},
    worker::Worker,
};
use crate::{
    Error,
    device::DeviceError,
    events::{self, EventReceiver},
    executor::Executor,
    generate::{Chosen, Generation, GenerationParams, SequenceOutput, Strategy},
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
    commands: mpsc::Sender<Command>,
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
    Submit { id: RequestId, generation: Box<Generation>, open: OpenRequest },
    StopSequence(RequestId, usize),
    Cancel(RequestId),
    Stop,
}

#[derive(Default)]
struct Counters {
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
        let mut sequences = params.max_rows();
        if matches!(params.strategy, Strategy::Beams(_)) {
            if sequences > self.sequences {
                return Err(Error::InvalidRequest(format!(
                    "the request asks for {sequences} beams, but at most {} run here (--max-batch-size)",
                    self.sequences
                )));
            }
        } else {
            let shared = prompt / self.page_size;
            let of_one = (pages_needed(1) - shared).max(1);
            let room = self.pages.saturating_sub(shared) / of_one;
            sequences = sequences.min(self.sequences).min(room).max(1);
        }
        let pages = pages_needed(sequences);
        if pages > self.pages {
            return Err(Error::InvalidRequest(format!(
                "{sequences} sequences of up to {total} tokens need {pages} pages of keys and values, but there are {} \
                 (--kv-cache-memory)",
                self.pages
            )));
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
                sequences: scheduler.limits().rows,
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
    /// where the device is lost, and [`Error::InvalidRequest`] where the request could never run here.
    pub fn submit(&self, request: GenerationRequest) -> Result<GenerationStream, Error> {
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
        let open = shared.open.open(limits.waiting, sender)?;
        let id = shared.next_id.fetch_add(1, Relaxed);
        let generation = Box::new(Generation::within(prompt, params, sequences));
        // A command that nobody takes closes its request.
        shared.commands.send(Command::Submit { id, generation, open }).map_err(|_| Error::EngineStopped)?;
        Ok(GenerationStream { id, events, commands: shared.commands.clone(), ended: false })
    }

    /// Refuses requests from now on; those that were accepted run to their end.
    pub fn stop_accepting(&self) {
        self.shared.open.close(Closed::ShuttingDown);
    }

    /// Waits until no request is open.
    pub async fn drained(&self) {
        self.shared.open.drained().await;
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

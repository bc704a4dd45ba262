//! The engine's thread.
//!
//! Forward passes aside, all work is done on behalf of one request at a time, and a panic in it is caught.
//! What a panic leaves half done is thrown away: a request whose tokens were being chosen fails with nothing else touched;
//! where pages are handed out and taken back, [`Scheduler::start_over`] makes new ones; a forward pass is computed again for
//! each of its requests alone, which tells who made it fail. A failure that the device reports is not tried again: the step's
//! requests fail with the device's words, or all requests where the device is lost.

use std::{
    collections::HashMap,
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::Ordering::Relaxed, mpsc},
    time::Instant,
};

use super::{Closed, Command, GenerationEvent, OpenRequest, Shared};
use crate::{
    Error,
    device::{DeviceError, DeviceErrorKind},
    executor::{Executor, Span, StepInput, StepOutput},
    generate::Generation,
    parallel::Parallel,
    recycle::recycled,
    scheduler::{Phase, RequestId, Scheduler, SequenceView, Started, Step, StepSpan, panicked},
    throttle::Throttle,
    token_choice::TokenChoice,
};

struct Request {
    open: OpenRequest,
    prompt_tokens: usize,
}

pub(super) struct Worker {
    executor: Box<dyn Executor>,
    /// Threads of the host, which tokens are chosen on.
    host: Arc<dyn Parallel>,
    scheduler: Scheduler,
    token_choice: TokenChoice,
    requests: HashMap<RequestId, Request>,
    commands: mpsc::Receiver<Command>,
    shared: Arc<Shared>,
    /// How the device was lost.
    lost: Option<DeviceError>,
    /// A device may fail every step.
    failures: Throttle,
    /// Memory that each step uses again. The input is made anew after a step that failed.
    step: Step,
    input: Option<StepInput>,
    logits: Vec<&'static mut [f32]>,
}

impl Worker {
    pub(super) fn new(
        executor: Box<dyn Executor>,
        host: Arc<dyn Parallel>,
        scheduler: Scheduler,
        commands: mpsc::Receiver<Command>,
        shared: Arc<Shared>,
    ) -> Self {
        let limits = *executor.limits();
        Self {
            step: Step::default(),
            input: Some(StepInput::with_room_for(&limits)),
            logits: Vec::with_capacity(limits.step_logits),
            executor,
            host,
            scheduler,
            token_choice: TokenChoice::with_capacity(limits.sequences),
            requests: HashMap::new(),
            commands,
            shared,
            lost: None,
            failures: Throttle::default(),
        }
    }

    pub(super) fn run(mut self) {
        loop {
            if self.scheduler.is_idle() {
                self.publish();
                match self.commands.recv() {
                    Err(_) | Ok(Command::Stop) => return,
                    Ok(command) => self.obey(command),
                }
            }
            while let Ok(command) = self.commands.try_recv() {
                match command {
                    Command::Stop => return,
                    command => self.obey(command),
                }
            }
            let mut step = mem::take(&mut self.step);
            self.run_step(&mut step);
            self.step = step;
            self.publish();
        }
    }

    fn obey(&mut self, command: Command) {
        self.attempt(|worker| match command {
            Command::Submit { id, generation, open } => {
                let prompt_tokens = generation.tokens(0).len();
                worker.requests.insert(id, Request { open, prompt_tokens });
                if let Some(error) = worker.lost.clone() {
                    // It was let in before the device was lost.
                    worker.close(id, GenerationEvent::Failed(error.into()));
                } else if generation.is_finished() {
                    worker.scheduler.work_on(Phase::Submit, id);
                    worker.close(id, GenerationEvent::Finished(generation.outputs()));
                } else {
                    worker.scheduler.submit(id, *generation);
                }
            }
            Command::Cancel(id) => {
                worker.scheduler.remove(id);
                worker.close(id, GenerationEvent::Failed(Error::Cancelled));
            }
            Command::StopSequence(id, sequence) => {
                if worker.scheduler.stop_sequence(id, sequence) == Some(true) {
                    let generation = worker.scheduler.remove(id);
                    worker.finish(id, generation);
                }
            }
            Command::AddAdapter { id, weights, answer } => {
                let added = worker.executor.add_adapter(id, weights);
                worker.shared.counters.adapters.fetch_add(usize::from(added.is_ok()), Relaxed);
                // Who asked may have gone.
                let _ = answer.send(added);
            }
            Command::RemoveAdapter(id) => {
                worker.executor.remove_adapter(id);
                worker.shared.counters.adapters.fetch_sub(1, Relaxed);
            }
            Command::Stop => {}
        });
    }

    /// Decides the next step and computes it.
    fn run_step(&mut self, step: &mut Step) {
        let mut found = false;
        let scheduled = self.attempt(|worker| found = worker.scheduler.schedule(step));
        // A request that has left the queue has left it, even if a panic came later.
        let mut started = true;
        for &request in &step.started {
            started &= self.attempt(|worker| worker.start(request));
        }
        if !started {
            return;
        }
        if found {
            // A client that has seen a step's tokens must find its pages in the counters.
            self.publish();
            self.compute(step);
        } else if scheduled && !self.scheduler.is_idle() {
            tracing::error!("nothing can be computed though requests run; they fail");
            self.start_over();
        }
    }

    fn start(&mut self, started: Started) {
        self.scheduler.work_on(Phase::Start, started.request);
        if let Some(request) = self.requests.get_mut(&started.request) {
            self.shared.counters.prompt_tokens.fetch_add(request.prompt_tokens as u64, Relaxed);
            request.open.start(started.cached_tokens);
        }
    }

    /// Computes a step, chooses the next tokens of the requests that have their logits now, and tells their clients.
    fn compute(&mut self, step: &Step) {
        let begun = Instant::now();
        let computed = catch_unwind(AssertUnwindSafe(|| self.forward(step)));
        self.shared.counters.steps.fetch_add(1, Relaxed);
        match computed {
            Ok(Ok(output)) => {
                if self.choose(step, output) {
                    self.scheduler.observe_cost(step, begun.elapsed().as_secs_f64());
                    self.settle(step);
                }
            }
            Ok(Err(error)) => self.fail_step(step, &error),
            Err(_) => self.compute_one_by_one(step),
        }
    }

    /// Computes a step whose forward pass panicked again, for each request alone: those whose own panics fail.
    fn compute_one_by_one(&mut self, step: &Step) {
        let requests = step.requests().count();
        tracing::error!(requests, "a forward pass panicked; its requests are computed one by one");
        for spans in step.requests() {
            let Some(&StepSpan { request: id, .. }) = spans.first() else { continue };
            if self.lost.is_some() {
                return;
            }
            let share = self.scheduler.share(step, spans);
            match catch_unwind(AssertUnwindSafe(|| self.forward(&share))) {
                Ok(Ok(output)) => {
                    if self.choose(&share, output) {
                        self.settle(&share);
                    }
                }
                Ok(Err(error)) => self.fail_step(&share, &error),
                Err(_) => {
                    tracing::error!(request = id, "the forward pass of this request panics; it fails");
                    self.attempt(|worker| worker.fail(id, panicked()));
                }
            }
        }
    }

    /// Computes a step and waits for its logits.
    fn forward(&mut self, step: &Step) -> Result<StepOutput, DeviceError> {
        let input = self.input.take().unwrap_or_else(|| StepInput::with_room_for(self.executor.limits()));
        let input = self.fill(input, step);
        let ticket = self.executor.submit(input)?;
        self.executor.collect(ticket)
    }

    /// Gathers what the executor needs of a step: tokens and page tables of its sequences.
    fn fill(&self, mut input: StepInput, step: &Step) -> StepInput {
        input.copies.extend_from_slice(&step.copies);
        for span in &step.spans {
            let Some(sequence) = self.scheduler.sequence(span) else { continue };
            let SequenceView { tokens, draft, pages, variant } = sequence;
            let Some(tokens) = tokens.get(span.start..span.start + span.count - draft.len()) else { continue };
            let (logits, states) = (span.rows(), span.states > 0);
            input.push(&Span { tokens, draft, start: span.start, pages, variant, logits, states });
        }
        input
    }

    /// Chooses tokens from a step's logits; `false` if that panicked.
    fn choose(&mut self, step: &Step, mut output: StepOutput) -> bool {
        let chosen = self.attempt(|worker| {
            worker.scheduler.computed(step);
            let mut logits = recycled(mem::take(&mut worker.logits));
            let (all_logits, states) = output.numbers();
            logits.extend(all_logits.chunks_exact_mut(worker.shared.limits.vocab_size));
            worker.token_choice.choose(&*worker.host, &mut worker.scheduler, step, &mut logits, states);
            worker.logits = recycled(logits);
        });
        self.input = Some(self.executor.recycle(output));
        chosen
    }

    /// Does what a device's failure in a step asks for: its requests fail, or all do where the device is lost.
    fn fail_step(&mut self, step: &Step, error: &DeviceError) {
        let ids = if error.kind == DeviceErrorKind::Lost {
            tracing::error!(%error, requests = self.requests.len(), "the device is lost: all requests fail, and no more are taken");
            // First, so that a client that sees its request fail finds the reason.
            self.shared.open.close(Closed::DeviceLost(error.clone()));
            self.lost = Some(error.clone());
            self.requests.keys().copied().collect()
        } else {
            let ids: Vec<RequestId> = step.requests().filter_map(|spans| Some(spans.first()?.request)).collect();
            if let Some(unlogged) = self.failures.pass() {
                tracing::error!(%error, requests = ids.len(), unlogged, "the device failed in a step: its requests fail");
            }
            ids
        };
        for id in ids {
            self.attempt(|worker| worker.fail(id, error.clone().into()));
        }
    }

    /// Tells clients what was chosen.
    fn settle(&mut self, step: &Step) {
        for rows in step.choosing() {
            self.attempt(|worker| worker.settle_one(rows.span));
        }
    }

    fn settle_one(&mut self, span: &StepSpan) {
        let Self { scheduler, requests, shared, .. } = self;
        let id = span.request;
        let Some(request) = requests.get(&id) else { return };
        match scheduler.settle(span) {
            Some(Ok(advance)) => {
                // Beams have no chosen tokens before their end, but each live one grew by a token.
                let grown = if span.logits > 0 { advance.parents.len() } else { 0 };
                let generated = advance.chosen.len().max(grown);
                shared.counters.generated_tokens.fetch_add(generated as u64, Relaxed);
                // The client may be gone; its cancellation is on its way.
                if let Some(events) = request.open.events() {
                    if let Some(numbers) = advance.prompt.take() {
                        events.prompt_known(numbers);
                    }
                    if !advance.chosen.is_empty() {
                        events.chosen(&mut advance.chosen);
                    }
                }
                if advance.finished {
                    let generation = self.scheduler.remove_settled(span);
                    self.finish(id, generation);
                }
            }
            Some(Err(cause)) => {
                self.scheduler.remove_settled(span);
                self.close(id, GenerationEvent::Failed(cause));
            }
            None => {}
        }
    }

    fn finish(&mut self, id: RequestId, generation: Option<Generation>) {
        if let Some(generation) = generation {
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
        // Published first, so that a client that saw the last event sees the pages free.
        self.publish();
        request.open.end(last);
    }

    /// Does a piece of work; `false` if it panicked and what it left was made whole again.
    fn attempt(&mut self, work: impl FnOnce(&mut Self)) -> bool {
        let done = catch_unwind(AssertUnwindSafe(|| work(self))).is_ok();
        if !done {
            self.start_over();
        }
        done
    }

    fn start_over(&mut self) {
        let (phase, culprit) = self.scheduler.start_over().unzip();
        let lost: Vec<RequestId> = self.requests.keys().copied().filter(|&id| !self.scheduler.holds(id)).collect();
        tracing::error!(?phase, culprit, ?lost, "a panic: these requests fail, the others are computed again");
        for id in lost {
            // Not even a client's waker may end this thread.
            let _ = catch_unwind(AssertUnwindSafe(|| self.close(id, GenerationEvent::Failed(panicked()))));
        }
    }

    fn publish(&self) {
        let counters = &self.shared.counters;
        let cache = self.scheduler.cache();
        counters.running.store(self.scheduler.running_sequences(), Relaxed);
        counters.pages_used.store(cache.total_pages() - cache.free_pages(), Relaxed);
        counters.pages_known.store(cache.known_free_pages(), Relaxed);
        counters.prompt_tokens_reused.store(self.scheduler.reused_tokens(), Relaxed);
        let (proposed, accepted) = self.scheduler.proposed_tokens();
        counters.proposed_tokens.store(proposed, Relaxed);
        counters.accepted_tokens.store(accepted, Relaxed);
        counters.preemptions.store(self.scheduler.preemptions(), Relaxed);
        self.shared.open.progressed();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // The engine is gone for whatever reason: nobody waits for a request that will never end. Those that are in a command
        // still end with the channel.
        self.shared.open.close(Closed::Stopped);
        self.requests.clear();
    }
}

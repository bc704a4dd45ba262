//! An engine without a model, whose device fails and whose requests panic on demand: for tests of what goes on around a model.
//!
//! The fake model's next token depends on all tokens before it, as they lie in the pages of the KV cache. So a token that
//! was computed from pages with anything else in them is a wrong one.

#![allow(clippy::panic, reason = "that is what it is for")]

mod null_model;

pub use null_model::NullModel;

/// Parts of the engine that tests outside it look at.
pub use crate::{
    capacity::{STEP_SCORES, bytes_per_token},
    decoder::Decoder,
    device::{
        Packed,
        cpu::{CpuOperations, PAGE_SIZE as CPU_PAGE_SIZE},
    },
    engine::Engine,
    executor::{Executor, ExecutorLimits, Span, StepInput},
    generate::{MAX_BAD_WORD_IDS, MAX_END_TOKENS, MAX_SEQUENCES, ResolveContext},
    kv_cache::{KvCache, VariantKey},
    rope::RopeTable,
    scheduler::{Phase, Scheduler, SchedulerLimits},
};

use std::{
    num::NonZeroUsize,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use kaito_kernels::ThreadPool;

use crate::{
    DeviceError, DeviceErrorKind, Error, GenerateOptions, GenerationParams, ParameterError,
    executor::{HostMemory, InputSpan, StepOutput, Ticket},
    kv_cache::PageId,
    scheduler::Faults,
};

/// Tokens of the fake model.
pub const VOCAB: usize = 64;
/// Tokens in a page.
pub const PAGE_SIZE: usize = 4;
/// Tokens of prompts that are scored in a step.
const SCORES: usize = 5;

/// What `options` come to where `context` says it all, without a model.
///
/// # Errors
/// Options that contradict each other or the context.
pub fn resolve(options: &GenerateOptions, context: &ResolveContext<'_>) -> Result<GenerationParams, ParameterError> {
    GenerationParams::resolve(options, context)
}

/// Makes forward passes panic, half way through, fail or wait.
#[derive(Debug, Clone, Default)]
pub struct DeviceFaults {
    once: Arc<AtomicBool>,
    failure: Arc<Mutex<Option<(DeviceErrorKind, At)>>>,
    /// A token and one, or 0.
    poison: Arc<AtomicU32>,
    gate: Arc<(Mutex<Gate>, Condvar)>,
}

/// Where a forward pass fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// Where it begins.
    Submit,
    /// When it has been computed.
    Collect,
}

#[derive(Debug, Default)]
struct Gate {
    /// How many passes may still begin; all where it is `None`.
    passes: Option<usize>,
    /// Whether one waits.
    waits: bool,
}

impl DeviceFaults {
    /// The next pass panics.
    pub fn once(&self) {
        self.once.store(true, Relaxed);
    }

    /// Every pass panics that computes this token.
    pub fn poison(&self, token: u32) {
        self.poison.store(token + 1, Relaxed);
    }

    /// The next pass fails, and all after it where the device is lost.
    pub fn fail_next(&self, kind: DeviceErrorKind, at: At) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some((kind, at));
    }

    fn fail(&self, at: At) -> Result<(), DeviceError> {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        match failure.take_if(|(_, here)| *here == at) {
            None => Ok(()),
            Some((kind, at)) => {
                *failure = Some((kind, at)).filter(|_| kind == DeviceErrorKind::Lost);
                Err(DeviceError::new(kind, "fake", "a failure, as asked for"))
            }
        }
    }

    /// Lets so many more passes begin, and the one after them wait.
    pub fn allow(&self, passes: usize) {
        let mut gate = self.gate();
        gate.waits &= passes == 0;
        gate.passes = Some(gate.passes.unwrap_or(0) + passes);
        self.gate.1.notify_all();
    }

    /// Lets all passes begin.
    pub fn release(&self) {
        self.gate().passes = None;
        self.gate.1.notify_all();
    }

    /// Returns when a pass waits.
    pub async fn waits(&self) {
        while !self.gate().waits {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self) {
        let mut gate = self.gate();
        while gate.passes == Some(0) {
            gate.waits = true;
            gate = self.gate.1.wait(gate).unwrap_or_else(PoisonError::into_inner);
        }
        gate.waits = false;
        gate.passes = gate.passes.map(|left| left - 1);
    }
}

/// A running engine of the fake model, and what makes it panic.
pub struct FakeEngine {
    /// The engine.
    pub engine: Engine,
    /// Panics in the bookkeeping of requests, which are numbered from 0 as they are submitted.
    pub requests: Faults,
    /// Panics in forward passes.
    pub device: DeviceFaults,
}

impl FakeEngine {
    /// Starts one with so many pages and sequences, that drafts up to `drafts` tokens in a step.
    ///
    /// # Errors
    /// A thread that can't be started.
    pub fn start(pages: u32, sequences: usize, drafts: usize) -> Result<Self, Error> {
        let device = DeviceFaults::default();
        let limits = ExecutorLimits {
            pages: pages as usize,
            page_size: PAGE_SIZE,
            step_tokens: 32,
            step_logits: sequences + drafts + SCORES,
            sequences,
            sequence_pages: pages as usize,
        };
        let executor = Box::new(FakeExecutor::new(limits, device.clone()));
        let limits = SchedulerLimits {
            sequences,
            step_tokens: 32,
            step_tokens_beside_streams: sequences.clamp(9, 32),
            step_drafts: drafts,
            step_scores: SCORES,
            long_above: None,
        };
        let scheduler = Scheduler::new(limits, KvCache::new(pages, PAGE_SIZE));
        let requests = scheduler.faults().clone();
        let host = Arc::new(ThreadPool::new(NonZeroUsize::MIN.saturating_add(1)));
        Ok(Self { engine: Engine::start(executor, host, scheduler, 100)?, requests, device })
    }
}

/// An executor whose KV cache holds the tokens themselves.
struct FakeExecutor {
    limits: ExecutorLimits,
    faults: DeviceFaults,
    /// A token and one in each slot of each page; 0 where none was written.
    slots: Vec<u32>,
    logits: Option<HostMemory>,
    states: Option<HostMemory>,
    under_way: Option<StepInput>,
}

impl FakeExecutor {
    fn new(limits: ExecutorLimits, faults: DeviceFaults) -> Self {
        let slots = vec![0; limits.pages * PAGE_SIZE];
        Self { limits, faults, slots, logits: None, states: None, under_way: None }
    }

    /// Copies pages and writes the step's tokens into theirs.
    fn write(&mut self, step: &StepInput) {
        for copy in &step.copies {
            let from = copy.from as usize * PAGE_SIZE;
            self.slots.copy_within(from..from + PAGE_SIZE, copy.to as usize * PAGE_SIZE);
        }
        for span in &step.spans {
            for row in 0..span.rows {
                let slot = slot(step.pages_of(span), span.context - span.rows + row);
                self.slots[slot] = step.tokens[span.first_row + row] + 1;
            }
        }
    }

    /// The state behind a row: a hash of all tokens up to it.
    fn state(&self, step: &StepInput, span: &InputSpan, row: usize) -> u32 {
        let last = span.context - span.rows + row - span.first_row;
        let past = (0..=last).map(|at| self.slots[slot(step.pages_of(span), at)]);
        past.fold(SEED, follow)
    }
}

/// The scores of what follows `tokens`, as the fake model has them: a function of all tokens.
pub fn scores_behind(tokens: &[u32]) -> Vec<f32> {
    let mut row = vec![0.0; VOCAB];
    scores(tokens.iter().fold(SEED, |hash, token| follow(hash, token + 1)), &mut row);
    row
}

/// The hash of no tokens, and how one goes on.
const SEED: u32 = 17;
fn follow(hash: u32, slot: u32) -> u32 {
    (hash ^ slot).wrapping_mul(0x9e37_79b1).rotate_left(13)
}

/// Where token `at` of a sequence lies.
fn slot(pages: &[PageId], at: usize) -> usize {
    pages[at / PAGE_SIZE] as usize * PAGE_SIZE + at % PAGE_SIZE
}

fn scores(state: u32, scores: &mut [f32]) {
    let mut state = (u64::from(state) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for score in scores {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *score = (state >> 40) as f32 / (1 << 22) as f32;
    }
}

impl Executor for FakeExecutor {
    fn limits(&self) -> &ExecutorLimits {
        &self.limits
    }

    fn vocab_size(&self) -> usize {
        VOCAB
    }

    fn submit(&mut self, input: StepInput) -> Result<Ticket, DeviceError> {
        self.faults.enter();
        self.write(&input);
        self.faults.fail(At::Submit)?;
        let poison = self.faults.poison.load(Relaxed);
        let poisoned = input.tokens.iter().any(|token| token + 1 == poison) || self.faults.once.swap(false, Relaxed);
        assert!(!poisoned, "a fault of the device, as asked for");
        self.under_way = Some(input);
        Ok(Ticket::new(0))
    }

    fn collect(&mut self, _: Ticket) -> Result<StepOutput, DeviceError> {
        let step = self.under_way.take().unwrap_or_default();
        self.faults.fail(At::Collect)?;
        let mut logits = self.logits.take().unwrap_or_else(|| Box::new(vec![0.0; self.limits.step_logits * VOCAB]));
        let mut rows = (*logits).as_mut().chunks_exact_mut(VOCAB);
        for span in &step.spans {
            let wanted = step.wanted.iter().filter(|&&row| (span.first_row..span.first_row + span.rows).contains(&row));
            wanted.zip(&mut rows).for_each(|(&row, out)| scores(self.state(&step, span, row), out));
        }
        let len = step.wanted.len() * VOCAB;
        if !step.states {
            return Ok(StepOutput::new(step, logits, len));
        }
        // A state is the half of its hash that f32 has room for.
        let mut states = self.states.take().unwrap_or_else(|| Box::new(vec![0.0; self.limits.step_tokens]));
        for span in &step.spans {
            for row in span.first_row..span.first_row + span.rows {
                (*states).as_mut()[row] = (self.state(&step, span, row) >> 16) as f32;
            }
        }
        let rows = step.rows();
        Ok(StepOutput::new(step, logits, len).with_states(states, rows))
    }

    fn recycle(&mut self, output: StepOutput) -> StepInput {
        let (mut input, logits, states) = output.into_parts();
        (self.logits, self.states) = (Some(logits), states);
        input.clear();
        input
    }
}

//! Which tokens of which sequences run in the next step: continuous batching with chunked prefill.
//!
//! There is no prefill phase and no decode phase: a sequence of a request (a sample, a beam) has tokens that are computed
//! and tokens that are not, and a step's budget is spent on the ones that are not. Sequences that lack one token, the
//! running streams, come first, so that a long prompt, computed in chunks behind them, stops nobody.
//!
//! A stream may have a draft: tokens proposed for it, which are computed in the same step and verified (speculative
//! decoding, see [`crate::speculation`]).
//!
//! The scheduler plans a step ([`Scheduler::schedule`]), notes that it was computed ([`Scheduler::computed`]) and settles
//! what was chosen ([`Scheduler::settle`]). Choosing the tokens in between is [`crate::token_choice`]'s.
//!
//! A panic while it works leaves what it worked on half done. The caller catches it and calls [`Scheduler::start_over`]: the request
//! under work is gone then, and all others are computed again in fresh pages.
//!
//! Invariants, checked by property tests:
//! - requests start in the order in which they came, and the one that came last is preempted first;
//! - a request that was admitted ends: alone, it always fits ([`pages_needed`] bounds what it can hold);
//! - when nothing runs, every page is free;
//! - a step looks at each running request a few times, however many run: nothing is looked up by its id.

mod faults;
mod plan;
mod request;
mod running;
mod settle;
mod step;

use std::collections::VecDeque;

pub use self::{
    faults::Faults,
    request::{Choice, Choosing},
    step::{Rows, SequenceView, Started, Step, StepSpan},
};
use self::{request::Request, running::Running};
use crate::{Error, generate::Generation, kv_cache::KvCache, speculation::StepCost};

/// Names a request inside the engine.
pub type RequestId = u64;

/// What is done on behalf of one request at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It is queued.
    Submit,
    /// Its client hears that it left the queue.
    Start,
    /// It is taken out.
    Remove,
    /// One of its sequences is stopped.
    Stop,
    /// It is admitted, planned, or preempted.
    Schedule,
    /// Its computed tokens are taken note of.
    Note,
    /// Its next tokens are chosen.
    Choose,
    /// What was chosen is followed.
    Settle,
}

/// Bounds of a step.
#[derive(Debug, Clone, Copy)]
pub struct SchedulerLimits {
    /// Sequences that run at the same time.
    pub sequences: usize,
    /// Tokens of a step in which no sequence waits for its next token.
    pub step_tokens: usize,
    /// Tokens of prompts computed in a step beside sequences that wait for their next token.
    pub step_tokens_beside_streams: usize,
    /// Most tokens of drafts in a step; 0 proposes none.
    pub step_drafts: usize,
    /// Most tokens of prompts that are scored in a step; with 0, no request may ask for that.
    pub step_scores: usize,
    /// Sequence length above which a model's other rotary factors apply, and all its keys are computed again.
    pub long_above: Option<usize>,
}

/// The failure of a request whose own part of the work panicked.
pub(crate) fn panicked() -> Error {
    Error::Internal("the computation of this request panicked; see the log".to_owned())
}

/// Requests, their pages, and the order in which they run.
#[derive(Debug)]
pub struct Scheduler {
    limits: SchedulerLimits,
    cache: KvCache,
    waiting: VecDeque<Request>,
    running: Running,
    preemptions: u64,
    reused_tokens: u64,
    cost: StepCost,
    proposed_tokens: u64,
    accepted_tokens: u64,
    /// Whose panic it would be.
    at_work: Option<(Phase, RequestId)>,
    faults: Faults,
}

impl Scheduler {
    /// A scheduler over an empty cache.
    pub fn new(limits: SchedulerLimits, cache: KvCache) -> Self {
        Self {
            limits,
            cache,
            waiting: VecDeque::new(),
            running: Running::default(),
            preemptions: 0,
            reused_tokens: 0,
            cost: StepCost::default(),
            proposed_tokens: 0,
            accepted_tokens: 0,
            at_work: None,
            faults: Faults::default(),
        }
    }

    /// Where tests make a request panic.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Notes what is done now, and for whom.
    pub(crate) fn work_on(&mut self, phase: Phase, id: RequestId) {
        self.at_work = Some((phase, id));
        self.faults.strike(phase, id);
    }

    /// Whether it holds a request.
    pub fn holds(&self, id: RequestId) -> bool {
        self.running.iter().chain(&self.waiting).any(|request| request.id == id)
    }

    /// Makes everything whole again after a panic. Takes out the request that was under work, which is whose fault the panic
    /// is, and what it was doing; where that is not known, all that run. The others lose their pages, since nobody knows
    /// which of them can be trusted, and are computed again. Requests that were in nobody's hands are gone, too:
    /// [`Self::holds`] tells.
    pub fn start_over(&mut self) -> Option<(Phase, RequestId)> {
        let culprit = self.at_work.take();
        let pages = u32::try_from(self.cache.total_pages()).unwrap_or(u32::MAX);
        self.cache = KvCache::new(pages, self.cache.page_size());
        if let Some((_, id)) = culprit {
            self.waiting.retain(|request| request.id != id);
        }
        for mut request in self.running.drain().rev() {
            if culprit.is_some_and(|(_, id)| request.id != id) {
                request.forget_step();
                self.waiting.push_front(request);
            }
        }
        culprit
    }

    /// The pages.
    pub fn cache(&self) -> &KvCache {
        &self.cache
    }

    /// The bounds of a step.
    pub fn limits(&self) -> &SchedulerLimits {
        &self.limits
    }

    /// Sequences that run.
    pub fn running_sequences(&self) -> usize {
        self.running.sequences()
    }

    /// How often a running request was preempted: its pages went to an older one.
    pub fn preemptions(&self) -> u64 {
        self.preemptions
    }

    /// Tokens of prompts whose keys and values were found in the prefix cache.
    pub fn reused_tokens(&self) -> u64 {
        self.reused_tokens
    }

    /// Tokens of drafts, and how many of them were right.
    pub fn proposed_tokens(&self) -> (u64, u64) {
        (self.proposed_tokens, self.accepted_tokens)
    }

    /// Takes note of what a step cost, for the decision whether to propose tokens.
    pub fn observe_cost(&mut self, step: &Step, seconds: f64) {
        self.cost.observe(step.tokens(), seconds);
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Queues a request. Its `pages_needed` must not exceed all pages, nor its sequences the limit.
    pub fn submit(&mut self, id: RequestId, generation: Generation) {
        self.work_on(Phase::Submit, id);
        self.waiting.push_back(Request::new(id, generation));
    }

    /// Takes a request out, wherever it is, and frees its pages.
    pub fn remove(&mut self, id: RequestId) -> Option<Generation> {
        self.work_on(Phase::Remove, id);
        let request = match self.running.find(id) {
            Some(index) => self.running.take(index)?,
            None => {
                let index = self.waiting.iter().position(|request| request.id == id)?;
                self.waiting.remove(index)?
            }
        };
        Some(self.release(request))
    }

    fn release(&mut self, mut request: Request) -> Generation {
        for sequence in &mut request.sequences {
            self.cache.release(&mut sequence.table);
        }
        request.generation
    }

    /// A sequence that a step names; `None` where its request has left.
    pub fn sequence(&self, span: &StepSpan) -> Option<SequenceView<'_>> {
        let request = self.running.of(span)?;
        Some(SequenceView {
            tokens: request.generation.tokens(span.sequence),
            draft: &request.draft,
            pages: request.sequences.get(span.sequence)?.table.pages(),
            variant: request.variant,
        })
    }

    /// What of a step is the request's that `own` spans are of; nothing where it has left.
    pub fn share(&self, step: &Step, own: &[StepSpan]) -> Step {
        let request = own.first().and_then(|span| self.running.of(span));
        let Some(Request { sequences, .. }) = request else { return Step::default() };
        let holds = |page: u32| sequences.iter().any(|sequence| sequence.table.pages().contains(&page));
        Step {
            spans: own.to_vec(),
            copies: step.copies.iter().filter(|copy| holds(copy.to)).copied().collect(),
            started: Vec::new(),
        }
    }
}

/// The most pages that a request of `sequences` sequences can hold: the full pages of its prompt once, the rest of each
/// sequence of up to `total` tokens by itself.
pub fn pages_needed(page_size: usize, prompt: usize, total: usize, sequences: usize) -> usize {
    let shared = prompt / page_size;
    shared + sequences * total.div_ceil(page_size).saturating_sub(shared)
}

#[cfg(test)]
mod machine;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

//! Which tokens of which sequences run in the next step.
//!
//! There is no prefill phase and no decode phase: a row (one sequence of a request: a beam, a sample) has tokens that are
//! computed and tokens that are not, and a step's budget is spent on the ones that are not. Rows that lack one token, the
//! running streams, come first, so that a long prompt, computed in chunks behind them, stops nobody.
//!
//! A stream may have tokens proposed for it, which are computed in the same step and verified (see [`crate::speculation`]).
//!
//! A panic while it works leaves what it worked on half done. Whoever catches it calls [`Scheduler::start_over`]: the request
//! under work is gone then, and all others are computed again in fresh pages.
//!
//! Invariants, checked by property tests:
//! - requests start in the order in which they came, and the one that came last gives up its pages first;
//! - a request that was admitted ends: alone, it always fits ([`pages_needed`] bounds what it can hold);
//! - when nothing runs, every page is free.

mod faults;
mod group;
mod step;

use std::{
    collections::VecDeque,
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Mutex, PoisonError},
};

use self::group::{Choice, Group};
pub use self::{
    faults::Faults,
    step::{RowView, Step, StepSpan},
};
use crate::{
    Error,
    generate::{Advance, Generation, Stopped},
    kv_cache::KvCache,
    parallel::Parallel,
    recycle::recycled,
    speculation::StepCost,
};

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
    /// It is admitted, planned, or gives up its pages.
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
    /// Rows that run at the same time.
    pub rows: usize,
    /// Tokens of a step in which no row waits for its next token.
    pub step_tokens: usize,
    /// Tokens of prompts computed in a step beside rows that wait for their next token.
    pub step_tokens_beside_streams: usize,
    /// Most proposed tokens in a step; 0 proposes none.
    pub step_drafts: usize,
    /// Sequence length above which a model's other rotary factors apply, and all its keys are computed again.
    pub long_above: Option<usize>,
}

/// The failure of a request whose own part of the work panicked.
pub(crate) fn panicked() -> Error {
    Error::Internal("the computation of this request panicked; see the log".to_owned())
}

/// A request and the logits of its rows.
struct Choosing<'a, 'l> {
    group: &'a mut Group,
    logits: &'a mut [&'l mut [f32]],
}

impl std::fmt::Debug for Choosing<'_, '_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Choosing({})", self.group.id)
    }
}

/// Requests, their pages, and the order in which they run.
#[derive(Debug)]
pub struct Scheduler {
    limits: SchedulerLimits,
    cache: KvCache,
    waiting: VecDeque<Group>,
    running: Vec<Group>,
    preemptions: u64,
    reused_tokens: u64,
    cost: StepCost,
    proposed_tokens: u64,
    accepted_tokens: u64,
    /// Memory that each step uses again.
    spans: Vec<StepSpan>,
    choosing: Vec<Mutex<Choosing<'static, 'static>>>,
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
            running: Vec::new(),
            preemptions: 0,
            reused_tokens: 0,
            cost: StepCost::default(),
            proposed_tokens: 0,
            accepted_tokens: 0,
            spans: Vec::with_capacity(limits.rows),
            choosing: Vec::with_capacity(limits.rows),
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
        self.running.iter().chain(&self.waiting).any(|group| group.id == id)
    }

    /// Makes everything whole again after a panic. Takes out the request that was under work, which is whose fault the panic
    /// is, and what it was doing; where that is not known, all that run. The others give up their pages, since nobody knows
    /// which of them can be trusted, and are computed again. Requests that were in nobody's hands are gone, too:
    /// [`Self::holds`] tells.
    pub fn start_over(&mut self) -> Option<(Phase, RequestId)> {
        let culprit = self.at_work.take();
        let pages = u32::try_from(self.cache.total_pages()).unwrap_or(u32::MAX);
        self.cache = KvCache::new(pages, self.cache.page_size());
        match culprit {
            Some((_, id)) => {
                self.running.retain(|group| group.id != id);
                self.waiting.retain(|group| group.id != id);
            }
            None => self.running.clear(),
        }
        while let Some(mut group) = self.running.pop() {
            group.forget();
            if mem::take(&mut group.choice.advance.restarted) {
                group.ngrams.clear();
            }
            // Where tokens were chosen in this step, they were chosen for good; only pages do not follow them any more.
            group.choice.accepted = 0;
            group.choice.advance.parents.clear();
            group.choice.advance.parents.extend(0..group.rows.len());
            self.waiting.push_front(group);
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

    /// Rows that run.
    pub fn running_rows(&self) -> usize {
        self.running.iter().map(|group| group.rows.len()).sum()
    }

    /// How often a running request gave its pages to an older one.
    pub fn preemptions(&self) -> u64 {
        self.preemptions
    }

    /// Tokens of prompts whose keys and values were found in pages of earlier texts.
    pub fn reused_tokens(&self) -> u64 {
        self.reused_tokens
    }

    /// Tokens that were proposed, and how many of them were right.
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

    /// Queues a request. Its `pages_needed` must not exceed all pages, nor its rows the limit.
    pub fn submit(&mut self, id: RequestId, generation: Generation) {
        self.work_on(Phase::Submit, id);
        self.waiting.push_back(Group::new(id, generation));
    }

    /// Takes a request out, wherever it is, and frees its pages.
    pub fn remove(&mut self, id: RequestId) -> Option<Generation> {
        self.work_on(Phase::Remove, id);
        let group = match self.running.iter().position(|group| group.id == id) {
            Some(index) => Some(self.running.remove(index)),
            None => {
                let index = self.waiting.iter().position(|group| group.id == id)?;
                self.waiting.remove(index)
            }
        };
        let mut group = group?;
        for row in &mut group.rows {
            self.cache.release(&mut row.table);
        }
        Some(group.generation)
    }

    /// A row that a step names.
    pub fn row(&self, id: RequestId, row: usize) -> Option<RowView<'_>> {
        let group = self.running.iter().find(|group| group.id == id)?;
        Some(RowView {
            tokens: group.generation.tokens(row),
            draft: &group.draft,
            pages: group.rows.get(row)?.table.pages(),
            long: group.long,
        })
    }

    /// Decides the next step and takes the pages that it writes. `false` if there is nothing to do.
    pub fn schedule(&mut self, step: &mut Step) -> bool {
        step.spans.clear();
        step.copies.clear();
        step.started.clear();
        self.at_work = None;
        self.restart_long_rows();
        step.spans.reserve(self.limits.rows);
        let streams = self.running.iter().any(Group::streams);
        let mut budget = self.limits.step_tokens;
        // Streams first: they are older than what is admitted below, or equally entitled to one token each.
        for streams_only in [true, false] {
            if !streams_only {
                if streams {
                    budget = budget.min(self.limits.step_tokens_beside_streams);
                }
                self.admit(budget, step);
            }
            let mut index = 0;
            while index < self.running.len() && budget > 0 {
                let id = self.running[index].id;
                let planned = step.spans.iter().any(|span| span.request == id);
                if !planned && (!streams_only || self.running[index].streams()) {
                    self.work_on(Phase::Schedule, id);
                    if streams_only {
                        self.propose(index, budget, step);
                    }
                    self.plan(index, &mut budget, step);
                }
                // Preemption may have shortened the list, but never before `index`, unless it took `index` itself.
                index += usize::from(self.running.get(index).is_some_and(|group| group.id == id));
            }
        }
        self.at_work = None;
        if step.spans.is_empty() {
            debug_assert!(self.is_idle(), "a request that was admitted can always run alone");
            return false;
        }
        let position = |id: RequestId| self.running.iter().position(|group| group.id == id);
        step.spans.sort_unstable_by_key(|span| (position(span.request), span.row));
        true
    }

    /// Notes that a step was computed.
    pub fn computed(&mut self, step: &Step) {
        for span in &step.spans {
            self.work_on(Phase::Note, span.request);
            if let Some(group) = self.running.iter_mut().find(|group| group.id == span.request) {
                let root = group.root();
                let row = &mut group.rows[span.row];
                // What is proposed is computed for good only if it turns out to be right.
                row.computed = span.start + span.count - group.draft.len();
                if let Some(computed) = group.generation.tokens(span.row).get(..row.computed) {
                    self.cache.make_known(&mut row.table, root, computed);
                }
                group.fork_if_ready(&mut self.cache);
            }
        }
        self.at_work = None;
    }

    /// What of a step is one running request's.
    pub fn share(&self, step: &Step, id: RequestId) -> Step {
        let of = |group: &&Group| group.id == id;
        let rows = self.running.iter().find(of).map_or(&[][..], |group| group.rows.as_slice());
        let holds = |page: u32| rows.iter().any(|row| row.table.pages().contains(&page));
        Step {
            spans: step.spans.iter().filter(|span| span.request == id && !rows.is_empty()).copied().collect(),
            copies: step.copies.iter().filter(|copy| holds(copy.to)).copied().collect(),
            started: Vec::new(),
        }
    }

    /// Chooses the next tokens of the requests whose rows all have logits now, each request a piece of work for `host`.
    /// `logits` are the step's, in the order of its spans. What comes of it is for [`Self::settle`] to tell.
    pub fn choose(&mut self, host: &dyn Parallel, step: &Step, mut logits: &mut [&mut [f32]]) {
        let mut choosing = recycled(mem::take(&mut self.choosing));
        for group in &mut self.running {
            let wanted = step.logits_of(group.id).min(logits.len());
            let (own, rest) = mem::take(&mut logits).split_at_mut(wanted);
            logits = rest;
            if wanted > 0 {
                choosing.push(Mutex::new(Choosing { group, logits: own }));
            }
        }
        let faults = &self.faults;
        host.for_each(choosing.len(), &|index| {
            let mut choosing = choosing[index].lock().unwrap_or_else(PoisonError::into_inner);
            let Choosing { group, logits } = &mut *choosing;
            let chosen = catch_unwind(AssertUnwindSafe(|| {
                faults.strike(Phase::Choose, group.id);
                group.choose(logits)
            }));
            group.choice.error = match chosen {
                Ok(chosen) => chosen.err().map(Error::from),
                Err(_) => Some(panicked()),
            };
        });
        self.choosing = recycled(choosing);
    }

    /// Follows what was chosen for a request and returns it.
    pub fn settle(&mut self, id: RequestId) -> Option<Result<&mut Advance, Error>> {
        self.work_on(Phase::Settle, id);
        // One that waits is back there since its step began.
        let group = self.running.iter_mut().chain(&mut self.waiting).find(|group| group.id == id)?;
        let Choice { advance, accepted, error } = mem::take(&mut group.choice);
        if let Some(error) = error {
            return Some(Err(error));
        }
        if accepted > 0 {
            group.rows[0].computed += accepted;
        }
        if !group.draft.is_empty() {
            group.speculator.observe(group.draft.len(), accepted);
            self.proposed_tokens += group.draft.len() as u64;
            self.accepted_tokens += accepted as u64;
            group.draft.clear();
        }
        let restarted = advance.restarted;
        if !restarted {
            group.follow(&advance.parents, &mut self.cache);
        }
        group.choice.advance = advance;
        if restarted {
            self.restart(id);
        }
        let group = self.running.iter_mut().chain(&mut self.waiting).find(|group| group.id == id)?;
        Some(Ok(&mut group.choice.advance))
    }

    /// Follows a request that is back at its prompt: it goes on at once, or behind those that wait for its rows.
    fn restart(&mut self, id: RequestId) {
        let index = self.running.iter().position(|group| group.id == id);
        let waits = index.is_none() || !self.waiting.is_empty();
        let group = match index {
            Some(index) => self.running.get_mut(index),
            None => self.waiting.iter_mut().find(|group| group.id == id),
        };
        let Some(group) = group else { return };
        group.restart(&mut self.cache);
        if !waits {
            group.reuse(&mut self.cache);
        } else if let Some(index) = index {
            let group = self.running.remove(index);
            self.waiting.push_back(group);
        }
    }

    /// Ends one sequence of a request where it stands. Returns whether that ends the request.
    pub fn stop_sequence(&mut self, id: RequestId, sequence: usize) -> Option<bool> {
        self.work_on(Phase::Stop, id);
        let group = self.running.iter_mut().chain(&mut self.waiting).find(|group| group.id == id)?;
        let stopped = group.generation.stop_sequence(sequence);
        let finished = group.generation.is_finished();
        match stopped {
            Stopped::NoRow => {}
            Stopped::Row(gone) => {
                let kept: Vec<usize> = (0..group.rows.len()).filter(|&row| row != gone).collect();
                group.follow(&kept, &mut self.cache);
            }
            Stopped::AllRows => self.restart(id),
        }
        Some(finished)
    }

    /// A sequence that outgrew the rotary factors of its keys is computed again from the start.
    fn restart_long_rows(&mut self) {
        let Some(above) = self.limits.long_above else { return };
        for group in &mut self.running {
            self.at_work = Some((Phase::Schedule, group.id));
            let long = (0..group.rows.len()).any(|row| group.len(row) > above);
            if long != group.long {
                group.long = long;
                group.reset(&mut self.cache);
                group.reuse(&mut self.cache);
            }
        }
    }

    /// Moves requests from the queue to the running ones, oldest first, while rows and pages last.
    fn admit(&mut self, budget: usize, step: &mut Step) {
        let mut rows: usize = self.running.iter().map(|group| group.generation.max_rows()).sum();
        let mut unclaimed = self.cache.free_pages().saturating_sub(self.claimed_pages());
        let mut tokens: usize = step.spans.iter().map(|span| span.count).sum();
        while let Some(id) = self.waiting.front().map(|group| group.id) {
            self.work_on(Phase::Schedule, id);
            let Some(group) = self.waiting.front_mut() else { break };
            let longest = (0..group.rows.len()).map(|row| group.len(row)).max().unwrap_or(0);
            group.long = self.limits.long_above.is_some_and(|above| longest > above);
            group.reset(&mut self.cache);
            let known = group.known(&self.cache);
            // Known pages that somebody holds are not taken from the free ones.
            let pages =
                pages_needed(self.cache.page_size(), longest, longest + 1, group.rows.len()).saturating_sub(known.held);
            let fits = rows + group.generation.max_rows() <= self.limits.rows && pages <= unclaimed && tokens < budget;
            if !fits && !self.running.is_empty() {
                break;
            }
            let Some(mut group) = self.waiting.pop_front() else { break };
            rows += group.generation.max_rows();
            unclaimed = unclaimed.saturating_sub(pages);
            tokens += longest.saturating_sub(known.pages * self.cache.page_size());
            group.reuse(&mut self.cache);
            group.reserve(self.limits.step_drafts > 0);
            if !mem::replace(&mut group.started, true) {
                self.reused_tokens += (known.pages * self.cache.page_size()) as u64;
                step.started.push(group.id);
            }
            self.running.push(group);
        }
    }

    /// Pages that the running rows lack for the tokens they have, and one more each: without that headroom, what is
    /// admitted now would soon lose its pages again and be computed twice.
    fn claimed_pages(&self) -> usize {
        let lacking = |group: &Group| -> usize {
            let row = |row: usize| {
                self.cache.pages_for(group.len(row) + 1).saturating_sub(group.rows[row].table.pages().len()) + 1
            };
            (0..group.rows.len()).map(row).sum()
        };
        self.running.iter().map(lacking).sum()
    }

    /// Proposes tokens for a stream, where that is expected to pay and neither pages nor places of others are taken for it.
    fn propose(&mut self, index: usize, budget: usize, step: &Step) {
        let drafted: usize = step.spans.iter().map(|span| span.logits.saturating_sub(1)).sum();
        let streams = self.running_rows();
        let group = &mut self.running[index];
        group.draft.clear();
        // Several rows advance together or not at all, and beams are reordered at every token.
        if group.generation.max_rows() != 1 || group.rows.len() != 1 {
            return;
        }
        let len = group.len(0);
        let above = self.limits.long_above.filter(|_| !group.long).unwrap_or(usize::MAX);
        let spare = self.cache.free_pages().saturating_sub(streams) * self.cache.page_size();
        let limit = self
            .limits
            .step_drafts
            .saturating_sub(drafted)
            .min(budget.saturating_sub(streams))
            .min(group.generation.max_total_len().saturating_sub(len + 1))
            .min(above.saturating_sub(len))
            .min(spare);
        let tokens = streams + drafted;
        let mut length = group.speculator.length(&self.cost, tokens, tokens as f64).min(limit);
        if limit == 0 {
            return;
        }
        group.ngrams.propose(group.generation.tokens(0), length.max(1), &mut group.draft);
        if length == 0 && !group.draft.is_empty() {
            length = usize::from(group.speculator.try_again());
        }
        group.draft.truncate(length);
    }

    /// Adds to `step` what `running[index]` can compute within `budget`. Where pages are missing, younger requests give
    /// theirs up; where there is no younger one, this request does.
    fn plan(&mut self, index: usize, budget: &mut usize, step: &mut Step) {
        let mut spans = mem::take(&mut self.spans);
        self.running[index].spans(*budget, &mut spans);
        if self.take_pages(index, &spans, step) {
            *budget -= spans.iter().map(|span| span.count).sum::<usize>();
            step.spans.extend_from_slice(&spans);
        }
        self.spans = spans;
    }

    /// Makes writable what `spans` of `running[index]` write. `false` if the request had to give up its pages for that.
    fn take_pages(&mut self, index: usize, spans: &[StepSpan], step: &mut Step) -> bool {
        let id = self.running[index].id;
        for span in spans {
            loop {
                let Some(group) = self.running.get_mut(index).filter(|group| group.id == id) else { return false };
                let table = &mut group.rows[span.row].table;
                let end = span.start + span.count;
                match self.cache.prepare_write(table, span.start, end, &mut step.copies) {
                    Ok(()) => break,
                    Err(_) => {
                        self.preempt_youngest(step);
                        self.at_work = Some((Phase::Schedule, id));
                    }
                }
            }
        }
        true
    }

    /// Sends the request that came last back to the head of the queue, without its pages.
    fn preempt_youngest(&mut self, step: &mut Step) {
        let Some(id) = self.running.last().map(|group| group.id) else { return };
        self.work_on(Phase::Schedule, id);
        let Some(mut group) = self.running.pop() else { return };
        self.preemptions += 1;
        group.reset(&mut self.cache);
        step.spans.retain(|span| span.request != group.id);
        let free_again =
            |page: u32| self.running.iter().all(|g| g.rows.iter().all(|r| !r.table.pages().contains(&page)));
        step.copies.retain(|copy| !free_again(copy.to));
        self.waiting.push_front(group);
    }
}

/// The most pages that a request of `rows` rows can hold: the full pages of its prompt once, the rest of each row of up to
/// `total` tokens by itself.
pub fn pages_needed(page_size: usize, prompt: usize, total: usize, rows: usize) -> usize {
    let shared = prompt / page_size;
    shared + rows * total.div_ceil(page_size).saturating_sub(shared)
}

#[cfg(test)]
mod properties;

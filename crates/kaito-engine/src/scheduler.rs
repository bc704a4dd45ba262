//! Which tokens of which sequences run in the next step.
//!
//! There is no prefill phase and no decode phase: a row (one sequence of a request: a beam, a sample) has tokens that are
//! computed and tokens that are not, and a step's budget is spent on the ones that are not. Rows that lack one token, the
//! running streams, come first, so that a long prompt, computed in chunks behind them, stops nobody.
//!
//! Invariants, checked by property tests:
//! - requests start in the order in which they came, and the one that came last gives up its pages first;
//! - a request that was admitted ends: alone, it always fits ([`pages_needed`] bounds what it can hold);
//! - when nothing runs, every page is free.

use std::collections::VecDeque;

use crate::{
    generate::{Advance, GenerateError, Generation},
    kv_cache::{KvCache, PageCopy, PageTable},
};

/// Names a request inside the engine.
pub type RequestId = u64;

/// Bounds of a step.
#[derive(Debug, Clone, Copy)]
pub struct SchedulerLimits {
    /// Rows that run at the same time.
    pub rows: usize,
    /// Tokens of a step in which no row waits for its next token.
    pub step_tokens: usize,
    /// Tokens of prompts computed in a step beside rows that wait for their next token.
    pub step_tokens_beside_streams: usize,
    /// Sequence length above which a model's other rotary factors apply, and all its keys are computed again.
    pub long_above: Option<usize>,
}

/// One row's share of a step: its tokens `start..start + count`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepSpan {
    /// The row's request.
    pub request: RequestId,
    /// The row of the request.
    pub row: usize,
    /// First token to compute.
    pub start: usize,
    /// Tokens to compute.
    pub count: usize,
    /// Whether logits are wanted: the span ends with the row's last token.
    pub logits: bool,
}

/// What to compute next.
#[derive(Debug, Default)]
pub struct Step {
    /// Spans, those of a request together and in the order of its rows.
    pub spans: Vec<StepSpan>,
    /// Pages to copy before anything is computed.
    pub copies: Vec<PageCopy>,
    /// Requests that left the queue in this step.
    pub started: Vec<RequestId>,
}

#[derive(Debug, Default)]
struct Row {
    table: PageTable,
    computed: usize,
}

/// A request that is waiting or running.
#[derive(Debug)]
struct Group {
    id: RequestId,
    generation: Generation,
    /// One entry for each live row of `generation`. While `shared_prefix` is set, only the first has pages.
    rows: Vec<Row>,
    /// Tokens that all rows begin with and the first row must compute before the others fork from it.
    shared_prefix: Option<usize>,
    long: bool,
    started: bool,
}

impl Group {
    fn len(&self, row: usize) -> usize {
        self.generation.tokens(row).len()
    }

    fn missing(&self, row: usize) -> usize {
        self.len(row) - self.rows[row].computed
    }

    /// Whether every row lacks just the token that was chosen last.
    fn streams(&self) -> bool {
        self.shared_prefix.is_none() && self.rows.iter().enumerate().all(|(row, _)| self.missing(row) == 1)
    }

    /// Forgets all that was computed.
    fn reset(&mut self, cache: &mut KvCache) {
        for row in &mut self.rows {
            cache.release(&mut row.table);
            row.computed = 0;
        }
        // The last token of each row is left to compute, since that is what gives logits.
        let longest = (0..self.rows.len()).map(|row| self.len(row)).min().unwrap_or(0).saturating_sub(1);
        self.shared_prefix = (1..self.rows.len())
            .map(|row| {
                let pairs = self.generation.tokens(0).iter().zip(self.generation.tokens(row));
                pairs.take(longest).take_while(|(a, b)| a == b).count()
            })
            .min()
            .filter(|&prefix| prefix > 0);
    }

    /// Gives the other rows their share of the prefix, once the first row has it.
    fn fork_if_ready(&mut self, cache: &mut KvCache) {
        let Some(prefix) = self.shared_prefix else { return };
        if self.rows[0].computed < prefix {
            return;
        }
        let (first, others) = self.rows.split_at_mut(1);
        for row in others {
            row.table = cache.fork(&first[0].table, prefix);
            row.computed = prefix;
        }
        self.shared_prefix = None;
    }

    /// Follows an advance of the generation: new row `i` continues old row `parents[i]`.
    fn follow(&mut self, parents: &[usize], cache: &mut KvCache) {
        let mut old = std::mem::take(&mut self.rows);
        let mut uses = vec![0usize; old.len()];
        for &parent in parents {
            uses[parent] += 1;
        }
        self.rows = parents
            .iter()
            .map(|&parent| {
                uses[parent] -= 1;
                let computed = old[parent].computed;
                let table = match uses[parent] {
                    0 => std::mem::take(&mut old[parent].table),
                    _ => cache.fork(&old[parent].table, computed),
                };
                Row { table, computed }
            })
            .collect();
        for mut row in old {
            cache.release(&mut row.table);
        }
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
}

impl Scheduler {
    /// A scheduler over an empty cache.
    pub fn new(limits: SchedulerLimits, cache: KvCache) -> Self {
        Self { limits, cache, waiting: VecDeque::new(), running: Vec::new(), preemptions: 0 }
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

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Queues a request. Its `pages_needed` must not exceed all pages, nor its rows the limit.
    pub fn submit(&mut self, id: RequestId, generation: Generation) {
        let rows = (0..generation.rows()).map(|_| Row::default()).collect();
        self.waiting.push_back(Group { id, generation, rows, shared_prefix: None, long: false, started: false });
    }

    /// Takes a request out, wherever it is, and frees its pages.
    pub fn remove(&mut self, id: RequestId) -> Option<Generation> {
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

    /// All tokens and the pages of a row that a step names.
    pub fn row(&self, id: RequestId, row: usize) -> Option<(&[u32], &[u32], bool)> {
        let group = self.running.iter().find(|group| group.id == id)?;
        Some((group.generation.tokens(row), group.rows.get(row)?.table.pages(), group.long))
    }

    /// Decides the next step and takes the pages that it writes. `None` if there is nothing to do.
    pub fn schedule(&mut self) -> Option<Step> {
        self.restart_long_rows();
        let mut step = Step::default();
        let streams = self.running.iter().any(Group::streams);
        let mut budget = self.limits.step_tokens;
        // Streams first: they are older than what is admitted below, or equally entitled to one token each.
        for streams_only in [true, false] {
            if !streams_only {
                if streams {
                    budget = budget.min(self.limits.step_tokens_beside_streams);
                }
                self.admit(budget, &mut step);
            }
            let mut index = 0;
            while index < self.running.len() && budget > 0 {
                let id = self.running[index].id;
                let planned = step.spans.iter().any(|span| span.request == id);
                if !planned && (!streams_only || self.running[index].streams()) {
                    self.plan(index, &mut budget, &mut step);
                }
                // Preemption may have shortened the list, but never before `index`, unless it took `index` itself.
                index += usize::from(self.running.get(index).is_some_and(|group| group.id == id));
            }
        }
        if step.spans.is_empty() {
            debug_assert!(self.is_idle(), "a request that was admitted can always run alone");
            return None;
        }
        Some(step)
    }

    /// Notes that a step was computed; returns the requests whose rows all have logits now.
    pub fn computed(&mut self, step: &Step) -> Vec<RequestId> {
        let mut ready = Vec::new();
        for span in &step.spans {
            if let Some(group) = self.running.iter_mut().find(|group| group.id == span.request) {
                group.rows[span.row].computed = span.start + span.count;
                group.fork_if_ready(&mut self.cache);
                if span.logits && ready.last() != Some(&span.request) {
                    ready.push(span.request);
                }
            }
        }
        ready
    }

    /// Hands the logits of a request's rows to its generation, and follows the rows that come of it.
    pub fn advance(&mut self, id: RequestId, logits: &mut [&mut [f32]]) -> Option<Result<Advance, GenerateError>> {
        let group = self.running.iter_mut().find(|group| group.id == id)?;
        let result = group.generation.advance(logits);
        if let Ok(advance) = &result {
            group.follow(&advance.parents, &mut self.cache);
        }
        Some(result)
    }

    /// Ends one sequence of a request where it stands. Returns whether that ends the request.
    pub fn stop_sequence(&mut self, id: RequestId, sequence: usize) -> Option<bool> {
        let group = self.running.iter_mut().chain(&mut self.waiting).find(|group| group.id == id)?;
        if let Some(gone) = group.generation.stop_sequence(sequence) {
            let kept: Vec<usize> = (0..group.rows.len()).filter(|&row| row != gone).collect();
            group.follow(&kept, &mut self.cache);
        }
        Some(group.generation.is_finished())
    }

    /// A sequence that outgrew the rotary factors of its keys is computed again from the start.
    fn restart_long_rows(&mut self) {
        let Some(above) = self.limits.long_above else { return };
        for group in &mut self.running {
            let long = (0..group.rows.len()).any(|row| group.len(row) > above);
            if long != group.long {
                group.long = long;
                group.reset(&mut self.cache);
            }
        }
    }

    /// Moves requests from the queue to the running ones, oldest first, while rows and pages last.
    fn admit(&mut self, budget: usize, step: &mut Step) {
        let mut rows: usize = self.running.iter().map(|group| group.generation.max_rows()).sum();
        let mut unclaimed = self.cache.free_pages().saturating_sub(self.claimed_pages());
        let mut tokens: usize = step.spans.iter().map(|span| span.count).sum();
        while let Some(group) = self.waiting.front() {
            let longest = (0..group.rows.len()).map(|row| group.len(row)).max().unwrap_or(0);
            let pages = pages_needed(self.cache.page_size(), longest, longest + 1, group.rows.len());
            let fits = rows + group.generation.max_rows() <= self.limits.rows && pages <= unclaimed && tokens < budget;
            if !fits && !self.running.is_empty() {
                break;
            }
            let Some(mut group) = self.waiting.pop_front() else { break };
            rows += group.generation.max_rows();
            unclaimed = unclaimed.saturating_sub(pages);
            tokens += longest;
            group.long = self.limits.long_above.is_some_and(|above| longest > above);
            group.reset(&mut self.cache);
            if !std::mem::replace(&mut group.started, true) {
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

    /// Adds to `step` what `running[index]` can compute within `budget`. Where pages are missing, younger requests give
    /// theirs up; where there is no younger one, this request does.
    fn plan(&mut self, index: usize, budget: &mut usize, step: &mut Step) {
        let id = self.running[index].id;
        let spans = spans_of(&self.running[index], *budget);
        let taken: usize = spans.iter().map(|span| span.count).sum();
        for span in &spans {
            loop {
                let Some(group) = self.running.get_mut(index).filter(|group| group.id == id) else { return };
                let table = &mut group.rows[span.row].table;
                let end = span.start + span.count;
                match self.cache.prepare_write(table, span.start, end, &mut step.copies) {
                    Ok(()) => break,
                    Err(_) => self.preempt_youngest(step),
                }
            }
        }
        *budget -= taken;
        step.spans.extend(spans);
    }

    /// Sends the request that came last back to the head of the queue, without its pages.
    fn preempt_youngest(&mut self, step: &mut Step) {
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

/// What a request can compute within `budget` tokens. Its rows advance together: the last token of each runs only when
/// all of them do.
fn spans_of(group: &Group, budget: usize) -> Vec<StepSpan> {
    let span = |row: usize, count: usize, logits: bool| StepSpan {
        request: group.id,
        row,
        start: group.rows[row].computed,
        count,
        logits,
    };
    if let Some(prefix) = group.shared_prefix {
        let count = prefix.saturating_sub(group.rows[0].computed).min(budget);
        return if count > 0 { vec![span(0, count, false)] } else { Vec::new() };
    }
    let missing: usize = (0..group.rows.len()).map(|row| group.missing(row)).sum();
    if missing <= budget {
        return (0..group.rows.len()).map(|row| span(row, group.missing(row), true)).collect();
    }
    let mut left = budget;
    let mut spans = Vec::new();
    for row in 0..group.rows.len() {
        let count = (group.missing(row) - 1).min(left);
        if count > 0 {
            spans.push(span(row, count, false));
            left -= count;
        }
    }
    spans
}

#[cfg(test)]
#[path = "scheduler_properties.rs"]
mod properties;

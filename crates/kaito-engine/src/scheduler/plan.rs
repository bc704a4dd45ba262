//! Planning a step: who is admitted, who computes how much, and who is preempted for it.

use std::mem;

use super::{Phase, Request, Scheduler, Started, Step, pages_needed};

impl Scheduler {
    /// Decides the next step and takes the pages that it writes. `false` if there is nothing to do.
    pub fn schedule(&mut self, step: &mut Step) -> bool {
        step.spans.clear();
        step.copies.clear();
        step.started.clear();
        self.at_work = None;
        self.running.tidy();
        self.begin_plan();
        step.spans.reserve(self.limits.sequences);
        let streams = self.running.iter().any(Request::streams);
        let mut budget = self.limits.step_tokens;
        let mut drafted = 0;
        let mut scores = self.limits.step_scores;
        // Streams first: they are older than what is admitted below, or equally entitled to one token each.
        for streams_only in [true, false] {
            if !streams_only {
                if streams {
                    budget = budget.min(self.limits.step_tokens_beside_streams);
                }
                self.admit(budget, step);
            }
            // Preemption may shorten the list, but never before `index`, unless it took `index` itself.
            for index in 0..self.running.len() {
                let Some(request) = self.running.at(index).filter(|_| budget > 0) else { break };
                let id = request.id;
                if request.spans.is_empty() && (!streams_only || request.streams()) {
                    self.work_on(Phase::Schedule, id);
                    if streams_only {
                        self.propose(index, budget, drafted);
                    }
                    let planned = self.plan(index, budget, scores, step);
                    budget -= planned.tokens;
                    drafted += planned.drafted;
                    scores -= planned.scored;
                }
            }
        }
        self.at_work = None;
        step.spans.extend(self.running.iter().flat_map(|request| &request.spans));
        debug_assert!(!step.spans.is_empty() || self.is_idle(), "a request that was admitted can always run alone");
        !step.spans.is_empty()
    }

    /// Forgets what requests had in the step before. A sequence that outgrew the rotary factors of its keys is computed
    /// again from the start; its tokens stay.
    fn begin_plan(&mut self) {
        for request in self.running.iter_mut() {
            request.spans.clear();
            let Some(above) = self.limits.long_above else { continue };
            self.at_work = Some((Phase::Schedule, request.id));
            let long = request.longest() > above;
            if long != request.variant.long {
                request.variant.long = long;
                request.reset(&mut self.cache);
                request.reuse(&mut self.cache);
            }
        }
    }

    /// Moves requests from the queue to the running ones, oldest first, while sequences and pages last.
    fn admit(&mut self, budget: usize, step: &mut Step) {
        if self.waiting.is_empty() {
            return;
        }
        let mut sequences: usize = self.running.iter().map(|request| request.generation.max_sequences()).sum();
        let mut unclaimed = self.cache.free_pages().saturating_sub(self.claimed_pages());
        let planned = self.running.iter().flat_map(|request| &request.spans);
        let mut tokens: usize = planned.map(|span| span.count).sum();
        while let Some(id) = self.waiting.front().map(|request| request.id) {
            self.work_on(Phase::Schedule, id);
            let Some(request) = self.waiting.front_mut() else { break };
            let longest = request.longest();
            request.variant.long = self.limits.long_above.is_some_and(|above| longest > above);
            request.reset(&mut self.cache);
            let known = request.known(&self.cache);
            // Known pages that somebody holds are not taken from the free ones.
            let pages = pages_needed(self.cache.page_size(), longest, longest + 1, request.sequences.len())
                .saturating_sub(known.held);
            let fits = sequences + request.generation.max_sequences() <= self.limits.sequences
                && pages <= unclaimed
                && tokens < budget;
            if !fits && !self.running.is_empty() {
                break;
            }
            let Some(mut request) = self.waiting.pop_front() else { break };
            sequences += request.generation.max_sequences();
            unclaimed = unclaimed.saturating_sub(pages);
            tokens += longest.saturating_sub(known.pages * self.cache.page_size());
            request.reuse(&mut self.cache);
            request.reserve(self.limits.step_drafts);
            if !mem::replace(&mut request.started, true) {
                let cached_tokens = known.pages * self.cache.page_size();
                self.reused_tokens += cached_tokens as u64;
                step.started.push(Started { request: request.id, cached_tokens });
            }
            self.running.push(request);
        }
    }

    /// Pages that the running sequences lack for the tokens they have, and one more each: without that headroom, what is
    /// admitted now would soon be preempted and computed twice.
    fn claimed_pages(&self) -> usize {
        let lacking = |request: &Request| -> usize {
            let tables = request.sequences.iter().map(|sequence| sequence.table.pages().len()).enumerate();
            tables.map(|(at, pages)| self.cache.pages_for(request.len(at) + 1).saturating_sub(pages) + 1).sum()
        };
        self.running.iter().map(lacking).sum()
    }

    /// Proposes tokens for a stream, where that is expected to pay and neither pages nor places of others are taken for it.
    /// `drafted` tokens are proposed in this step already.
    fn propose(&mut self, index: usize, budget: usize, drafted: usize) {
        let streams = self.running.sequences();
        let spare = self.cache.free_pages().saturating_sub(streams) * self.cache.page_size();
        let Some(request) = self.running.at_mut(index) else { return };
        request.draft.clear();
        // Several sequences advance together or not at all, and beams are reordered at every token.
        if request.generation.max_sequences() != 1 || request.sequences.len() != 1 {
            return;
        }
        let len = request.len(0);
        let above = self.limits.long_above.filter(|_| !request.variant.long).unwrap_or(usize::MAX);
        let limit = self
            .limits
            .step_drafts
            .saturating_sub(drafted)
            .min(budget.saturating_sub(streams))
            .min(request.generation.max_total_len().saturating_sub(len + 1))
            .min(above.saturating_sub(len))
            .min(spare);
        let tokens = streams + drafted;
        if limit == 0 {
            return;
        }
        request.generation.forced(&mut request.draft);
        request.draft.truncate(limit);
        // Also of what it expects itself, a constraint may refuse an end: what could be said in other tokens, say.
        let allowed = request.generation.allowed(&request.draft);
        request.draft.truncate(allowed);
        request.forced = !request.draft.is_empty();
        if request.forced {
            return;
        }
        let mut length = request.speculator.length(&self.cost, tokens, tokens as f64).min(limit);
        request.ngrams.propose(request.generation.tokens(0), length.max(1), &mut request.draft);
        // What the request's constraint refuses would be computed for nothing.
        let allowed = request.generation.allowed(&request.draft);
        request.draft.truncate(allowed);
        if length == 0 && !request.draft.is_empty() {
            length = usize::from(request.speculator.try_again());
        }
        request.draft.truncate(length);
    }

    /// Plans what the request at `index` can compute within `budget` and `scores`. Where pages are missing, younger requests are
    /// preempted; where there is no younger one, this one is.
    fn plan(&mut self, index: usize, budget: usize, scores: usize, step: &mut Step) -> Planned {
        if let Some(request) = self.running.at_mut(index) {
            request.plan(index, budget, scores);
        }
        self.take_pages(index, step);
        let spans = self.running.at(index).map_or(&[][..], |request| &request.spans);
        Planned {
            tokens: spans.iter().map(|span| span.count).sum(),
            drafted: spans.iter().map(|span| span.logits.saturating_sub(1)).sum(),
            scored: spans.iter().map(|span| span.scored).sum(),
        }
    }

    /// Makes writable what the request at `index` writes, unless it is preempted for that.
    fn take_pages(&mut self, index: usize, step: &mut Step) {
        let mut nth = 0;
        while let Some(request) = self.running.at_mut(index) {
            let id = request.id;
            let Some(span) = request.spans.get(nth) else { return };
            let table = &mut request.sequences[span.sequence].table;
            match self.cache.prepare_write(table, span.start, span.start + span.count, &mut step.copies) {
                Ok(()) => nth += 1,
                Err(_) => {
                    self.preempt_youngest(step);
                    self.at_work = Some((Phase::Schedule, id));
                }
            }
        }
    }

    /// Preempts the request that came last: it goes back to the head of the queue, without its pages.
    fn preempt_youngest(&mut self, step: &mut Step) {
        let Some(id) = self.running.last().map(|request| request.id) else { return };
        self.work_on(Phase::Schedule, id);
        let Some(mut request) = self.running.pop() else { return };
        self.preemptions += 1;
        request.reset(&mut self.cache);
        step.copies.retain(|copy| !self.cache.is_free(copy.to));
        self.waiting.push_front(request);
    }
}

/// What was planned for a request.
struct Planned {
    tokens: usize,
    /// Those of them that are proposed.
    drafted: usize,
    /// Those of them whose logits score the prompt.
    scored: usize,
}

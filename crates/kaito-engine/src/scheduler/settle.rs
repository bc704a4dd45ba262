//! Following a step: what was computed, what was chosen, and what was stopped meanwhile.

use super::{Choosing, Phase, Request, RequestId, Rows, Scheduler, Step, StepSpan};
use crate::{
    Error,
    generate::{Advance, Generation, Stopped},
};

impl Scheduler {
    /// Notes that a step was computed.
    pub fn computed(&mut self, step: &Step) {
        for span in &step.spans {
            self.work_on(Phase::Note, span.request);
            if let Some(request) = self.running.of_mut(span) {
                request.computed(span, &mut self.cache);
            }
        }
        self.at_work = None;
    }

    /// The requests whose next tokens can be chosen, or whose prompts' tokens scored or pooled, now that `step` is computed, in the
    /// order of its spans, each with the number of rows of logits that it has in the step; no request where it has left.
    pub fn choosing<'a>(&'a mut self, step: &'a Step) -> impl Iterator<Item = (usize, Option<Choosing<'a>>)> {
        let mut running = self.running.enumerate_mut().peekable();
        step.choosing().map(move |Rows { span, logits, states }| {
            // Both are in the order of indices, so that one walk finds them all.
            while running.next_if(|(index, _)| *index < span.index).is_some() {}
            let found = running.next_if(|(index, request)| *index == span.index && request.id == span.request);
            let choosing = found.map(|(_, request)| Choosing {
                id: request.id,
                generation: &mut request.generation,
                scored: span.scored,
                states,
                draft: &request.draft,
                choice: &mut request.choice,
            });
            (logits, choosing)
        })
    }

    /// Follows what was chosen for a span's request and returns it; `None` where the request has left.
    pub fn settle(&mut self, span: &StepSpan) -> Option<Result<&mut Advance, Error>> {
        let id = span.request;
        self.work_on(Phase::Settle, id);
        let index = self.running.of(span).map(|_| span.index);
        let cache = &mut self.cache;
        let settled = match index {
            Some(index) => self.running.edit(index, |request| request.settle(cache))?,
            // It waits again only where a panic has cut the step short, and what was chosen before that holds.
            None => self.waiting.iter_mut().find(|request| request.id == id)?.settle(cache),
        };
        let settled = match settled {
            Ok(settled) => settled,
            Err(error) => return Some(Err(error)),
        };
        self.proposed_tokens += settled.proposed as u64;
        self.accepted_tokens += settled.accepted as u64;
        if settled.restarted {
            self.restart(index, id);
        }
        let request = match self.running.of_mut(span) {
            Some(request) => request,
            // What has just been put there is at the end.
            None => self.waiting.iter_mut().rev().find(|request| request.id == id)?,
        };
        Some(Ok(&mut request.choice.advance))
    }

    /// Takes out the request of a span, as [`Self::remove`] does. The indices of the others stay what they are until the
    /// next [`Self::schedule`].
    pub fn remove_settled(&mut self, span: &StepSpan) -> Option<Generation> {
        if self.running.of(span).is_none() {
            return self.remove(span.request);
        }
        self.work_on(Phase::Remove, span.request);
        let request = self.running.take(span.index)?;
        Some(self.release(request))
    }

    /// Follows a request that is back at its prompt: it goes on at once, or behind those that wait for its sequences' places.
    fn restart(&mut self, index: Option<usize>, id: RequestId) {
        let cache = &mut self.cache;
        let Some(index) = index else {
            if let Some(request) = self.waiting.iter_mut().find(|request| request.id == id) {
                request.restart(cache);
            }
            return;
        };
        let goes_on = self.waiting.is_empty();
        self.running.edit(index, |request| {
            request.restart(cache);
            if goes_on {
                request.reuse(cache);
            }
        });
        if !goes_on && let Some(request) = self.running.take(index) {
            self.waiting.push_back(request);
        }
    }

    /// Ends one sequence of a request where it stands. Returns whether that ends the request.
    pub fn stop_sequence(&mut self, id: RequestId, sequence: usize) -> Option<bool> {
        self.work_on(Phase::Stop, id);
        let cache = &mut self.cache;
        let index = self.running.find(id);
        let mut stop = |request: &mut Request| {
            let stopped = request.generation.stop_sequence(sequence);
            if let Stopped::Live(gone) = stopped {
                let kept: Vec<usize> = (0..request.sequences.len()).filter(|&live| live != gone).collect();
                request.follow(&kept, cache);
            }
            (stopped, request.generation.is_finished())
        };
        let (stopped, finished) = match index {
            Some(index) => self.running.edit(index, stop)?,
            None => stop(self.waiting.iter_mut().find(|request| request.id == id)?),
        };
        if stopped == Stopped::All {
            self.restart(index, id);
        }
        Some(finished)
    }
}

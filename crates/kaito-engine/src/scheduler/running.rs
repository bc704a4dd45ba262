//! The requests that run, oldest first.
//!
//! Invariant: an index that a step's span carries names its request from the `schedule` that made the step to the next one.
//! A request that leaves in between leaves a gap, and gaps are closed by [`Running::tidy`] alone, with which `schedule`
//! begins; while it plans, only the youngest request leaves and only younger ones come. A span finds a request
//! only where its id agrees, so a stale index finds nothing and never another request.

#[cfg(test)]
use std::cell::Cell;

use super::{Request, RequestId, StepSpan};

/// The running requests.
#[derive(Debug, Default)]
pub struct Running {
    slots: Vec<Option<Request>>,
    /// Sequences of them all.
    sequences: usize,
    /// How many slots were looked at.
    #[cfg(test)]
    pub visits: Cell<usize>,
}

impl Running {
    fn visit(&self, _slots: usize) {
        #[cfg(test)]
        self.visits.set(self.visits.get() + _slots);
    }

    /// Closes the gaps. Ends the validity of all indices.
    pub fn tidy(&mut self) {
        self.visit(self.slots.len());
        self.slots.retain(Option::is_some);
    }

    /// One more than the greatest index.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether no request runs.
    pub fn is_empty(&self) -> bool {
        // All but the first are looked at only where requests have left since the gaps were closed.
        self.slots.iter().all(Option::is_none)
    }

    /// Sequences that run.
    pub fn sequences(&self) -> usize {
        self.sequences
    }

    /// All of them.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Request> {
        self.visit(self.slots.len());
        self.slots.iter().flatten()
    }

    /// All of them. The number of their sequences must stay what it is.
    pub fn iter_mut(&mut self) -> impl DoubleEndedIterator<Item = &mut Request> {
        self.visit(self.slots.len());
        self.slots.iter_mut().flatten()
    }

    /// All of them with their indices.
    pub fn enumerate_mut(&mut self) -> impl Iterator<Item = (usize, &mut Request)> {
        self.visit(self.slots.len());
        self.slots.iter_mut().enumerate().filter_map(|(index, slot)| Some((index, slot.as_mut()?)))
    }

    /// The request at an index.
    pub fn at(&self, index: usize) -> Option<&Request> {
        self.visit(1);
        self.slots.get(index)?.as_ref()
    }

    /// The request at an index. The number of its sequences must stay what it is.
    pub fn at_mut(&mut self, index: usize) -> Option<&mut Request> {
        self.visit(1);
        self.slots.get_mut(index)?.as_mut()
    }

    /// The request of a span, unless it has left.
    pub fn of(&self, span: &StepSpan) -> Option<&Request> {
        self.at(span.index).filter(|request| request.id == span.request)
    }

    /// The request of a span, unless it has left. The number of its sequences must stay what it is.
    pub fn of_mut(&mut self, span: &StepSpan) -> Option<&mut Request> {
        self.at_mut(span.index).filter(|request| request.id == span.request)
    }

    /// Where a request runs, by a search: for commands, not for steps.
    pub fn find(&self, id: RequestId) -> Option<usize> {
        self.visit(self.slots.len());
        self.slots.iter().position(|slot| slot.as_ref().is_some_and(|request| request.id == id))
    }

    /// Changes the request at an index in a way that may change the number of its sequences.
    pub fn edit<T>(&mut self, index: usize, work: impl FnOnce(&mut Request) -> T) -> Option<T> {
        let request = self.at_mut(index)?;
        let before = request.sequences.len();
        let done = work(request);
        let after = request.sequences.len();
        self.sequences = self.sequences + after - before;
        Some(done)
    }

    /// Adds the youngest.
    pub fn push(&mut self, request: Request) {
        self.sequences += request.sequences.len();
        self.slots.push(Some(request));
    }

    /// The youngest, where there are no gaps behind it.
    pub fn last(&self) -> Option<&Request> {
        self.visit(1);
        self.slots.last()?.as_ref()
    }

    /// Takes the youngest out.
    pub fn pop(&mut self) -> Option<Request> {
        loop {
            self.visit(1);
            if let Some(request) = self.slots.pop()? {
                self.sequences -= request.sequences.len();
                return Some(request);
            }
        }
    }

    /// Takes out the request at an index and leaves a gap.
    pub fn take(&mut self, index: usize) -> Option<Request> {
        self.visit(1);
        let request = self.slots.get_mut(index)?.take()?;
        self.sequences -= request.sequences.len();
        Some(request)
    }

    /// Takes all of them out, also after a panic that cut a change of one of them short.
    pub fn drain(&mut self) -> impl DoubleEndedIterator<Item = Request> {
        self.sequences = 0;
        self.slots.drain(..).flatten()
    }
}

//! Choosing the next tokens of a step's requests, and verifying drafts: the piece between the executor, which computed the
//! logits, and the scheduler, which settles what was chosen.
//!
//! Each request is a piece of work of its own: its processors, its constraint and its sampler know no other request, so the
//! tokens do not depend on how many threads choose. One that panics or cannot go on fails alone.

use std::{
    fmt, mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Mutex, PoisonError},
};

use crate::{
    Error,
    generate::GenerateError,
    parallel::Parallel,
    recycle::recycled,
    scheduler::{Choice, Choosing, Phase, Scheduler, Step, panicked},
};

/// A request and the logits of its sequences.
struct Work<'a, 'l> {
    request: Choosing<'a>,
    logits: &'a mut [&'l mut [f32]],
}

/// Chooses tokens. Its memory is used again at every step.
#[derive(Default)]
pub struct TokenChoice {
    work: Vec<Mutex<Work<'static, 'static>>>,
}

impl fmt::Debug for TokenChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenChoice").finish_non_exhaustive()
    }
}

impl TokenChoice {
    /// Room for steps that choose for up to `requests` requests.
    pub fn with_capacity(requests: usize) -> Self {
        Self { work: Vec::with_capacity(requests) }
    }

    /// Chooses the next tokens of the requests whose live sequences all have logits in `step`, with the threads of `host`.
    /// `logits` are the step's rows of vocabulary size, in the order of its spans. What comes of it is for
    /// [`Scheduler::settle`] to tell.
    pub fn choose(
        &mut self,
        host: &dyn Parallel,
        scheduler: &mut Scheduler,
        step: &Step,
        mut logits: &mut [&mut [f32]],
    ) {
        let faults = scheduler.faults().clone();
        let mut work = recycled(mem::take(&mut self.work));
        for (rows, request) in scheduler.choosing(step) {
            let rows = rows.min(logits.len());
            let (own, rest) = mem::take(&mut logits).split_at_mut(rows);
            logits = rest;
            work.extend(request.map(|request| Mutex::new(Work { request, logits: own })));
        }
        host.for_each(work.len(), &|index| {
            let mut work = work[index].lock().unwrap_or_else(PoisonError::into_inner);
            let Work { request, logits } = &mut *work;
            let chosen = catch_unwind(AssertUnwindSafe(|| {
                faults.strike(Phase::Choose, request.id);
                choose(request, logits)
            }));
            request.choice.error = match chosen {
                Ok(chosen) => chosen.err().map(Error::from),
                Err(_) => Some(panicked()),
            };
        });
        self.work = recycled(work);
    }
}

/// Chooses the next token of every live sequence. Where there is a draft, `logits` are those of the sequence's last token and
/// of each token of the draft, and the generation advances for as long as it chooses what was proposed.
fn choose(request: &mut Choosing<'_>, logits: &mut [&mut [f32]]) -> Result<(), GenerateError> {
    let Choosing { generation, draft, choice: Choice { advance, accepted, error }, .. } = request;
    advance.chosen.clear();
    (*accepted, *error) = (0, None);
    let rows = if draft.is_empty() { logits.len().max(1) } else { 1 };
    for logits in logits.chunks_mut(rows) {
        generation.advance(logits, advance)?;
        let chosen = generation.tokens(0).last();
        if advance.finished || advance.restarted || chosen.is_none() || chosen != draft.get(*accepted) {
            break;
        }
        *accepted += 1;
    }
    Ok(())
}

//! Choosing the next tokens of a step's requests, and verifying drafts: the piece between the executor, which computed the
//! logits, and the scheduler, which settles what was chosen.
//!
//! Each request is a piece of work of its own: its processors, its constraint and its sampler know no other request, so the
//! tokens do not depend on how many threads choose. One that panics or cannot go on fails alone. Before that, the constraints of
//! requests with several sequences are asked, each as a piece of its own.

use std::{
    fmt, mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use crate::{
    Error,
    generate::{AskAhead, GenerateError},
    parallel::Parallel,
    recycle::recycled,
    scheduler::{Choice, Choosing, Phase, Scheduler, Step, panicked},
};

/// A request and the logits of its sequences.
struct Work<'a, 'l> {
    request: Choosing<'a>,
    logits: &'a mut [&'l mut [f32]],
    /// Whether the constraint of one of its sequences panicked.
    panicked: AtomicBool,
}

/// One of several sequences of a request, whose constraint is asked beside the others'.
struct Asking<'w> {
    sequence: AskAhead<'w>,
    /// Numbers of its logits.
    vocab_size: usize,
    panicked: &'w AtomicBool,
}

/// Chooses tokens. Its memory is used again at every step.
#[derive(Default)]
pub struct TokenChoice {
    work: Vec<Mutex<Work<'static, 'static>>>,
    asking: Vec<Mutex<Asking<'static>>>,
}

impl fmt::Debug for TokenChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenChoice").finish_non_exhaustive()
    }
}

impl TokenChoice {
    /// Room for steps that choose for up to `sequences` sequences.
    pub fn with_capacity(sequences: usize) -> Self {
        Self { work: Vec::with_capacity(sequences), asking: Vec::with_capacity(sequences) }
    }

    /// Chooses the next tokens of the requests whose live sequences all have logits in `step`, with the threads of `host`, scores
    /// the prompts that have logits there, and pools those whose hidden states are wanted.
    /// `logits` are the step's rows of vocabulary size, in the order of its spans; `states` are the hidden states of all its rows,
    /// where any are wanted. What comes of it is for [`Scheduler::settle`] to tell.
    pub fn choose(
        &mut self,
        host: &dyn Parallel,
        scheduler: &mut Scheduler,
        step: &Step,
        mut logits: &mut [&mut [f32]],
        states: &[f32],
    ) {
        let width = states.len() / step.tokens().max(1);
        let faults = scheduler.faults().clone();
        let mut work = recycled(mem::take(&mut self.work));
        for (rows, request) in scheduler.choosing(step) {
            let rows = rows.min(logits.len());
            let (own, rest) = mem::take(&mut logits).split_at_mut(rows);
            logits = rest;
            let panicked = AtomicBool::new(false);
            work.extend(request.map(|request| Mutex::new(Work { request, logits: own, panicked })));
        }
        self.ask_ahead(host, &mut work);
        host.for_each(work.len(), &|index| {
            let mut work = work[index].lock().unwrap_or_else(PoisonError::into_inner);
            let Work { request, logits, panicked } = &mut *work;
            if *panicked.get_mut() {
                request.choice.error = Some(self::panicked());
                return;
            }
            let chosen = catch_unwind(AssertUnwindSafe(|| {
                faults.strike(Phase::Choose, request.id);
                let own = request.states.start * width..request.states.end * width;
                choose(request, logits, states.get(own).unwrap_or_default().chunks_exact(width.max(1)))
            }));
            request.choice.error = match chosen {
                Ok(chosen) => chosen.err().map(Error::from),
                Err(_) => Some(self::panicked()),
            };
        });
        self.work = recycled(work);
    }
}

impl TokenChoice {
    /// Asks the constraints of requests that have several sequences, each as a piece of work of its own: a mask may take as long as
    /// all else that is done for a sequence.
    fn ask_ahead(&mut self, host: &dyn Parallel, work: &mut [Mutex<Work<'_, '_>>]) {
        let mut asking = recycled(mem::take(&mut self.asking));
        for work in work {
            let Work { request, logits, panicked } = work.get_mut().unwrap_or_else(PoisonError::into_inner);
            let Some(vocab_size) = logits.first().map(|row| row.len()) else { continue };
            let panicked = &*panicked;
            let sequences = request.generation.ask_ahead();
            asking.extend(sequences.map(|sequence| Mutex::new(Asking { sequence, vocab_size, panicked })));
        }
        host.for_each(asking.len(), &|index| {
            let mut asking = asking[index].lock().unwrap_or_else(PoisonError::into_inner);
            let Asking { sequence, vocab_size, panicked } = &mut *asking;
            if catch_unwind(AssertUnwindSafe(|| sequence.ask(*vocab_size))).is_err() {
                panicked.store(true, Relaxed);
            }
        });
        self.asking = recycled(asking);
    }
}

/// Scores or pools what is to be scored or pooled of the prompt, and chooses the next token of every live sequence that has logits
/// for it. Where there is a draft, `logits` are those of the sequence's last token and of each token of the draft, and the
/// generation advances for as long as it chooses what was proposed.
fn choose<'s>(
    request: &mut Choosing<'_>,
    logits: &mut [&mut [f32]],
    states: impl ExactSizeIterator<Item = &'s [f32]>,
) -> Result<(), GenerateError> {
    let Choosing { generation, scored, states: wanted, draft, choice: Choice { advance, accepted, error }, .. } =
        request;
    let wanted = wanted.clone();
    advance.chosen.clear();
    (*accepted, *error, advance.prompt) = (0, None, None);
    if states.len() != wanted.len() {
        return Err(GenerateError::WrongRows { expected: wanted.len(), got: states.len() });
    }
    generation.pool(states)?;
    let (of_prompt, logits) = logits.split_at_mut((*scored).min(logits.len()));
    if !of_prompt.is_empty() {
        generation.score_prompt(of_prompt)?;
    }
    if !of_prompt.is_empty() || !wanted.is_empty() {
        advance.prompt = generation.take_prompt_numbers();
    }
    if logits.is_empty() {
        advance.parents.clear();
        advance.parents.extend(0..generation.live_sequences());
        (advance.restarted, advance.finished) = (false, generation.is_finished());
    }
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

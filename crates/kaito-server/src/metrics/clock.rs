//! Times one request, from its head to its last token.

use std::sync::Arc;
use std::time::Instant;

use kaito_engine::{Output, Prepared};

use super::vllm::{Ending, Phases};
use crate::state::App;

/// Times a request that was given to the model. Dropped before the answer is complete, it counts an abort.
pub(crate) struct RequestClock {
    app: Arc<App>,
    /// When the head of the request came.
    came: Instant,
    /// When it joined the queue.
    queued: Instant,
    /// When it left the queue.
    started: Option<Instant>,
    prompts: Vec<Prompt>,
    sequences: Vec<Ticks>,
    failed: bool,
    ended: bool,
}

/// A prompt that the model continues.
#[derive(Debug, Clone, Copy)]
struct Prompt {
    /// Its tokens; none where the answer is known without the model.
    tokens: usize,
    sequences: usize,
    /// The most tokens that each sequence may get.
    max_tokens: usize,
}

/// When a sequence had its first and its latest token.
#[derive(Debug, Clone, Copy, Default)]
struct Ticks(Option<(Instant, Instant)>);

impl RequestClock {
    /// The clock of a request that is about to join the queue.
    pub(crate) fn new(app: Arc<App>, came: Instant, prompts: &[Prepared]) -> Self {
        let known = |prepared: &Prepared| Prompt {
            tokens: prepared.prompt().len(),
            sequences: prepared.sequences(),
            max_tokens: prepared.max_tokens(),
        };
        let prompts = prompts.iter().map(known).collect();
        let queued = Instant::now();
        Self { app, came, queued, started: None, prompts, sequences: Vec::new(), failed: false, ended: false }
    }

    /// Notes that the request never came into the queue: then there is nothing to count.
    pub(crate) fn refuse(&mut self) {
        self.ended = true;
    }

    /// Notes that the request leaves the queue now.
    pub(crate) fn start(&mut self) {
        self.started.get_or_insert_with(Instant::now);
    }

    /// Notes that a token of `sequence` arrives now.
    pub(crate) fn tick(&mut self, sequence: usize) {
        let now = Instant::now();
        let metrics = &self.app.metrics;
        if self.sequences.is_empty() {
            metrics.first_token.observe((now - self.came).as_secs_f64());
        }
        if self.sequences.len() <= sequence {
            self.sequences.resize(sequence + 1, Ticks::default());
        }
        let Some(Ticks(ticks)) = self.sequences.get_mut(sequence) else { return };
        match ticks {
            Some((_, latest)) => {
                metrics.between_tokens.observe((now - *latest).as_secs_f64());
                metrics.vllm.observe_token(now - *latest);
                *latest = now;
            }
            None => {
                metrics.vllm.observe_first_token(now - self.came);
                *ticks = Some((now, now));
            }
        }
    }

    /// Notes that the model failed on the request.
    pub(crate) fn fail(&mut self) {
        self.failed = true;
    }

    /// Notes that the answer is complete.
    pub(crate) fn end(&mut self, output: &Output) {
        self.ended = true;
        let (metrics, now) = (&self.app.metrics.vllm, Instant::now());
        let mut sequences = output.sequences.iter().zip(0..);
        for prompt in self.prompts.iter().filter(|prompt| prompt.sequences > 0) {
            let mut longest = 0;
            for (sequence, index) in sequences.by_ref().take(prompt.sequences).filter(|_| prompt.tokens > 0) {
                let computing = |started: Instant| {
                    let (first, latest) = self.sequences.get(index)?.0?;
                    Some((first.saturating_duration_since(started), latest - first))
                };
                let phases = Phases {
                    end_to_end: now - self.came,
                    queue: self.started.map(|started| started.saturating_duration_since(self.queued)),
                    computing: self.started.and_then(computing),
                };
                let generated = sequence.tokens.len();
                longest = longest.max(generated);
                metrics.observe_sequence(Ending::from(sequence.finish_reason), prompt.tokens, generated, &phases);
            }
            if prompt.tokens > 0 {
                metrics.observe_prompt(prompt.sequences, prompt.max_tokens, longest);
            }
        }
    }
}

impl Drop for RequestClock {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let ending = if self.failed { Ending::Error } else { Ending::Abort };
        let sequences = self.prompts.iter().filter(|prompt| prompt.tokens > 0).map(|prompt| prompt.sequences).sum();
        for _ in 0usize..sequences {
            self.app.metrics.vllm.count_ending(ending);
        }
    }
}

//! What a step computes, and of which sequences.

use super::RequestId;
use crate::kv_cache::{PageCopy, VariantKey};

/// The part of one sequence that a step computes: its tokens `start..start + count`, those of a draft behind its own.
///
/// `index` says where the request runs, so that nobody has to search for it. It holds from the `schedule` that made the step
/// to the next one, and is believed only together with `request`: a span whose request has left in between names nothing,
/// and never another request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepSpan {
    /// The sequence's request.
    pub request: RequestId,
    /// The request's place among the running ones.
    pub index: usize,
    /// The sequence's place among the live ones of its request.
    pub sequence: usize,
    /// First token to compute.
    pub start: usize,
    /// Tokens to compute.
    pub count: usize,
    /// How many of the last tokens logits are wanted for: the sequence's last token, and all of a draft behind it.
    pub logits: usize,
}

/// What to compute next. The same one is filled again and again.
#[derive(Debug, Default)]
pub struct Step {
    /// Spans in the order of the running requests, and of the sequences in each.
    pub spans: Vec<StepSpan>,
    /// Pages to copy before anything is computed.
    pub copies: Vec<PageCopy>,
    /// Requests that left the queue in this step.
    pub started: Vec<Started>,
}

impl Step {
    /// Tokens that the step computes.
    pub fn tokens(&self) -> usize {
        self.spans.iter().map(|span| span.count).sum()
    }

    /// The spans of each request, in the order of the running ones: at least one for each.
    pub fn requests(&self) -> impl Iterator<Item = &[StepSpan]> {
        self.spans.chunk_by(|a, b| a.request == b.request)
    }

    /// The first span of each request whose next tokens can be chosen when the step is computed, and how many rows of
    /// logits the request has in the step.
    pub fn choosing(&self) -> impl Iterator<Item = (&StepSpan, usize)> {
        let rows = |spans: &[StepSpan]| spans.iter().map(|span| span.logits).sum();
        self.requests().filter_map(move |spans| Some((spans.first()?, rows(spans)))).filter(|(_, rows)| *rows > 0)
    }
}

/// What an executor needs of a sequence.
#[derive(Debug, Clone, Copy)]
pub struct SequenceView<'a> {
    /// All tokens so far.
    pub tokens: &'a [u32],
    /// The draft: tokens proposed behind them.
    pub draft: &'a [u32],
    /// The page table.
    pub pages: &'a [u32],
    /// What its keys and values depend on besides the tokens.
    pub variant: VariantKey,
}

/// A request that left the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    /// The request.
    pub request: RequestId,
    /// Tokens of its prompt that were taken from the prefix cache.
    pub cached_tokens: usize,
}

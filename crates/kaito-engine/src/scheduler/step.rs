//! What a step computes, and of which sequences.

use std::ops::Range;

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
    /// How many tokens before those logits are wanted for, too: to score the prompt's tokens that follow them.
    pub scored: usize,
    /// How many of the last tokens hidden states are wanted for.
    pub states: usize,
}

impl StepSpan {
    /// Rows of logits: those of the last tokens.
    pub fn rows(&self) -> usize {
        self.scored + self.logits
    }
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

    /// The requests that something comes of when the step is computed: whose next tokens can be chosen, or whose prompt's tokens
    /// scored or pooled.
    pub fn choosing(&self) -> impl Iterator<Item = Rows<'_>> {
        let mut end = 0;
        let rows = self.requests().filter_map(move |spans| {
            end += spans.iter().map(|span| span.count).sum::<usize>();
            let (span, logits) = (spans.first()?, spans.iter().map(StepSpan::rows).sum());
            Some(Rows { span, logits, states: end - span.states..end })
        });
        rows.filter(|rows| rows.logits > 0 || !rows.states.is_empty())
    }
}

/// What a request has of a step's numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rows<'a> {
    /// Its first span in the step.
    pub span: &'a StepSpan,
    /// How many rows of logits it has, behind those of the requests before it.
    pub logits: usize,
    /// Its rows of the step whose hidden states are wanted. Where there are any, its span is the only one.
    pub states: Range<usize>,
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

//! What is to be computed next, of which rows.

use super::RequestId;
use crate::kv_cache::PageCopy;

/// One row's share of a step: its tokens `start..start + count`, proposed ones behind its own.
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
    /// How many of the last tokens logits are wanted for: the row's last token, and all that are proposed behind it.
    pub logits: usize,
}

/// What to compute next. The same one is filled again and again.
#[derive(Debug, Default)]
pub struct Step {
    /// Spans in the order of the running requests, and of the rows in each.
    pub spans: Vec<StepSpan>,
    /// Pages to copy before anything is computed.
    pub copies: Vec<PageCopy>,
    /// Requests that left the queue in this step.
    pub started: Vec<RequestId>,
}

impl Step {
    /// Tokens that the step computes.
    pub fn tokens(&self) -> usize {
        self.spans.iter().map(|span| span.count).sum()
    }

    /// Rows of logits that it gives for a request.
    pub(super) fn logits_of(&self, id: RequestId) -> usize {
        self.spans.iter().filter(|span| span.request == id).map(|span| span.logits).sum()
    }
}

/// What the decoder needs of a row.
#[derive(Debug, Clone, Copy)]
pub struct RowView<'a> {
    /// All tokens so far.
    pub tokens: &'a [u32],
    /// Tokens proposed behind them.
    pub draft: &'a [u32],
    /// Pages of keys and values.
    pub pages: &'a [u32],
    /// Whether the long rotary factors apply.
    pub long: bool,
}

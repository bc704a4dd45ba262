//! What a step computes, in flat arrays that can be sent to a device in one piece.

use std::ops::Range;

use super::ExecutorLimits;
use crate::kv_cache::{PageCopy, PageId, VariantKey};

/// A contiguous range of tokens of one sequence, as it is put into a [`StepInput`].
#[derive(Debug, Clone, Copy)]
pub struct Span<'a> {
    /// The tokens to compute, at least one.
    pub tokens: &'a [u32],
    /// The draft: tokens proposed behind them, computed as if they were the sequence's own.
    pub draft: &'a [u32],
    /// Position of the first of them: how many tokens of the sequence are in the KV cache already.
    pub start: usize,
    /// The sequence's page table: enough pages for all of them, writable from `start` on.
    pub pages: &'a [PageId],
    /// What its keys and values depend on besides the tokens: the rotary factors, and the adapter of all its rows.
    pub variant: VariantKey,
    /// How many of the last tokens the logits are wanted after.
    pub logits: usize,
    /// Whether the hidden states of any of its tokens are wanted.
    pub states: bool,
}

/// A span in its place in a [`StepInput`]. All its rows belong to one sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputSpan {
    /// First row of the step that belongs to this span.
    pub first_row: usize,
    /// Rows, one a token.
    pub rows: usize,
    /// Tokens of the sequence in the KV cache when the step is done; the rows are the last of them.
    pub context: usize,
    /// Where the sequence's page table lies in [`StepInput::pages`].
    pub pages: Range<usize>,
    /// What the keys and values of its rows depend on besides the tokens.
    pub variant: VariantKey,
}

/// What a step computes. The same memory is filled at every step, see [`super::Executor::recycle`].
#[derive(Debug, Default)]
pub struct StepInput {
    /// Token ids, one a row.
    pub tokens: Vec<u32>,
    /// Spans in the order of their rows.
    pub spans: Vec<InputSpan>,
    /// The page tables of all spans, one after the other.
    pub pages: Vec<PageId>,
    /// Rows that logits are wanted after, ascending.
    pub wanted: Vec<usize>,
    /// Whether hidden states are wanted: if so, those of all rows, behind the final norm.
    pub states: bool,
    /// Pages to copy before anything is computed.
    pub copies: Vec<PageCopy>,
    /// Cosines of the rotary angles, half the rotated width a row. Left to the executor, which knows the model's frequencies; empty
    /// where positions are encoded otherwise.
    pub cos: Vec<f32>,
    /// Sines of the same angles.
    pub sin: Vec<f32>,
}

impl StepInput {
    /// An empty input in which any step within `limits` has room.
    ///
    /// Where sequences share pages, their page tables may list more pages than there are: then the memory grows, and is kept.
    /// As much as the longest tables of all sequences would be far too much: 134 MB for 4096 sequences of 128k tokens.
    pub fn with_room_for(limits: &ExecutorLimits) -> Self {
        let listed_pages = limits.sequences.saturating_mul(limits.sequence_pages).min(limits.pages);
        Self {
            tokens: Vec::with_capacity(limits.step_tokens),
            spans: Vec::with_capacity(limits.sequences),
            pages: Vec::with_capacity(listed_pages),
            wanted: Vec::with_capacity(limits.step_logits),
            states: false,
            copies: Vec::with_capacity(limits.sequences),
            cos: Vec::new(),
            sin: Vec::new(),
        }
    }

    /// Removes everything and keeps the memory.
    pub fn clear(&mut self) {
        let Self { tokens, spans, pages, wanted, states, copies, cos, sin } = self;
        tokens.clear();
        spans.clear();
        pages.clear();
        wanted.clear();
        *states = false;
        copies.clear();
        cos.clear();
        sin.clear();
    }

    /// Gives a span the next rows.
    pub fn push(&mut self, span: &Span) {
        let (first_row, first_page) = (self.tokens.len(), self.pages.len());
        self.tokens.extend(span.tokens.iter().chain(span.draft));
        self.pages.extend_from_slice(span.pages);
        let rows = self.tokens.len() - first_row;
        self.wanted.extend(self.tokens.len() - span.logits.min(rows)..self.tokens.len());
        self.states |= span.states;
        self.spans.push(InputSpan {
            first_row,
            rows,
            context: span.start + rows,
            pages: first_page..self.pages.len(),
            variant: span.variant,
        });
    }

    /// Rows of the step: tokens that it computes.
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// The page table of one of the spans.
    pub fn pages_of(&self, span: &InputSpan) -> &[PageId] {
        &self.pages[span.pages.clone()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 128k tokens are 8192 pages of 16; a small KV cache has 1000 of them.
    #[test]
    fn page_tables_get_room_for_the_pages_that_exist() {
        let small = ExecutorLimits {
            pages: 1000,
            page_size: 16,
            step_tokens: 512,
            step_logits: 512,
            sequences: 4096,
            sequence_pages: 8192,
        };
        assert_eq!(StepInput::with_room_for(&small).pages.capacity(), 1000);
        let large = ExecutorLimits { pages: 1_000_000, sequences: 2, sequence_pages: 10, ..small };
        assert_eq!(StepInput::with_room_for(&large).pages.capacity(), 20);
    }

    #[test]
    fn spans_lie_one_after_the_other() {
        let limits =
            ExecutorLimits { pages: 9, page_size: 2, step_tokens: 6, step_logits: 3, sequences: 2, sequence_pages: 3 };
        let mut input = StepInput::with_room_for(&limits);
        let places = (input.tokens.as_ptr(), input.pages.as_ptr());
        for _ in 0..2 {
            input.clear();
            let plain = VariantKey::default();
            let variant = VariantKey { long: true, adapter: Some(3), salt: None };
            let first = Span {
                tokens: &[1, 2, 3],
                draft: &[],
                start: 0,
                pages: &[7, 8],
                variant: plain,
                logits: 0,
                states: true,
            };
            let second =
                Span { tokens: &[4], draft: &[5, 6], start: 2, pages: &[0, 5, 1], variant, logits: 3, states: false };
            assert!(!input.states);
            input.push(&first);
            input.push(&second);
            assert!(input.states);
            assert_eq!((input.rows(), input.tokens.as_slice()), (6, &[1, 2, 3, 4, 5, 6][..]));
            assert_eq!(input.wanted, [3, 4, 5]);
            assert_eq!(
                input.spans,
                [
                    InputSpan { first_row: 0, rows: 3, context: 3, pages: 0..2, variant: plain },
                    InputSpan { first_row: 3, rows: 3, context: 5, pages: 2..5, variant },
                ]
            );
            assert_eq!(
                (input.pages_of(&input.spans[0]), input.pages_of(&input.spans[1])),
                (&[7, 8][..], &[0, 5, 1][..])
            );
        }
        assert_eq!((input.tokens.as_ptr(), input.pages.as_ptr()), places, "the memory is used again");
    }
}

//! A request inside the scheduler: its rows, and what they have computed.

use std::mem;

use super::{RequestId, StepSpan};
use crate::{
    Error,
    generate::{Advance, GenerateError, Generation},
    kv_cache::{KnownPrefix, KvCache, PageTable},
    prefix_index::NodeId,
    speculation::{LONGEST_DRAFT, NgramIndex, Speculator},
};

/// One sequence of a request: a beam, a sample.
#[derive(Debug, Default)]
pub struct Row {
    pub table: PageTable,
    /// Tokens whose keys and values are there.
    pub computed: usize,
}

/// A request that is waiting or running.
#[derive(Debug)]
pub struct Group {
    pub id: RequestId,
    pub generation: Generation,
    /// One entry for each live row of `generation`. While `shared_prefix` is set, only the first has pages.
    pub rows: Vec<Row>,
    /// Tokens that all rows begin with and the first row must compute before the others fork from it.
    pub shared_prefix: Option<usize>,
    /// Whether the long rotary factors apply.
    pub long: bool,
    /// Whether it has left the queue before.
    pub started: bool,
    /// Tokens of its prompt that were taken from the prefix cache when it left the queue.
    pub cached_tokens: usize,
    pub speculator: Speculator,
    /// What the only row's tokens repeat.
    pub ngrams: NgramIndex,
    /// Tokens proposed behind the last one of the only row, while a step computes them.
    pub draft: Vec<u32>,
    pub choice: Choice,
}

/// What choosing leaves for the scheduler to follow.
#[derive(Debug, Default)]
pub struct Choice {
    pub advance: Advance,
    /// Proposed tokens that were chosen.
    pub accepted: usize,
    pub error: Option<Error>,
}

impl Group {
    /// A request that has computed nothing.
    pub fn new(id: RequestId, generation: Generation) -> Self {
        Self {
            id,
            rows: (0..generation.rows()).map(|_| Row::default()).collect(),
            generation,
            shared_prefix: None,
            long: false,
            started: false,
            cached_tokens: 0,
            speculator: Speculator::default(),
            ngrams: NgramIndex::default(),
            draft: Vec::new(),
            choice: Choice::default(),
        }
    }

    pub fn len(&self, row: usize) -> usize {
        self.generation.tokens(row).len()
    }

    fn missing(&self, row: usize) -> usize {
        self.len(row) - self.rows[row].computed
    }

    /// Whether every row lacks just the token that was chosen last.
    pub fn streams(&self) -> bool {
        self.shared_prefix.is_none() && self.rows.iter().enumerate().all(|(row, _)| self.missing(row) == 1)
    }

    pub fn root(&self) -> NodeId {
        // Other rotary factors make other keys.
        NodeId::root(self.long)
    }

    /// Tokens of a row that pages may be taken up for: the last one is left to compute, since that gives logits.
    fn reusable(&self, row: usize) -> &[u32] {
        let tokens = self.generation.tokens(row);
        let end = self.shared_prefix.unwrap_or(tokens.len().saturating_sub(1));
        tokens.get(..end).unwrap_or_default()
    }

    /// Rows that compute for themselves.
    fn computing_rows(&self) -> usize {
        if self.shared_prefix.is_some() { 1 } else { self.rows.len() }
    }

    /// What a request that has nothing yet could take up.
    pub fn known(&self, cache: &KvCache) -> KnownPrefix {
        (0..self.computing_rows()).fold(KnownPrefix::default(), |sum, row| {
            let known = cache.known_prefix(self.root(), self.reusable(row));
            KnownPrefix { pages: sum.pages + known.pages, held: sum.held + known.held }
        })
    }

    /// Takes up the pages of earlier texts that begin alike, and makes room for those to come.
    pub fn reuse(&mut self, cache: &mut KvCache) {
        for row in 0..self.computing_rows() {
            let mut table = cache.reuse(self.root(), self.reusable(row));
            table.reserve(cache.pages_for(self.generation.max_total_len()));
            self.rows[row].computed = table.pages().len() * cache.page_size();
            self.rows[row].table = table;
        }
        self.fork_if_ready(cache);
    }

    /// Makes room for all that a running request comes to hold, so that no step asks for memory on its behalf. `proposes`
    /// says whether tokens may be proposed for it.
    pub fn reserve(&mut self, proposes: bool) {
        self.generation.reserve();
        self.draft.reserve(LONGEST_DRAFT);
        if proposes && self.generation.max_rows() == 1 {
            self.ngrams.reserve(self.generation.max_total_len());
        }
        let rows = self.generation.max_rows();
        self.choice.advance.parents.reserve(rows);
        self.choice.advance.chosen.reserve(rows + LONGEST_DRAFT);
    }

    /// Gives up all that was computed.
    pub fn reset(&mut self, cache: &mut KvCache) {
        for row in &mut self.rows {
            cache.release(&mut row.table);
        }
        self.forget();
    }

    /// Forgets all that was computed, pages that it holds included.
    pub fn forget(&mut self) {
        self.draft.clear();
        self.rows.clear();
        self.rows.resize_with(self.generation.rows(), Row::default);
        // The last token of each row is left to compute, since that is what gives logits.
        let longest = (0..self.rows.len()).map(|row| self.len(row)).min().unwrap_or(0).saturating_sub(1);
        self.shared_prefix = (1..self.rows.len())
            .map(|row| {
                let pairs = self.generation.tokens(0).iter().zip(self.generation.tokens(row));
                pairs.take(longest).take_while(|(a, b)| a == b).count()
            })
            .min()
            .filter(|&prefix| prefix > 0);
    }

    /// Follows a generation that is back at its prompt.
    pub fn restart(&mut self, cache: &mut KvCache) {
        self.reset(cache);
        self.ngrams.clear();
    }

    /// Gives the other rows their share of the prefix, once the first row has it.
    pub fn fork_if_ready(&mut self, cache: &mut KvCache) {
        let Some(prefix) = self.shared_prefix else { return };
        if self.rows[0].computed < prefix {
            return;
        }
        let (first, others) = self.rows.split_at_mut(1);
        for row in others {
            row.table = cache.fork(&first[0].table, prefix);
            row.computed = prefix;
        }
        self.shared_prefix = None;
    }

    /// Chooses the next token of every row. Where tokens were proposed, `logits` are those of the row's last token and of
    /// each proposed one, and the generation advances for as long as it chooses what was proposed.
    pub fn choose(&mut self, logits: &mut [&mut [f32]]) -> Result<(), GenerateError> {
        let Self { generation, draft, choice: Choice { advance, accepted, error }, .. } = self;
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

    /// Follows an advance of the generation: new row `i` continues old row `parents[i]`.
    pub fn follow(&mut self, parents: &[usize], cache: &mut KvCache) {
        if parents.iter().copied().eq(0..self.rows.len()) {
            return;
        }
        let mut old = mem::take(&mut self.rows);
        let mut uses = vec![0usize; old.len()];
        for &parent in parents {
            uses[parent] += 1;
        }
        self.rows = parents
            .iter()
            .map(|&parent| {
                uses[parent] -= 1;
                let computed = old[parent].computed;
                let table = match uses[parent] {
                    0 => mem::take(&mut old[parent].table),
                    _ => cache.fork(&old[parent].table, computed),
                };
                Row { table, computed }
            })
            .collect();
        for mut row in old {
            cache.release(&mut row.table);
        }
    }

    /// Puts into `spans` what the request can compute within `budget` tokens. Its rows advance together: the last token of each
    /// runs only when all of them do.
    pub fn spans(&self, budget: usize, spans: &mut Vec<StepSpan>) {
        spans.clear();
        let span = |row: usize, count: usize, logits: usize| StepSpan {
            request: self.id,
            row,
            start: self.rows[row].computed,
            count,
            logits,
        };
        if let Some(prefix) = self.shared_prefix {
            let count = prefix.saturating_sub(self.rows[0].computed).min(budget);
            spans.extend((count > 0).then(|| span(0, count, 0)));
            return;
        }
        let missing: usize = (0..self.rows.len()).map(|row| self.missing(row)).sum();
        if missing <= budget {
            let draft = self.draft.len();
            spans.extend((0..self.rows.len()).map(|row| span(row, self.missing(row) + draft, 1 + draft)));
            return;
        }
        let mut left = budget;
        for row in 0..self.rows.len() {
            let count = (self.missing(row) - 1).min(left);
            if count > 0 {
                spans.push(span(row, count, 0));
                left -= count;
            }
        }
    }
}

//! A request inside the scheduler: its sequences, and what they have computed.

use std::{mem, ops::Range};

use super::{RequestId, StepSpan};
use crate::{
    Error,
    generate::{Advance, Generation},
    kv_cache::{KnownPrefix, KvCache, PageTable, VariantKey},
    speculation::{LONGEST_DRAFT, NgramIndex, Speculator},
};

/// One live sequence of a request: a sample, a beam.
#[derive(Debug, Default)]
pub struct Sequence {
    pub table: PageTable,
    /// Tokens whose keys and values are in the KV cache.
    pub computed: usize,
}

/// A request that is waiting or running.
#[derive(Debug)]
pub struct Request {
    pub id: RequestId,
    pub generation: Generation,
    /// One entry for each live sequence of `generation`. While `shared_prefix` is set, only the first has pages.
    pub sequences: Vec<Sequence>,
    /// Tokens that all sequences begin with and the first one must compute before the others fork from it.
    pub shared_prefix: Option<usize>,
    /// What its keys and values depend on besides the tokens.
    pub variant: VariantKey,
    /// Whether it has left the queue before.
    pub started: bool,
    /// What it has in the step that is planned; nothing where it takes no part yet.
    pub spans: Vec<StepSpan>,
    pub speculator: Speculator,
    /// Where the n-grams of the only sequence stood before.
    pub ngrams: NgramIndex,
    /// The draft: tokens proposed behind the last one of the only sequence, while a step computes them.
    pub draft: Vec<u32>,
    /// Whether the draft is its constraint's, not that of n-grams.
    pub forced: bool,
    pub choice: Choice,
}

/// What choosing tokens leaves for the scheduler to settle.
#[derive(Debug, Default)]
pub struct Choice {
    /// What became of the sequences.
    pub advance: Advance,
    /// Tokens of the draft that were chosen.
    pub accepted: usize,
    /// Why no token could be chosen.
    pub error: Option<Error>,
}

/// A request whose next tokens are to be chosen, and where the outcome goes.
#[derive(Debug)]
pub struct Choosing<'a> {
    /// The request.
    pub id: RequestId,
    /// Its sequences.
    pub generation: &'a mut Generation,
    /// How many of its rows of logits, the first ones, are for the scores of its prompt.
    pub scored: usize,
    /// Rows of the step whose hidden states are to be pooled.
    pub states: Range<usize>,
    /// Tokens proposed behind its only sequence, to be verified; none for several sequences.
    pub draft: &'a [u32],
    /// Left by the choice.
    pub choice: &'a mut Choice,
}

/// What settling did to a request.
#[derive(Debug)]
pub struct Settled {
    /// Tokens of its draft.
    pub proposed: usize,
    /// Those of them that were chosen.
    pub accepted: usize,
    /// Whether it is back at its prompt.
    pub restarted: bool,
}

impl Request {
    /// A request that has computed nothing.
    pub fn new(id: RequestId, generation: Generation) -> Self {
        Self {
            id,
            sequences: (0..generation.live_sequences()).map(|_| Sequence::default()).collect(),
            variant: VariantKey {
                adapter: generation.adapter(),
                salt: generation.cache_salt(),
                ..VariantKey::default()
            },
            generation,
            shared_prefix: None,
            started: false,
            spans: Vec::new(),
            speculator: Speculator::default(),
            ngrams: NgramIndex::default(),
            draft: Vec::new(),
            forced: false,
            choice: Choice::default(),
        }
    }

    /// Tokens of a sequence.
    pub fn len(&self, sequence: usize) -> usize {
        self.generation.tokens(sequence).len()
    }

    /// Tokens of the longest sequence.
    pub fn longest(&self) -> usize {
        (0..self.sequences.len()).map(|sequence| self.len(sequence)).max().unwrap_or(0)
    }

    fn missing(&self, sequence: usize) -> usize {
        self.len(sequence) - self.sequences[sequence].computed
    }

    /// Whether every sequence lacks just the token that was chosen last.
    pub fn streams(&self) -> bool {
        self.shared_prefix.is_none() && (0..self.sequences.len()).all(|sequence| self.missing(sequence) == 1)
    }

    /// Tokens of a sequence that pages of the prefix cache may stand for: the last one is left to compute, since that gives
    /// logits, and so are those whose logits score the prompt, or whose hidden states are pooled.
    fn reusable(&self, sequence: usize) -> &[u32] {
        let tokens = self.generation.tokens(sequence);
        let end = self.shared_prefix.unwrap_or(tokens.len().saturating_sub(1));
        let needed = self.generation.unscored().or(self.generation.unpooled());
        let end = needed.map_or(end, |needed| end.min(needed.start));
        tokens.get(..end).unwrap_or_default()
    }

    /// Sequences that compute for themselves.
    fn computing_sequences(&self) -> usize {
        if self.shared_prefix.is_some() { 1 } else { self.sequences.len() }
    }

    /// What the prefix cache holds for a request that has nothing yet.
    pub fn known(&self, cache: &KvCache) -> KnownPrefix {
        (0..self.computing_sequences()).fold(KnownPrefix::default(), |sum, sequence| {
            let known = cache.known_prefix(self.variant, self.reusable(sequence));
            KnownPrefix { pages: sum.pages + known.pages, held: sum.held + known.held }
        })
    }

    /// Uses the pages of earlier texts that begin alike, and makes room for those to come.
    pub fn reuse(&mut self, cache: &mut KvCache) {
        for sequence in 0..self.computing_sequences() {
            let mut table = cache.reuse(self.variant, self.reusable(sequence));
            table.reserve(cache.pages_for(self.generation.max_total_len()));
            self.sequences[sequence].computed = table.pages().len() * cache.page_size();
            self.sequences[sequence].table = table;
        }
        self.fork_if_ready(cache);
    }

    /// Makes room for all that a running request comes to hold, so that no step asks for memory on its behalf. Up to `drafts`
    /// tokens may be proposed for it.
    pub fn reserve(&mut self, drafts: usize) {
        self.generation.reserve();
        self.draft.reserve(LONGEST_DRAFT.max(drafts));
        if drafts > 0 && self.generation.max_sequences() == 1 {
            self.ngrams.reserve(self.generation.max_total_len());
        }
        let sequences = self.generation.max_sequences();
        self.spans.reserve(sequences);
        self.choice.advance.parents.reserve(sequences);
        self.choice.advance.chosen.reserve(sequences + LONGEST_DRAFT.max(drafts));
    }

    /// Releases all pages and forgets what was computed.
    pub fn reset(&mut self, cache: &mut KvCache) {
        for sequence in &mut self.sequences {
            cache.release(&mut sequence.table);
        }
        self.forget();
    }

    /// Forgets all that was computed, pages that it holds included.
    pub fn forget(&mut self) {
        self.spans.clear();
        self.draft.clear();
        self.sequences.clear();
        self.sequences.resize_with(self.generation.live_sequences(), Sequence::default);
        // The last token of each sequence is left to compute, since that is what gives logits.
        let shortest = (0..self.sequences.len()).map(|sequence| self.len(sequence)).min().unwrap_or(0);
        self.shared_prefix = (1..self.sequences.len())
            .map(|sequence| {
                let pairs = self.generation.tokens(0).iter().zip(self.generation.tokens(sequence));
                pairs.take(shortest.saturating_sub(1)).take_while(|(a, b)| a == b).count()
            })
            .min()
            .filter(|&prefix| prefix > 0);
    }

    /// Forgets a step whose pages are gone. Tokens that were chosen in it stay chosen, and are still to be settled; only
    /// pages do not follow them any more.
    pub fn forget_step(&mut self) {
        self.forget();
        if mem::take(&mut self.choice.advance.restarted) {
            self.ngrams.clear();
        }
        self.choice.accepted = 0;
        self.choice.advance.parents.clear();
        self.choice.advance.parents.extend(0..self.sequences.len());
    }

    /// Follows a generation that is back at its prompt.
    pub fn restart(&mut self, cache: &mut KvCache) {
        self.reset(cache);
        self.ngrams.clear();
    }

    /// Gives the other sequences their share of the prefix, once the first one has computed it.
    pub fn fork_if_ready(&mut self, cache: &mut KvCache) {
        let Some(prefix) = self.shared_prefix else { return };
        if self.sequences[0].computed < prefix {
            return;
        }
        let (first, others) = self.sequences.split_at_mut(1);
        for sequence in others {
            sequence.table = cache.fork(&first[0].table, prefix);
            sequence.computed = prefix;
        }
        self.shared_prefix = None;
    }

    /// Notes that a span was computed.
    pub fn computed(&mut self, span: &StepSpan, cache: &mut KvCache) {
        let sequence = &mut self.sequences[span.sequence];
        // What a draft proposes is computed for good only if it turns out to be right.
        sequence.computed = span.start + span.count - self.draft.len();
        if let Some(computed) = self.generation.tokens(span.sequence).get(..sequence.computed) {
            cache.make_known(&mut sequence.table, self.variant, computed);
        }
        self.fork_if_ready(cache);
    }

    /// Follows what was chosen.
    ///
    /// # Errors
    /// That of the choice.
    pub fn settle(&mut self, cache: &mut KvCache) -> Result<Settled, Error> {
        let Choice { advance, accepted, error } = mem::take(&mut self.choice);
        if let Some(error) = error {
            return Err(error);
        }
        if accepted > 0 {
            self.sequences[0].computed += accepted;
        }
        let proposed = self.draft.len();
        if proposed > 0 {
            if !self.forced {
                self.speculator.observe(proposed, accepted);
            }
            self.draft.clear();
        }
        let restarted = advance.restarted;
        if !restarted {
            self.follow(&advance.parents, cache);
        }
        self.choice.advance = advance;
        Ok(Settled { proposed, accepted, restarted })
    }

    /// Follows an advance of the generation: new sequence `i` continues old sequence `parents[i]`.
    pub fn follow(&mut self, parents: &[usize], cache: &mut KvCache) {
        if parents.iter().copied().eq(0..self.sequences.len()) {
            return;
        }
        let mut old = mem::take(&mut self.sequences);
        let mut uses = vec![0usize; old.len()];
        for &parent in parents {
            uses[parent] += 1;
        }
        self.sequences = parents
            .iter()
            .map(|&parent| {
                uses[parent] -= 1;
                let computed = old[parent].computed;
                let table = match uses[parent] {
                    0 => mem::take(&mut old[parent].table),
                    _ => cache.fork(&old[parent].table, computed),
                };
                Sequence { table, computed }
            })
            .collect();
        for mut sequence in old {
            cache.release(&mut sequence.table);
        }
    }

    /// Puts into `spans` what the request, which runs at `index`, can compute within `budget` tokens, of which logits of up to
    /// `scores` may be wanted to score its prompt. Its sequences advance together: the last token of each is computed only when
    /// all of them are.
    pub fn plan(&mut self, index: usize, budget: usize, scores: usize) {
        let mut spans = mem::take(&mut self.spans);
        spans.clear();
        let span = |sequence: usize, count: usize, logits: usize| StepSpan {
            request: self.id,
            index,
            sequence,
            start: self.sequences[sequence].computed,
            count,
            logits,
            scored: 0,
            states: 0,
        };
        let missing: usize = (0..self.sequences.len()).map(|sequence| self.missing(sequence)).sum();
        if let Some(prefix) = self.shared_prefix {
            let count = prefix.saturating_sub(self.sequences[0].computed).min(budget);
            spans.extend((count > 0).then(|| span(0, count, 0)));
        } else if let Some(unscored) = self.generation.unscored() {
            // The prompt alone: a single sequence, and no draft.
            let start = self.sequences.first().map_or(0, |sequence| sequence.computed);
            let end = if unscored.len() <= scores { start + missing } else { unscored.start + scores };
            let end = end.min(start + budget);
            let logits = usize::from(end == start + missing);
            let scored = end.min(unscored.end).saturating_sub(unscored.start);
            spans.extend((end > start).then(|| StepSpan { scored, ..span(0, end - start, logits) }));
        } else if let Some(unpooled) = self.generation.unpooled() {
            // The prompt alone, too, and nothing is chosen behind it.
            let start = self.sequences.first().map_or(0, |sequence| sequence.computed);
            let end = start + missing.min(budget);
            let states = end.saturating_sub(unpooled.start.max(start));
            spans.extend((end > start).then(|| StepSpan { states, ..span(0, end - start, 0) }));
        } else if missing <= budget {
            let draft = self.draft.len();
            spans.extend((0..self.sequences.len()).map(|at| span(at, self.missing(at) + draft, 1 + draft)));
        } else {
            let mut left = budget;
            for sequence in 0..self.sequences.len() {
                let count = (self.missing(sequence) - 1).min(left);
                if count > 0 {
                    spans.push(span(sequence, count, 0));
                    left -= count;
                }
            }
        }
        self.spans = spans;
    }
}

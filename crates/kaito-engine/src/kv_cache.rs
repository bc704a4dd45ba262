//! Pages of keys and values: who holds which, and copy on write. Bookkeeping only; the numbers live in the backend.
//!
//! A page that was computed to its end stays known after the last page table has let it go, until its memory is needed:
//! a later text with the same beginning takes it up again.
//!
//! Invariant: a page's reference count equals the number of page tables that name it; a page is free iff that count is
//! zero; a page is written only while exactly one page table names it, and is not known while it is written.

use crate::prefix_index::{NodeId, PrefixIndex};

/// Index of a page in every layer's pool.
pub type PageId = u32;

/// A page whose contents must be copied before the next step writes to `to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageCopy {
    /// The shared page.
    pub from: PageId,
    /// The fresh page that takes its place in one page table.
    pub to: PageId,
}

/// Fewer pages are free than an operation needs. Nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfPages {
    /// Pages that the operation needs.
    pub needed: usize,
    /// Pages that are free.
    pub free: usize,
}

/// The pages of one sequence: token `t` lives in page `t / page_size`, slot `t % page_size`.
#[derive(Debug, Default)]
pub struct PageTable {
    pages: Vec<PageId>,
    /// The nodes of the first pages, those that are known.
    nodes: Vec<NodeId>,
}

impl PageTable {
    /// The pages in token order.
    pub fn pages(&self) -> &[PageId] {
        &self.pages
    }

    /// Makes room for `pages` pages in all, so that the table grows so far without asking for memory.
    pub fn reserve(&mut self, pages: usize) {
        self.pages.reserve_exact(pages.saturating_sub(self.pages.len()));
        self.nodes.reserve_exact(pages.saturating_sub(self.nodes.len()));
    }
}

/// Hands out pages and counts who shares them.
#[derive(Debug)]
pub struct KvCache {
    page_size: usize,
    references: Vec<u32>,
    /// Free pages that hold nothing of use; others are in the index.
    free: Vec<PageId>,
    index: PrefixIndex,
}

/// What is known of the beginning of a text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KnownPrefix {
    /// Pages that hold it.
    pub pages: usize,
    /// Those of them that page tables name already.
    pub held: usize,
}

impl KvCache {
    /// A cache of `pages` pages of `page_size` tokens each, all free.
    pub fn new(pages: u32, page_size: usize) -> Self {
        let page_size = page_size.max(1);
        Self {
            page_size,
            references: vec![0; pages as usize],
            free: (0..pages).rev().collect(),
            index: PrefixIndex::new(pages as usize, page_size),
        }
    }

    /// Tokens in a page.
    pub fn page_size(&self) -> usize {
        self.page_size
    }

    /// All pages.
    pub fn total_pages(&self) -> usize {
        self.references.len()
    }

    /// Pages that no page table names.
    pub fn free_pages(&self) -> usize {
        self.free.len() + self.index.unheld()
    }

    /// Free pages that a text with the right beginning would take up again.
    pub fn known_free_pages(&self) -> usize {
        self.index.unheld()
    }

    /// Pages that hold `tokens` tokens.
    pub fn pages_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.page_size)
    }

    /// Makes the slots of tokens `start..end` writable in `table`: appends missing pages and replaces shared ones, whose
    /// copies are appended to `copies`. All or nothing.
    pub fn prepare_write(
        &mut self,
        table: &mut PageTable,
        start: usize,
        end: usize,
        copies: &mut Vec<PageCopy>,
    ) -> Result<(), OutOfPages> {
        let first = start / self.page_size;
        let count = self.pages_for(end);
        debug_assert!(first <= table.pages.len(), "tokens before the written range have pages");
        let shared = |cache: &Self, page: PageId| cache.references[page as usize] > 1;
        let kept = table.pages.get(first..count.min(table.pages.len())).unwrap_or_default();
        let needed = kept.iter().filter(|&&page| shared(self, page)).count() + count.saturating_sub(table.pages.len());
        if needed > self.free_pages() {
            return Err(OutOfPages { needed, free: self.free_pages() });
        }
        table.nodes.truncate(first);
        for index in first..count {
            match table.pages.get(index).copied() {
                None => {
                    if let Some(page) = self.allocate() {
                        table.pages.push(page);
                    }
                }
                Some(page) if shared(self, page) => {
                    if let Some(fresh) = self.allocate() {
                        self.release_page(page);
                        table.pages[index] = fresh;
                        copies.push(PageCopy { from: page, to: fresh });
                    }
                }
                Some(page) => self.index.forget(page),
            }
        }
        Ok(())
    }

    /// What is known of the beginning of `tokens`, a text below `root`, in whole pages.
    pub fn known_prefix(&self, root: NodeId, tokens: &[u32]) -> KnownPrefix {
        let mut known = KnownPrefix::default();
        for (page, _) in self.walk(root, tokens) {
            known.pages += 1;
            known.held += usize::from(self.references[page as usize] > 0);
        }
        known
    }

    /// A table of the known pages that `tokens` begins with.
    pub fn reuse(&mut self, root: NodeId, tokens: &[u32]) -> PageTable {
        let (pages, nodes): (Vec<_>, Vec<_>) = self.walk(root, tokens).unzip();
        for &page in &pages {
            if self.references[page as usize] == 0 {
                self.index.take_up(page);
            }
            self.references[page as usize] += 1;
        }
        PageTable { pages, nodes }
    }

    fn walk<'a>(&'a self, root: NodeId, tokens: &'a [u32]) -> impl Iterator<Item = (PageId, NodeId)> + 'a {
        tokens.chunks_exact(self.page_size).scan(root, |parent, tokens| {
            let (page, node) = self.index.find(*parent, tokens)?;
            *parent = node;
            Some((page, node))
        })
    }

    /// Makes known which pages of `table` hold the text `tokens` below `root`, all of it computed.
    pub fn make_known(&mut self, table: &mut PageTable, root: NodeId, tokens: &[u32]) {
        let unknown = table.nodes.len();
        for (&page, tokens) in table.pages.iter().zip(tokens.chunks_exact(self.page_size)).skip(unknown) {
            let parent = table.nodes.last().copied().unwrap_or(root);
            table.nodes.push(self.index.insert(page, parent, tokens));
        }
    }

    /// A second table that shares the pages of the first `tokens` tokens of `table`, with room for as many in all.
    pub fn fork(&mut self, table: &PageTable, tokens: usize) -> PageTable {
        let pages = &table.pages[..self.pages_for(tokens).min(table.pages.len())];
        for &page in pages {
            self.references[page as usize] += 1;
        }
        let nodes = &table.nodes[..(tokens / self.page_size).min(table.nodes.len())];
        let mut fork = PageTable::default();
        fork.reserve(table.pages.capacity());
        fork.pages.extend_from_slice(pages);
        fork.nodes.extend_from_slice(nodes);
        fork
    }

    /// Gives up all pages of `table`.
    pub fn release(&mut self, table: &mut PageTable) {
        table.nodes.clear();
        // The last page first: it is of use only after those before it, so it should be evicted before them.
        while let Some(page) = table.pages.pop() {
            self.release_page(page);
        }
    }

    fn allocate(&mut self) -> Option<PageId> {
        let page = self.free.pop().or_else(|| self.index.evict())?;
        self.references[page as usize] = 1;
        Some(page)
    }

    fn release_page(&mut self, page: PageId) {
        let references = &mut self.references[page as usize];
        *references -= 1;
        if *references == 0 && !self.index.give_up(page) {
            self.free.push(page);
        }
    }

    /// Checks the invariant against every live page table.
    #[cfg(test)]
    pub(crate) fn check<'a>(&self, tables: impl Iterator<Item = &'a PageTable>) {
        let mut expected = vec![0; self.references.len()];
        for table in tables {
            for &page in &table.pages {
                expected[page as usize] += 1;
            }
        }
        assert_eq!(self.references, expected, "reference counts");
        let free: std::collections::BTreeSet<_> = self.free.iter().copied().chain(self.index.unheld_pages()).collect();
        assert_eq!(free.len(), self.free_pages(), "a page is free twice");
        for (page, &count) in expected.iter().enumerate() {
            assert_eq!(count == 0, free.contains(&(page as u32)), "page {page} has {count} references");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Op {
        Write { table: usize, tokens: usize },
        Fork { table: usize, tokens: usize },
        Release { table: usize },
        Reuse { table: usize, stem: usize, tokens: usize },
    }

    /// Token `at` of one of a few texts, so that many begin alike.
    fn token(stem: usize, at: usize) -> u32 {
        (at * 7 + if at < 10 { 0 } else { stem * 1000 }) as u32
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let op = prop_oneof![
            3 => (0..8usize, 1..20usize).prop_map(|(table, tokens)| Op::Write { table, tokens }),
            2 => (0..8usize, 0..40usize).prop_map(|(table, tokens)| Op::Fork { table, tokens }),
            1 => (0..8usize).prop_map(|table| Op::Release { table }),
            2 => (0..8usize, 0..3usize, 0..60usize).prop_map(|(table, stem, tokens)| Op::Reuse { table, stem, tokens }),
        ];
        prop::collection::vec(op, 1..120)
    }

    fn known(cache: &mut KvCache, text: &[u32]) -> PageTable {
        let root = NodeId::root(false);
        let mut table = cache.reuse(root, text);
        let start = table.pages().len() * cache.page_size();
        cache.prepare_write(&mut table, start, text.len(), &mut Vec::new()).unwrap();
        cache.make_known(&mut table, root, text);
        table
    }

    #[test]
    fn the_page_that_was_of_no_use_for_longest_is_evicted_first_and_the_end_of_a_text_before_its_beginning() {
        let root = NodeId::root(false);
        let mut cache = KvCache::new(4, 2);
        let (old, new) = ([1, 2, 3, 4], [1, 2, 5, 6, 7, 8]);
        let mut first = known(&mut cache, &old);
        cache.release(&mut first);
        let mut second = known(&mut cache, &new);
        cache.release(&mut second);
        assert_eq!((cache.free_pages(), cache.known_free_pages()), (4, 4));
        let mut left = Vec::new();
        let mut other = PageTable::default();
        for taken in 1..=4 {
            cache.prepare_write(&mut other, 2 * (taken - 1), 2 * taken, &mut Vec::new()).unwrap();
            left.push([&old[..], &new].map(|text| cache.known_prefix(root, text).pages));
        }
        assert_eq!(left, [[1, 3], [1, 2], [1, 1], [0, 0]]);
    }

    #[test]
    fn a_known_page_that_is_written_again_is_not_known_any_more() {
        let root = NodeId::root(false);
        let mut cache = KvCache::new(4, 2);
        let mut table = known(&mut cache, &[1, 2, 3, 4]);
        cache.prepare_write(&mut table, 2, 4, &mut Vec::new()).unwrap();
        assert_eq!(cache.known_prefix(root, &[1, 2, 3, 4]), KnownPrefix { pages: 1, held: 1 });
        cache.make_known(&mut table, root, &[1, 2, 9, 9]);
        assert_eq!(cache.known_prefix(root, &[1, 2, 9, 9]).pages, 2);
    }

    proptest! {
        /// Each table's tokens read back as written, whatever is forked, overwritten and released beside it.
        #[test]
        fn pages_keep_every_tables_tokens(ops in ops()) {
            const PAGE: usize = 4;
            let mut cache = KvCache::new(24, PAGE);
            let mut memory = vec![0u32; 24 * PAGE];
            let mut tables: Vec<(PageTable, Vec<u32>)> = (0..8).map(|_| Default::default()).collect();
            // No token of a text is that large.
            let mut stamp = 1_000_000;
            let root = NodeId::root(false);
            for op in ops {
                match op {
                    Op::Write { table, tokens } => {
                        let (pages, written) = &mut tables[table];
                        let mut copies = Vec::new();
                        let before = cache.free_pages();
                        match cache.prepare_write(pages, written.len(), written.len() + tokens, &mut copies) {
                            Err(error) => {
                                prop_assert!(error.needed > error.free);
                                prop_assert_eq!((cache.free_pages(), copies.len()), (before, 0));
                            }
                            Ok(()) => {
                                for copy in copies {
                                    let from = copy.from as usize * PAGE;
                                    memory.copy_within(from..from + PAGE, copy.to as usize * PAGE);
                                }
                                for _ in 0..tokens {
                                    stamp += 1;
                                    let at = written.len();
                                    memory[pages.pages()[at / PAGE] as usize * PAGE + at % PAGE] = stamp;
                                    written.push(stamp);
                                }
                            }
                        }
                    }
                    Op::Fork { table, tokens } => {
                        let tokens = tokens.min(tables[table].1.len());
                        if let Some(to) = tables.iter().position(|(pages, _)| pages.pages().is_empty()) {
                            let pages = cache.fork(&tables[table].0, tokens);
                            tables[to] = (pages, tables[table].1[..tokens].to_vec());
                        }
                    }
                    Op::Reuse { table, stem, tokens } => {
                        let (pages, written) = &mut tables[table];
                        if pages.pages().is_empty() {
                            let text: Vec<u32> = (0..tokens).map(|at| token(stem, at)).collect();
                            let known = cache.known_prefix(root, &text);
                            *pages = cache.reuse(root, &text);
                            prop_assert_eq!(pages.pages().len(), known.pages);
                            let reused = known.pages * PAGE;
                            *written = text[..reused].to_vec();
                            let mut copies = Vec::new();
                            if cache.prepare_write(pages, reused, tokens, &mut copies).is_ok() {
                                prop_assert_eq!(copies, []);
                                for (at, &token) in text.iter().enumerate().skip(reused) {
                                    memory[pages.pages()[at / PAGE] as usize * PAGE + at % PAGE] = token;
                                    written.push(token);
                                }
                                cache.make_known(pages, root, &text);
                                prop_assert_eq!(cache.known_prefix(root, &text).pages, tokens / PAGE);
                                prop_assert_eq!(cache.known_prefix(NodeId::root(true), &text).pages, 0);
                            }
                        }
                    }
                    Op::Release { table } => {
                        cache.release(&mut tables[table].0);
                        tables[table].1.clear();
                    }
                }
                cache.check(tables.iter().map(|(pages, _)| pages));
                for (pages, written) in &tables {
                    for (at, stamp) in written.iter().enumerate() {
                        prop_assert_eq!(memory[pages.pages()[at / PAGE] as usize * PAGE + at % PAGE], *stamp);
                    }
                }
            }
        }
    }
}

//! The KV cache's pages, as paged attention reads them: which page tables name which page, and copy on write. Bookkeeping
//! only; the keys and values themselves live on the device.
//!
//! A page that was computed to its end stays in the prefix cache after the last page table has released it, until its
//! memory is needed: a later text with the same beginning uses it again.
//!
//! Invariant: a page's reference count equals the number of page tables that name it; a page is free iff that count is
//! zero; a page is written only while exactly one page table names it, and is not known while it is written.

pub use crate::prefix_index::VariantKey;
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
    /// Free pages whose contents are not known; the other free ones are in the index.
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

    /// Free pages that a text with the right beginning would use again.
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

    /// Whether no page table names `page`.
    pub fn is_free(&self, page: PageId) -> bool {
        self.references.get(page as usize).is_none_or(|&references| references == 0)
    }

    /// What is known of the beginning of `tokens`, a text of `variant`, in whole pages.
    pub fn known_prefix(&self, variant: VariantKey, tokens: &[u32]) -> KnownPrefix {
        let mut known = KnownPrefix::default();
        for (page, _) in self.walk(variant, tokens) {
            known.pages += 1;
            known.held += usize::from(self.references[page as usize] > 0);
        }
        known
    }

    /// A table of the known pages that `tokens`, a text of `variant`, begins with.
    pub fn reuse(&mut self, variant: VariantKey, tokens: &[u32]) -> PageTable {
        let (pages, nodes): (Vec<_>, Vec<_>) = self.walk(variant, tokens).unzip();
        for &page in &pages {
            if self.references[page as usize] == 0 {
                self.index.hold(page);
            }
            self.references[page as usize] += 1;
        }
        PageTable { pages, nodes }
    }

    fn walk<'a>(&'a self, variant: VariantKey, tokens: &'a [u32]) -> impl Iterator<Item = (PageId, NodeId)> + 'a {
        tokens.chunks_exact(self.page_size).scan(NodeId::Root(variant), |parent, tokens| {
            let (page, node) = self.index.find(*parent, tokens)?;
            *parent = node;
            Some((page, node))
        })
    }

    /// Makes known which pages of `table` hold `tokens`, a text of `variant` that is computed to its end.
    pub fn make_known(&mut self, table: &mut PageTable, variant: VariantKey, tokens: &[u32]) {
        let unknown = table.nodes.len();
        for (&page, tokens) in table.pages.iter().zip(tokens.chunks_exact(self.page_size)).skip(unknown) {
            let parent = table.nodes.last().copied().unwrap_or(NodeId::Root(variant));
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

    /// Releases all pages of `table`.
    pub fn release(&mut self, table: &mut PageTable) {
        table.nodes.clear();
        // The last page first: without those before it nobody can use it again, so it should be evicted before them.
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
        if *references == 0 && !self.index.release(page) {
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

    /// The model alone.
    const MODEL: VariantKey = VariantKey { long: false, adapter: None, salt: None };

    /// Variants of which each differs from another one in a single field.
    const VARIANTS: [VariantKey; 6] = [
        MODEL,
        VariantKey { long: false, adapter: None, salt: Some(0) },
        VariantKey { long: true, adapter: None, salt: None },
        VariantKey { long: false, adapter: Some(0), salt: None },
        VariantKey { long: true, adapter: Some(0), salt: None },
        VariantKey { long: false, adapter: Some(1), salt: None },
    ];

    #[derive(Debug, Clone)]
    enum Op {
        Write { table: usize, tokens: usize },
        Fork { table: usize, tokens: usize },
        Release { table: usize },
        Reuse { table: usize, variant: usize, stem: usize, tokens: usize },
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
            2 => (0..8usize, 0..VARIANTS.len(), 0..3usize, 0..60usize)
                .prop_map(|(table, variant, stem, tokens)| Op::Reuse { table, variant, stem, tokens }),
        ];
        prop::collection::vec(op, 1..120)
    }

    fn known(cache: &mut KvCache, text: &[u32]) -> PageTable {
        let mut table = cache.reuse(MODEL, text);
        let start = table.pages().len() * cache.page_size();
        cache.prepare_write(&mut table, start, text.len(), &mut Vec::new()).unwrap();
        cache.make_known(&mut table, MODEL, text);
        table
    }

    #[test]
    fn the_page_that_was_released_first_is_evicted_first_and_the_end_of_a_text_before_its_beginning() {
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
            left.push([&old[..], &new].map(|text| cache.known_prefix(MODEL, text).pages));
        }
        assert_eq!(left, [[1, 3], [1, 2], [1, 1], [0, 0]]);
    }

    #[test]
    fn a_known_page_that_is_written_again_is_not_known_any_more() {
        let mut cache = KvCache::new(4, 2);
        let mut table = known(&mut cache, &[1, 2, 3, 4]);
        cache.prepare_write(&mut table, 2, 4, &mut Vec::new()).unwrap();
        assert_eq!(cache.known_prefix(MODEL, &[1, 2, 3, 4]), KnownPrefix { pages: 1, held: 1 });
        cache.make_known(&mut table, MODEL, &[1, 2, 9, 9]);
        assert_eq!(cache.known_prefix(MODEL, &[1, 2, 9, 9]).pages, 2);
    }

    proptest! {
        /// Each table's tokens read back as written, whatever is forked, overwritten and released beside it. The keys of one
        /// token differ between variants, so a page that two variants shared would read back wrongly for one of them.
        #[test]
        fn pages_keep_every_tables_tokens_and_variants_share_none(ops in ops()) {
            const PAGE: usize = 4;
            let mut cache = KvCache::new(24, PAGE);
            let mut memory = vec![0u32; 24 * PAGE];
            let mut tables: Vec<(PageTable, Vec<u32>)> = (0..8).map(|_| Default::default()).collect();
            // No token of a text is that large.
            let mut stamp = 1_000_000;
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
                    Op::Reuse { table, variant, stem, tokens } => {
                        let (pages, written) = &mut tables[table];
                        if pages.pages().is_empty() {
                            let text: Vec<u32> = (0..tokens).map(|at| token(stem, at)).collect();
                            let keys: Vec<u32> = text.iter().map(|token| token + 10_000 * variant as u32).collect();
                            let variant = VARIANTS[variant];
                            let known_to = |cache: &KvCache| VARIANTS.map(|variant| cache.known_prefix(variant, &text).pages);
                            let before = known_to(&cache);
                            let known = cache.known_prefix(variant, &text);
                            *pages = cache.reuse(variant, &text);
                            prop_assert_eq!(pages.pages().len(), known.pages);
                            let reused = known.pages * PAGE;
                            *written = keys[..reused].to_vec();
                            let mut copies = Vec::new();
                            if cache.prepare_write(pages, reused, tokens, &mut copies).is_ok() {
                                prop_assert_eq!(copies, []);
                                for (at, &key) in keys.iter().enumerate().skip(reused) {
                                    memory[pages.pages()[at / PAGE] as usize * PAGE + at % PAGE] = key;
                                    written.push(key);
                                }
                                cache.make_known(pages, variant, &text);
                                for (at, (before, after)) in before.into_iter().zip(known_to(&cache)).enumerate() {
                                    // Others may have lost pages, to make room; only this variant knows more than before.
                                    let most = if VARIANTS[at] == variant { tokens / PAGE } else { before };
                                    prop_assert!(after <= most, "{:?}", VARIANTS[at]);
                                }
                                prop_assert_eq!(cache.known_prefix(variant, &text).pages, tokens / PAGE);
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

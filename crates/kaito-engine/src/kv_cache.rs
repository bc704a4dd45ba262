//! Pages of keys and values: who holds which, and copy on write. Bookkeeping only; the numbers live in the backend.
//!
//! Invariant: a page's reference count equals the number of page tables that name it; a page is free iff that count is
//! zero; a page is written only while exactly one page table names it.

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
}

impl PageTable {
    /// The pages in token order.
    pub fn pages(&self) -> &[PageId] {
        &self.pages
    }
}

/// Hands out pages and counts who shares them.
#[derive(Debug)]
pub struct KvCache {
    page_size: usize,
    references: Vec<u32>,
    free: Vec<PageId>,
}

impl KvCache {
    /// A cache of `pages` pages of `page_size` tokens each, all free.
    pub fn new(pages: u32, page_size: usize) -> Self {
        Self { page_size: page_size.max(1), references: vec![0; pages as usize], free: (0..pages).rev().collect() }
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
        self.free.len()
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
        if needed > self.free.len() {
            return Err(OutOfPages { needed, free: self.free.len() });
        }
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
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// A second table that shares the pages of the first `tokens` tokens of `table`.
    pub fn fork(&mut self, table: &PageTable, tokens: usize) -> PageTable {
        let pages = table.pages[..self.pages_for(tokens).min(table.pages.len())].to_vec();
        for &page in &pages {
            self.references[page as usize] += 1;
        }
        PageTable { pages }
    }

    /// Gives up all pages of `table`.
    pub fn release(&mut self, table: &mut PageTable) {
        for page in std::mem::take(&mut table.pages) {
            self.release_page(page);
        }
    }

    fn allocate(&mut self) -> Option<PageId> {
        let page = self.free.pop()?;
        self.references[page as usize] = 1;
        Some(page)
    }

    fn release_page(&mut self, page: PageId) {
        let references = &mut self.references[page as usize];
        *references -= 1;
        if *references == 0 {
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
        let free: std::collections::BTreeSet<_> = self.free.iter().copied().collect();
        assert_eq!(free.len(), self.free.len(), "a page is on the free list twice");
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
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let op = prop_oneof![
            3 => (0..8usize, 1..20usize).prop_map(|(table, tokens)| Op::Write { table, tokens }),
            2 => (0..8usize, 0..40usize).prop_map(|(table, tokens)| Op::Fork { table, tokens }),
            1 => (0..8usize).prop_map(|table| Op::Release { table }),
        ];
        prop::collection::vec(op, 1..120)
    }

    proptest! {
        /// Each table's tokens read back as written, whatever is forked, overwritten and released beside it.
        #[test]
        fn pages_keep_every_tables_tokens(ops in ops()) {
            const PAGE: usize = 4;
            let mut cache = KvCache::new(24, PAGE);
            let mut memory = vec![0u32; 24 * PAGE];
            let mut tables: Vec<(PageTable, Vec<u32>)> = (0..8).map(|_| Default::default()).collect();
            let mut stamp = 0;
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

//! The prefix cache's index: which pages of the KV cache hold which beginnings of texts, so that a prompt that begins like
//! an earlier text need not be computed again (prefix caching).
//!
//! Full pages form a tree: a page's node stands below the node of the page before it, and the first pages of texts stand
//! below the root of their variant. A page is found by a hash of its parent's node and its own tokens, and both are
//! compared before it is used, so that two texts with the same hash are never mistaken for each other.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    hash::{BuildHasher, RandomState},
};

use crate::kv_cache::PageId;

/// What keys and values depend on besides the tokens. Texts of different variants share no pages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct VariantKey {
    /// Whether the long rotary factors of long-rope apply.
    pub long: bool,
    /// Number of the adapter that the model runs with; `None` for the model alone.
    pub adapter: Option<u32>,
    /// What keeps texts of others apart that have the same tokens: of a request's own salt, if it has one.
    pub salt: Option<u64>,
}

/// Names a text that ends with a full page, or the empty text of a variant. A name is never given twice, so it stays true
/// when its page is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NodeId {
    /// What the first pages of a variant's texts stand below.
    Root(VariantKey),
    /// The text up to the end of a page.
    Text(u64),
}

#[derive(Debug, Clone, Copy)]
struct Known {
    node: NodeId,
    parent: NodeId,
    hash: u64,
}

/// The known pages, and in which order those that no page table names are evicted.
#[derive(Debug)]
pub struct PrefixIndex {
    page_size: usize,
    hasher: RandomState,
    by_hash: HashMap<u64, PageId>,
    known: Vec<Option<Known>>,
    /// `page_size` tokens for each page; they mean something only where the page is known.
    tokens: Vec<u32>,
    next_node: u64,
    /// Known pages that no page table names, by when they were released.
    unheld: BTreeMap<u64, PageId>,
    released: Vec<u64>,
    clock: u64,
}

impl PrefixIndex {
    /// An index over `pages` pages of `page_size` tokens, none of which is known.
    pub fn new(pages: usize, page_size: usize) -> Self {
        Self {
            page_size,
            hasher: RandomState::new(),
            // Twice the entries it can have: a hash table that is half empty is rehashed in place, and never grows.
            by_hash: HashMap::with_capacity(2 * pages),
            known: vec![None; pages],
            tokens: vec![0; pages * page_size],
            next_node: 0,
            unheld: BTreeMap::new(),
            released: vec![0; pages],
            clock: 0,
        }
    }

    /// The page that holds `tokens`, one page full, below `parent`.
    pub fn find(&self, parent: NodeId, tokens: &[u32]) -> Option<(PageId, NodeId)> {
        let page = *self.by_hash.get(&self.hash(parent, tokens))?;
        let known = self.known[page as usize]?;
        (known.parent == parent && self.tokens_of(page) == tokens).then_some((page, known.node))
    }

    /// Makes `page` known as the one that holds `tokens` below `parent`, unless another page already is. Returns the node
    /// of that text.
    pub fn insert(&mut self, page: PageId, parent: NodeId, tokens: &[u32]) -> NodeId {
        if let Some((_, node)) = self.find(parent, tokens) {
            return node;
        }
        let node = NodeId::Text(self.next_node);
        self.next_node += 1;
        let hash = self.hash(parent, tokens);
        // Another text with the same hash keeps its place: this one is merely not found again.
        if let Entry::Vacant(place) = self.by_hash.entry(hash) {
            place.insert(page);
            self.known[page as usize] = Some(Known { node, parent, hash });
            let at = page as usize * self.page_size;
            self.tokens[at..at + self.page_size].copy_from_slice(tokens);
        }
        node
    }

    /// Forgets what `page` holds, before it is written again.
    pub fn forget(&mut self, page: PageId) {
        if let Some(known) = self.known[page as usize].take() {
            self.by_hash.remove(&known.hash);
        }
    }

    /// Notes that no page table names `page` any more. Returns whether its contents are known and so worth keeping.
    pub fn release(&mut self, page: PageId) -> bool {
        let known = self.known[page as usize].is_some();
        if known {
            self.clock += 1;
            self.released[page as usize] = self.clock;
            self.unheld.insert(self.clock, page);
        }
        known
    }

    /// Notes that a page table names `page` again.
    pub fn hold(&mut self, page: PageId) {
        self.unheld.remove(&self.released[page as usize]);
    }

    /// Known pages that no page table names.
    pub fn unheld(&self) -> usize {
        self.unheld.len()
    }

    /// Forgets the page that was released first of those that no page table names, and returns it for another use.
    pub fn evict(&mut self) -> Option<PageId> {
        let (_, page) = self.unheld.pop_first()?;
        self.forget(page);
        Some(page)
    }

    fn hash(&self, parent: NodeId, tokens: &[u32]) -> u64 {
        self.hasher.hash_one((parent, tokens))
    }

    fn tokens_of(&self, page: PageId) -> &[u32] {
        let at = page as usize * self.page_size;
        &self.tokens[at..at + self.page_size]
    }

    /// The pages that [`Self::evict`] would give, in its order.
    #[cfg(test)]
    pub(crate) fn unheld_pages(&self) -> impl Iterator<Item = PageId> {
        self.unheld.values().copied()
    }
}

//! Which pages hold which beginnings of texts, so that a prompt that begins like an earlier one need not be computed again.
//!
//! Full pages form a tree: a page's node stands below the node of the page before it. A page is found by a hash of its
//! parent's node and its own tokens, and both are compared before it is used, so that two texts with the same hash are
//! never mistaken for each other.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    hash::{BuildHasher, RandomState},
};

use crate::kv_cache::PageId;

/// Names the text that ends with a page. A name is never given twice, so it stays true when its page is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NodeId(u64);

impl NodeId {
    /// What the first pages of texts stand below: texts of different `kind`s share nothing.
    pub fn root(kind: bool) -> Self {
        Self(u64::from(kind))
    }
}

/// Number of roots.
const ROOTS: u64 = 2;

#[derive(Debug, Clone, Copy)]
struct Known {
    node: NodeId,
    parent: NodeId,
    hash: u64,
}

/// The known pages, and in which order those that nobody holds are given up.
#[derive(Debug)]
pub struct PrefixIndex {
    page_size: usize,
    hasher: RandomState,
    by_hash: HashMap<u64, PageId>,
    known: Vec<Option<Known>>,
    /// `page_size` tokens for each page; they mean something only where the page is known.
    tokens: Vec<u32>,
    next_node: u64,
    /// Known pages that nobody holds, by when they were given up.
    unheld: BTreeMap<u64, PageId>,
    given_up: Vec<u64>,
    clock: u64,
}

impl PrefixIndex {
    /// An index over `pages` pages of `page_size` tokens, none of which is known.
    pub fn new(pages: usize, page_size: usize) -> Self {
        Self {
            page_size,
            hasher: RandomState::new(),
            // Twice the entries it can have: a table that is half empty is tidied up where it lies, and never grows.
            by_hash: HashMap::with_capacity(2 * pages),
            known: vec![None; pages],
            tokens: vec![0; pages * page_size],
            next_node: ROOTS,
            unheld: BTreeMap::new(),
            given_up: vec![0; pages],
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
        let node = NodeId(self.next_node);
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

    /// Notes that nobody holds `page` any more. Returns whether it is worth keeping.
    pub fn give_up(&mut self, page: PageId) -> bool {
        let known = self.known[page as usize].is_some();
        if known {
            self.clock += 1;
            self.given_up[page as usize] = self.clock;
            self.unheld.insert(self.clock, page);
        }
        known
    }

    /// Notes that somebody holds `page` again.
    pub fn take_up(&mut self, page: PageId) {
        self.unheld.remove(&self.given_up[page as usize]);
    }

    /// Known pages that nobody holds.
    pub fn unheld(&self) -> usize {
        self.unheld.len()
    }

    /// The page that has been of no use for longest, for another use.
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

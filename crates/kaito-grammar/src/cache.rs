//! A small cache whose least recently used entries go first.

use std::collections::HashMap;
use std::hash::Hash;

/// Keeps at most so many values, of at most so many bytes together.
#[derive(Debug)]
pub(crate) struct Cache<K, V> {
    entries: HashMap<K, Entry<V>>,
    clock: u64,
    bytes: usize,
    most: usize,
    most_bytes: usize,
}

#[derive(Debug)]
struct Entry<V> {
    used: u64,
    bytes: usize,
    value: V,
}

impl<K: Hash + Eq + Clone, V: Clone> Cache<K, V> {
    pub(crate) fn new(most: usize, most_bytes: usize) -> Self {
        Self { entries: HashMap::new(), clock: 0, bytes: 0, most, most_bytes }
    }

    pub(crate) fn get(&mut self, key: &K) -> Option<V> {
        self.clock += 1;
        let entry = self.entries.get_mut(key)?;
        entry.used = self.clock;
        Some(entry.value.clone())
    }

    /// Keeps a value that takes so many bytes, unless that is more than all may take.
    pub(crate) fn insert(&mut self, key: K, value: V, bytes: usize) {
        self.remove(&key);
        if bytes > self.most_bytes {
            return;
        }
        while self.entries.len() >= self.most || self.bytes > self.most_bytes - bytes {
            let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.used).map(|(key, _)| key.clone());
            let Some(oldest) = oldest else { return };
            self.remove(&oldest);
        }
        self.clock += 1;
        self.bytes += bytes;
        self.entries.insert(key, Entry { used: self.clock, bytes, value });
    }

    fn remove(&mut self, key: &K) {
        if let Some(entry) = self.entries.remove(key) {
            self.bytes -= entry.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_entry_goes_first() {
        let mut cache = Cache::new(2, 100);
        cache.insert('a', 1, 1);
        cache.insert('b', 2, 1);
        assert_eq!(cache.get(&'a'), Some(1));
        cache.insert('c', 3, 1);
        assert_eq!(['a', 'b', 'c'].map(|key| cache.get(&key)), [Some(1), None, Some(3)]);
        cache.insert('a', 4, 1);
        assert_eq!(['a', 'c'].map(|key| cache.get(&key)), [Some(4), Some(3)]);
    }

    #[test]
    fn large_entries_make_room_for_themselves_and_too_large_ones_are_not_kept() {
        let mut cache = Cache::new(10, 100);
        cache.insert('a', 1, 40);
        cache.insert('b', 2, 40);
        cache.insert('c', 3, 60);
        assert_eq!(['a', 'b', 'c'].map(|key| cache.get(&key)), [None, Some(2), Some(3)]);
        cache.insert('d', 4, 101);
        assert_eq!(['b', 'c', 'd'].map(|key| cache.get(&key)), [Some(2), Some(3), None]);
        // One that is replaced by what is too large is gone, too.
        cache.insert('c', 5, 101);
        cache.insert('e', 6, 60);
        assert_eq!(['b', 'c', 'e'].map(|key| cache.get(&key)), [Some(2), None, Some(6)]);
        cache.insert('b', 7, 100);
        assert_eq!((cache.get(&'b'), cache.get(&'e'), cache.bytes), (Some(7), None, 100));
    }
}

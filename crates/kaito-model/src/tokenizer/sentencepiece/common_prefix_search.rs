//! Common prefix search: all entries of a dictionary that a text starts with.

/// A dictionary: texts in byte order, each with an id.
#[derive(Debug, Clone, Default)]
pub(super) struct CommonPrefixSearch {
    sorted: Vec<(Box<[u8]>, u32)>,
}

impl CommonPrefixSearch {
    pub(super) fn new<'a>(entries: impl Iterator<Item = (&'a str, u32)>) -> Self {
        let mut sorted: Vec<(Box<[u8]>, u32)> = entries.map(|(text, id)| (text.as_bytes().into(), id)).collect();
        sorted.sort_unstable();
        Self { sorted }
    }

    /// Length and id of every entry that `text` starts with, shortest first.
    pub(super) fn matches<'a>(&'a self, text: &'a str) -> impl Iterator<Item = (usize, u32)> + 'a {
        // The entries that agree with `text` in its first `depth` bytes are neighbours; each byte narrows them down.
        let mut candidates = self.sorted.as_slice();
        let mut bytes = text.bytes().enumerate();
        std::iter::from_fn(move || {
            loop {
                let (depth, byte) = bytes.next()?;
                let at = |entry: &(Box<[u8]>, u32)| entry.0.get(depth).copied();
                let from = candidates.partition_point(|entry| at(entry) < Some(byte));
                let to = candidates.partition_point(|entry| at(entry) <= Some(byte));
                candidates = candidates.get(from..to).unwrap_or_default();
                let (first, id) = candidates.first()?;
                if first.len() == depth + 1 {
                    return Some((first.len(), *id));
                }
            }
        })
    }

    /// Length of the longest entry that `text` starts with.
    pub(super) fn longest(&self, text: &str) -> Option<usize> {
        self.matches(text).last().map(|(length, _)| length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_every_prefix() {
        let index = CommonPrefixSearch::new([("a", 0), ("ab", 1), ("abcd", 2), ("b", 3), ("é", 4)].into_iter());
        let found = |text| index.matches(text).collect::<Vec<_>>();
        assert_eq!(found("abcdx"), [(1, 0), (2, 1), (4, 2)]);
        assert_eq!(found("abc"), [(1, 0), (2, 1)]);
        assert_eq!(found("éa"), [(2, 4)]);
        assert_eq!(found("c"), []);
        assert_eq!(found(""), []);
        assert_eq!(index.longest("abx"), Some(2));
    }
}

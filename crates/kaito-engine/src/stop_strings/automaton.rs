//! Finds any of many strings in a text that comes byte by byte (Aho and Corasick, 1975).

/// A beginning of one or more of the strings.
#[derive(Debug)]
struct Node {
    /// The byte that leads here from the node's parent.
    byte: u8,
    /// Its first child. Nodes lie in the order of their depths, children of one node side by side and sorted, so they end
    /// where those of the next node begin.
    first_child: u32,
    /// The node of the longest proper end of this beginning that is a beginning itself.
    fallback: u32,
    /// Bytes of the beginning.
    depth: u32,
    /// Bytes of the longest string that the beginning ends with; 0 where there is none.
    found: u32,
}

/// All the strings, as one automaton. Reading a byte takes constant time on average over a text, whatever the strings are.
#[derive(Debug)]
pub(super) struct Automaton {
    nodes: Vec<Node>,
}

/// How much of the strings an automaton has read.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct State(u32);

impl Automaton {
    /// An automaton for `strings`, none of them empty, which have less than 4 GiB in all.
    pub(super) fn new(mut strings: Vec<&[u8]>) -> Self {
        strings.sort_unstable();
        strings.dedup();
        let bytes: usize = strings.iter().map(|string| string.len()).sum();
        let mut nodes = Vec::with_capacity(bytes + 1);
        nodes.push(Node { byte: 0, first_child: 1, fallback: 0, depth: 0, found: 0 });
        let mut automaton = Self { nodes };
        // The strings that begin with each node.
        let mut ranges = vec![(0, strings.len())];
        let mut parent = 0;
        while let Some(&(mut start, end)) = ranges.get(parent) {
            let depth = automaton.nodes[parent].depth as usize;
            automaton.nodes[parent].first_child = automaton.nodes.len() as u32;
            for same in strings[start..end].chunk_by(|a, b| a.get(depth) == b.get(depth)) {
                // A string that ends here comes before those that go on.
                if let Some(&byte) = same.first().and_then(|string| string.get(depth)) {
                    let fallback = match parent {
                        0 => State(0),
                        _ => automaton.next(State(automaton.nodes[parent].fallback), byte),
                    };
                    let depth = depth as u32 + 1;
                    let whole = same.first().is_some_and(|string| string.len() == depth as usize);
                    let found = if whole { depth } else { automaton.nodes[fallback.0 as usize].found };
                    automaton.nodes.push(Node { byte, first_child: 0, fallback: fallback.0, depth, found });
                    ranges.push((start, start + same.len()));
                }
                start += same.len();
            }
            parent += 1;
        }
        automaton
    }

    /// Reads a byte.
    pub(super) fn next(&self, mut state: State, byte: u8) -> State {
        loop {
            if let Some(child) = self.child(state, byte) {
                return child;
            }
            if state.0 == 0 {
                return state;
            }
            state = State(self.nodes[state.0 as usize].fallback);
        }
    }

    /// Bytes of the longest end of the text that is a beginning of one of the strings.
    pub(super) fn begun(&self, state: State) -> usize {
        self.nodes[state.0 as usize].depth as usize
    }

    /// Bytes of the longest string that the text ends with.
    pub(super) fn found(&self, state: State) -> Option<usize> {
        Some(self.nodes[state.0 as usize].found as usize).filter(|&bytes| bytes > 0)
    }

    fn child(&self, state: State, byte: u8) -> Option<State> {
        let place = state.0 as usize;
        let first = self.nodes[place].first_child as usize;
        let end = self.nodes.get(place + 1).map_or(self.nodes.len(), |next| next.first_child as usize);
        let children = self.nodes.get(first..end)?;
        let at = children.binary_search_by_key(&byte, |child| child.byte).ok()?;
        Some(State((first + at) as u32))
    }
}

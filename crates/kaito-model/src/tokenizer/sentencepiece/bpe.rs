//! Byte-pair encoding (BPE) as SentencePiece does it: merges ordered by the score of the piece that they make.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use super::Model;
use super::proto::PieceKind;

const NONE: usize = usize::MAX;

/// A part of the text, linked to its neighbours; an empty one was merged into its left neighbour.
struct Symbol {
    start: usize,
    len: usize,
    previous: usize,
    next: usize,
    /// A user-defined piece: never merged.
    frozen: bool,
}

/// Two neighbours that a piece of the vocabulary spells.
struct Merge {
    score: f32,
    left: usize,
    right: usize,
    /// Bytes of both together, when they were found: if either has changed since, this no longer fits.
    len: usize,
}

impl Ord for Merge {
    fn cmp(&self, other: &Self) -> Ordering {
        // The best score first, then the leftmost. Scores are never NaN.
        self.score.partial_cmp(&other.score).unwrap_or(Ordering::Equal).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Merge {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Merge {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Merge {}

struct Merger<'a> {
    model: &'a Model,
    text: &'a str,
    symbols: Vec<Symbol>,
    agenda: BinaryHeap<Merge>,
    /// For pieces that may be built up but not be the result: what they were merged from, as lengths of the two halves.
    unused: HashMap<&'a str, usize>,
}

/// Segments a normalised text into pieces: `(text of the piece, id)`. Takes n log n time.
pub(super) fn encode<'a>(model: &'a Model, text: &'a str) -> Vec<(&'a str, u32)> {
    let mut merger =
        Merger { model, text, symbols: symbols(model, text), agenda: BinaryHeap::new(), unused: HashMap::new() };
    for right in 1..merger.symbols.len() {
        merger.propose(right - 1, right);
    }
    while let Some(merge) = merger.agenda.pop() {
        merger.apply(&merge);
    }
    merger.pieces()
}

fn symbols(model: &Model, text: &str) -> Vec<Symbol> {
    let mut symbols = Vec::with_capacity(text.len());
    let mut start = 0;
    while let Some(rest) = text.get(start..)
        && let Some(character) = rest.chars().next()
    {
        let defined = model.user_defined.longest(rest);
        let len = defined.unwrap_or(character.len_utf8());
        let index = symbols.len();
        let next = if start + len < text.len() { index + 1 } else { NONE };
        symbols.push(Symbol { start, len, previous: index.wrapping_sub(1), next, frozen: defined.is_some() });
        start += len;
    }
    symbols
}

impl<'a> Merger<'a> {
    fn propose(&mut self, left: usize, right: usize) {
        // `NONE` is beyond every list.
        let (Some(first), Some(second)) = (self.symbols.get(left), self.symbols.get(right)) else { return };
        if first.frozen || second.frozen {
            return;
        }
        let len = first.len + second.len;
        let Some(text) = self.text.get(first.start..first.start + len) else { return };
        let Some(piece) = self.model.mergeable(text) else { return };
        if piece.kind == PieceKind::Unused {
            self.unused.insert(text, first.len);
        }
        self.agenda.push(Merge { score: piece.score, left, right, len });
    }

    fn apply(&mut self, merge: &Merge) {
        let (Some(left), Some(right)) = (self.symbols.get(merge.left), self.symbols.get(merge.right)) else { return };
        if left.len == 0 || right.len == 0 || left.len + right.len != merge.len {
            return;
        }
        let (previous, next) = (left.previous, right.next);
        if let Some(left) = self.symbols.get_mut(merge.left) {
            left.len = merge.len;
            left.next = next;
        }
        if let Some(right) = self.symbols.get_mut(merge.right) {
            right.len = 0;
        }
        if let Some(after) = self.symbols.get_mut(next) {
            after.previous = merge.left;
        }
        self.propose(previous, merge.left);
        self.propose(merge.left, next);
    }

    fn pieces(&self) -> Vec<(&'a str, u32)> {
        let mut pieces = Vec::new();
        let mut stack = Vec::new();
        let mut index = 0;
        while let Some(symbol) = self.symbols.get(index) {
            index = symbol.next;
            stack.extend(self.text.get(symbol.start..symbol.start + symbol.len));
            while let Some(text) = stack.pop() {
                let id = self.model.piece_to_id(text);
                let halves = match self.model.kind(id) {
                    Some(PieceKind::Unused) => self.unused.get(text).and_then(|len| text.split_at_checked(*len)),
                    _ => None,
                };
                match halves {
                    Some((left, right)) => stack.extend([right, left]),
                    None => pieces.push((text, id)),
                }
            }
        }
        pieces
    }
}

//! The unigram language model: the segmentation of a text whose pieces have the highest sum of scores (Viterbi).

use super::Model;
use super::common_prefix_search::CommonPrefixSearch;
use super::proto::{Piece, PieceKind};

/// How much worse an unknown character is than the least likely piece.
const UNKNOWN_PENALTY: f32 = 10.0;

/// What encoding needs besides the pieces themselves.
#[derive(Debug, Clone)]
pub(super) struct Unigram {
    pieces: CommonPrefixSearch,
    unknown_score: f32,
    max_score: f32,
}

/// The best segmentation of the text up to some byte.
#[derive(Clone, Copy)]
struct BestPath {
    id: u32,
    score: f32,
    start: usize,
}

impl Unigram {
    pub(super) fn new(pieces: &[Piece]) -> Self {
        let normal = || pieces.iter().filter(|piece| piece.kind == PieceKind::Normal).map(|piece| piece.score);
        let matchable = pieces
            .iter()
            .zip(0..)
            .filter(|(piece, _)| matches!(piece.kind, PieceKind::Normal | PieceKind::UserDefined));
        Self {
            pieces: CommonPrefixSearch::new(matchable.map(|(piece, id)| (piece.text.as_str(), id))),
            unknown_score: normal().fold(f32::MAX, f32::min) - UNKNOWN_PENALTY,
            // The reference starts from the smallest positive number, so scores that are all negative do not count.
            max_score: normal().fold(f32::MIN_POSITIVE, f32::max),
        }
    }

    /// Segments a normalised text into pieces: `(text of the piece, id)`.
    pub(super) fn encode<'a>(&self, model: &Model, text: &'a str) -> Vec<(&'a str, u32)> {
        let mut best: Vec<Option<BestPath>> = vec![None; text.len() + 1];
        for (start, character) in text.char_indices() {
            let score_here = best.get(start).copied().flatten().map_or(0.0, |path| path.score);
            let mut single = false;
            for (len, id) in self.pieces.matches(text.get(start..).unwrap_or_default()) {
                let Some(piece) = model.pieces.get(id as usize) else { continue };
                // User-defined pieces get a bonus that makes them win. The reference adds in double precision here.
                let score = match piece.kind {
                    PieceKind::UserDefined => f64::from(len as f32 * self.max_score) - 0.1,
                    _ => f64::from(piece.score),
                };
                let total = score + f64::from(score_here);
                improve(&mut best, start, len, id, total);
                single |= len == character.len_utf8();
            }
            if !single {
                let total = f64::from(self.unknown_score + score_here);
                improve(&mut best, start, character.len_utf8(), model.unk_id, total);
            }
        }
        let mut pieces = Vec::new();
        let mut end = text.len();
        while let Some(Some(path)) = best.get(end) {
            pieces.extend(text.get(path.start..end).map(|piece| (piece, path.id)));
            end = path.start;
        }
        pieces.reverse();
        pieces
    }
}

fn improve(best: &mut [Option<BestPath>], start: usize, len: usize, id: u32, score: f64) {
    if let Some(slot) = best.get_mut(start + len)
        && slot.is_none_or(|path| score > f64::from(path.score))
    {
        *slot = Some(BestPath { id, score: score as f32, start });
    }
}

//! From ids back to text, one id at a time.

use super::proto::PieceKind;
use super::{Model, SPACE_SYMBOL, byte_of_piece};

/// What decoding remembers between two ids. What it has put out never changes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Decoder {
    /// Bytes that may still become a character.
    bytes: Vec<u8>,
    /// Whether anything was put out.
    begun: bool,
    /// Whether a piece has lost its space, or text has come: no later one loses its own.
    spaces_stay: bool,
    stripped: bool,
}

impl Decoder {
    /// Appends the text that is certain once `id` has come.
    pub(crate) fn push(&mut self, model: &Model, id: u32, text: &mut String) {
        // The reference decodes by the piece's text: a control piece of the same text wins.
        let Some(piece) = model.piece(id) else { return };
        let id = model.piece_to_id(piece);
        let kind = model.kind(id);
        if kind == Some(PieceKind::Byte) {
            self.bytes.extend(byte_of_piece(piece));
            self.drain_bytes(text, false);
            return;
        }
        self.drain_bytes(text, true);
        self.spaces_stay |= self.stripped || self.begun;
        self.stripped = false;
        let start = text.len();
        match kind {
            Some(PieceKind::Control) | None => {}
            Some(PieceKind::Unknown) => text.push_str(&model.unk_surface),
            Some(_) => {
                let mut rest = piece;
                if !self.spaces_stay
                    && model.strip_first_space
                    && let Some(shorter) = piece.strip_prefix(SPACE_SYMBOL)
                {
                    rest = shorter;
                    self.stripped = !model.strip_all_first_spaces;
                }
                text.extend(rest.chars().map(|c| if c == SPACE_SYMBOL { ' ' } else { c }));
            }
        }
        self.begun |= text.len() > start;
    }

    /// Appends what was held back.
    pub(crate) fn finish(&mut self, text: &mut String) {
        self.drain_bytes(text, true);
    }

    /// Puts out whole characters, and U+FFFD for each byte that can't belong to one; keeps an unfinished character
    /// unless the run of bytes has ended.
    fn drain_bytes(&mut self, text: &mut String, ended: bool) {
        let start = text.len();
        let mut rest = self.bytes.as_slice();
        while !rest.is_empty() {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                }
                Err(error) => {
                    let (valid, invalid) = rest.split_at(error.valid_up_to());
                    text.push_str(std::str::from_utf8(valid).unwrap_or_default());
                    rest = invalid;
                    if error.error_len().is_none() && !ended {
                        break;
                    }
                    text.push('\u{fffd}');
                    rest = rest.get(1..).unwrap_or_default();
                }
            }
        }
        self.begun |= text.len() > start;
        self.bytes = rest.to_vec();
    }
}

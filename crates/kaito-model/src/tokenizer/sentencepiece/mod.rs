//! SentencePiece models (BPE and unigram), as Google's library reads, applies and reverses them: the tokenizer of Meta's
//! downloads.

mod bpe;
mod common_prefix_search;
mod decode;
mod normalizer;
mod proto;
mod protobuf;
mod unigram;

use std::collections::HashMap;

use common_prefix_search::CommonPrefixSearch;
use normalizer::{Normalizer, SPACE_SYMBOL};
use proto::Algorithm;
use unigram::Unigram;

pub(crate) use decode::Decoder;
pub(crate) use proto::{Algorithm as ProtoAlgorithm, ModelProto, Piece, PieceKind};

/// Why a SentencePiece model can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The file is not a sequence of protocol buffer fields.
    #[error("not a SentencePiece model: {what} at byte {offset} of a message")]
    Protobuf {
        /// Where in the message that was being read.
        offset: usize,
        /// What is wrong there.
        what: String,
    },
    /// A text in the model is not UTF-8.
    #[error("{what} is not UTF-8")]
    NotUtf8 {
        /// Which field.
        what: &'static str,
    },
    /// More pieces than a vocabulary may have.
    #[error("more than {limit} pieces")]
    TooManyPieces {
        /// The limit.
        limit: usize,
    },
    /// A piece without text.
    #[error("piece {id} is empty")]
    EmptyPiece {
        /// The piece's id.
        id: usize,
    },
    /// A piece longer than pieces may be.
    #[error("piece {id} has {bytes} bytes, more than {limit}")]
    LongPiece {
        /// The piece's id.
        id: usize,
        /// Its length.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// A score that can't be compared.
    #[error("the score of piece {id} is not a number")]
    Score {
        /// The piece's id.
        id: usize,
    },
    /// A type of piece that the format does not have.
    #[error("piece {id} has the unknown type {kind}")]
    PieceKind {
        /// The piece's id.
        id: usize,
        /// The number that stands for its type.
        kind: i32,
    },
    /// A model of whole words or single characters, or of a type that the format does not have.
    #[error("model type {number} is not supported, only 1 (unigram) and 2 (byte-pair encoding)")]
    Algorithm {
        /// The number that stands for the type.
        number: i32,
    },
    /// The same piece twice.
    #[error("piece {id} is \"{text}\", which an earlier piece is already")]
    Duplicate {
        /// The second one's id.
        id: usize,
        /// Its text.
        text: String,
    },
    /// No piece, or more than one, for what is not in the vocabulary.
    #[error("{count} pieces of type unknown instead of one")]
    Unknown {
        /// How many there are.
        count: usize,
    },
    /// A byte piece that is not of the form `<0x0A>`.
    #[error("byte piece {id} is \"{text}\"")]
    BytePiece {
        /// The piece's id.
        id: usize,
        /// Its text.
        text: String,
    },
    /// Byte fallback needs a piece for each byte; without it there must be none.
    #[error("{count} byte pieces with byte_fallback {byte_fallback}")]
    ByteFallback {
        /// How many different bytes have a piece.
        count: usize,
        /// What the model says.
        byte_fallback: bool,
    },
    /// The compiled normalisation rules are damaged.
    #[error("the precompiled character map is damaged: {what}")]
    CharsMap {
        /// What is wrong.
        what: String,
    },
    /// The model asks for replacements after decoding.
    #[error("denormalisation rules are not supported")]
    Denormalizer,
}

/// A SentencePiece model, ready to encode and decode.
#[derive(Debug, Clone)]
pub struct Model {
    pieces: Vec<Piece>,
    /// Normal, user-defined and unused pieces: what text is matched against.
    ids: HashMap<Box<str>, u32>,
    /// Control, unknown and byte pieces: never found in a text.
    reserved: HashMap<Box<str>, u32>,
    user_defined: CommonPrefixSearch,
    normalizer: Normalizer,
    /// `None` for byte-pair encoding.
    unigram: Option<Unigram>,
    /// The id of each byte's piece, if unknown characters are encoded as bytes.
    byte_ids: Option<Box<[u32; 256]>>,
    unk_id: u32,
    special: SpecialIds,
    unk_surface: String,
    strip_first_space: bool,
    strip_all_first_spaces: bool,
}

#[derive(Debug, Clone, Copy)]
struct SpecialIds {
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
}

impl Model {
    /// Reads the contents of a `.model` file.
    pub fn parse(bytes: &[u8]) -> Result<Self, ModelError> {
        Self::new(ModelProto::parse(bytes)?)
    }

    pub(crate) fn new(proto: ModelProto) -> Result<Self, ModelError> {
        let ModelProto { pieces, trainer, normalizer, denormalizer } = proto;
        if !denormalizer.precompiled_charsmap.is_empty() {
            return Err(ModelError::Denormalizer);
        }
        let mut ids = HashMap::new();
        let mut reserved = HashMap::new();
        let mut unknown = Vec::new();
        let mut byte_pieces = [None; 256];
        for (piece, id) in pieces.iter().zip(0u32..) {
            let map = match piece.kind {
                PieceKind::Normal | PieceKind::UserDefined | PieceKind::Unused => &mut ids,
                PieceKind::Control | PieceKind::Unknown | PieceKind::Byte => &mut reserved,
            };
            if map.insert(Box::from(piece.text.as_str()), id).is_some() {
                return Err(ModelError::Duplicate { id: id as usize, text: piece.text.clone() });
            }
            match piece.kind {
                PieceKind::Unknown => unknown.push(id),
                PieceKind::Byte => {
                    let slot = byte_of_piece(&piece.text).and_then(|byte| byte_pieces.get_mut(usize::from(byte)));
                    let slot =
                        slot.ok_or_else(|| ModelError::BytePiece { id: id as usize, text: piece.text.clone() })?;
                    *slot = Some(id);
                }
                _ => {}
            }
        }
        let [unk_id] = unknown.as_slice() else { return Err(ModelError::Unknown { count: unknown.len() }) };
        let (unk_id, count) = (*unk_id, byte_pieces.iter().flatten().count());
        let byte_ids = match (trainer.byte_fallback, count) {
            (true, 256) => Some(Box::new(byte_pieces.map(|id| id.unwrap_or(unk_id)))),
            (false, 0) => None,
            (byte_fallback, count) => return Err(ModelError::ByteFallback { count, byte_fallback }),
        };
        let control = |text: &str| {
            let id = reserved.get(text).copied()?;
            pieces.get(id as usize).is_some_and(|piece: &Piece| piece.kind == PieceKind::Control).then_some(id)
        };
        let special = SpecialIds {
            bos: control(&trainer.bos_piece),
            eos: control(&trainer.eos_piece),
            pad: control(&trainer.pad_piece),
        };
        let user_defined = pieces.iter().zip(0..).filter(|(piece, _)| piece.kind == PieceKind::UserDefined);
        Ok(Self {
            user_defined: CommonPrefixSearch::new(user_defined.map(|(piece, id)| (piece.text.as_str(), id))),
            normalizer: Normalizer::new(&normalizer, &trainer)?,
            unigram: (trainer.algorithm == Algorithm::Unigram).then(|| Unigram::new(&pieces)),
            byte_ids,
            unk_id,
            special,
            unk_surface: trainer.unk_surface,
            strip_first_space: normalizer.add_dummy_prefix || normalizer.remove_extra_whitespaces,
            strip_all_first_spaces: normalizer.remove_extra_whitespaces,
            pieces,
            ids,
            reserved,
        })
    }

    /// The ids of a text, without begin and end tokens. Names of control pieces in the text are plain text.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let normalized = self.normalizer.normalize(text, &self.user_defined);
        let pieces = match &self.unigram {
            Some(unigram) => unigram.encode(self, &normalized),
            None => bpe::encode(self, &normalized),
        };
        let mut ids = Vec::with_capacity(pieces.len());
        let mut after_unknown = false;
        for (text, id) in pieces {
            let unknown = id == self.unk_id;
            match &self.byte_ids {
                Some(byte_ids) if unknown => {
                    ids.extend(text.bytes().filter_map(|byte| byte_ids.get(usize::from(byte)).copied()));
                }
                // A run of unknown characters is one unknown piece.
                _ if unknown && after_unknown => {}
                _ => ids.push(id),
            }
            after_unknown = unknown;
        }
        ids
    }

    /// The text of a sequence of ids; ids beyond the vocabulary are dropped.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut decoder = Decoder::default();
        let mut text = String::new();
        for &id in ids {
            decoder.push(self, id, &mut text);
        }
        decoder.finish(&mut text);
        text
    }

    /// The most bytes of a text that a piece can stand for; `None` where nothing bounds it, since characters may be dropped or
    /// a run of unknown ones become one piece.
    pub(crate) fn bytes_per_token(&self) -> Option<usize> {
        let bounded = self.byte_ids.is_some() && self.normalizer.keeps_all();
        bounded.then(|| self.pieces.iter().map(|piece| piece.text.len()).max().unwrap_or(1))
    }

    /// How many pieces there are; ids are smaller than that.
    pub fn size(&self) -> usize {
        self.pieces.len()
    }

    /// The token that begins a sequence.
    pub fn bos(&self) -> Option<u32> {
        self.special.bos
    }

    /// The token that ends a sequence.
    pub fn eos(&self) -> Option<u32> {
        self.special.eos
    }

    /// The padding token; Llama has none.
    pub fn pad(&self) -> Option<u32> {
        self.special.pad
    }

    /// The token for unknown text.
    pub fn unk(&self) -> u32 {
        self.unk_id
    }

    /// A piece as the file has it, with U+2581 for a space.
    pub fn piece(&self, id: u32) -> Option<&str> {
        self.pieces.get(id as usize).map(|piece| piece.text.as_str())
    }

    /// The bytes that a piece adds inside a text; the name of a control piece, which has no text.
    pub(crate) fn piece_bytes(&self, id: u32) -> Option<Vec<u8>> {
        let piece = self.piece(id)?;
        // As decoding does it: a control piece of the same text wins.
        Some(match self.kind(self.piece_to_id(piece))? {
            PieceKind::Byte => byte_of_piece(piece).into_iter().collect(),
            PieceKind::Unknown => self.unk_surface.clone().into_bytes(),
            PieceKind::Control => piece.as_bytes().to_vec(),
            PieceKind::Normal | PieceKind::UserDefined | PieceKind::Unused => {
                piece.replace(SPACE_SYMBOL, " ").into_bytes()
            }
        })
    }

    /// Whether a piece is a control piece or the unknown one.
    pub fn is_special(&self, id: u32) -> bool {
        matches!(self.kind(id), Some(PieceKind::Control | PieceKind::Unknown))
    }

    /// The id of a piece by its text; the unknown piece's if there is none.
    pub(crate) fn piece_to_id(&self, text: &str) -> u32 {
        self.reserved.get(text).or_else(|| self.ids.get(text)).copied().unwrap_or(self.unk_id)
    }

    fn kind(&self, id: u32) -> Option<PieceKind> {
        self.pieces.get(id as usize).map(|piece| piece.kind)
    }

    /// The piece that two neighbours may be merged into.
    fn mergeable(&self, text: &str) -> Option<&Piece> {
        self.ids.get(text).and_then(|id| self.pieces.get(*id as usize))
    }
}

/// The byte that a piece of the form `<0x0A>` stands for; upper-case digits only.
fn byte_of_piece(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let valid = digits.len() == 2 && digits.bytes().all(|c| matches!(c, b'0'..=b'9' | b'A'..=b'F'));
    valid.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

//! The messages of `sentencepiece_model.proto` that encoding and decoding depend on.

use super::ModelError;
use super::protobuf::{Fields, Value};

/// Most pieces a model may have; the largest published vocabularies have about a quarter of a million.
const MAX_PIECES: usize = 1 << 20;
/// Longest piece in bytes; the trainer's own limit is 512 characters.
const MAX_PIECE_BYTES: usize = 2048;

/// A whole `.model` file (`ModelProto`).
#[derive(Debug, Clone, Default)]
pub(crate) struct ModelProto {
    pub pieces: Vec<Piece>,
    pub trainer: TrainerSpec,
    pub normalizer: NormalizerSpec,
    pub denormalizer: NormalizerSpec,
}

/// One entry of the vocabulary; its id is its place in the file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Piece {
    pub text: String,
    pub score: f32,
    pub kind: PieceKind,
}

/// What a piece stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PieceKind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Byte,
    Unused,
}

/// How the text was cut when the model was trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Algorithm {
    Unigram,
    Bpe,
}

#[derive(Debug, Clone)]
pub(crate) struct TrainerSpec {
    pub algorithm: Algorithm,
    pub treat_whitespace_as_suffix: bool,
    pub byte_fallback: bool,
    pub unk_id: i32,
    pub unk_piece: String,
    pub bos_piece: String,
    pub eos_piece: String,
    pub pad_piece: String,
    pub unk_surface: String,
}

impl Default for TrainerSpec {
    fn default() -> Self {
        Self {
            algorithm: Algorithm::Unigram,
            treat_whitespace_as_suffix: false,
            byte_fallback: false,
            unk_id: 0,
            unk_piece: "<unk>".to_owned(),
            bos_piece: "<s>".to_owned(),
            eos_piece: "</s>".to_owned(),
            pad_piece: "<pad>".to_owned(),
            unk_surface: " \u{2047} ".to_owned(),
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct NormalizerSpec {
    pub precompiled_charsmap: Vec<u8>,
    pub add_dummy_prefix: bool,
    pub remove_extra_whitespaces: bool,
    pub escape_whitespaces: bool,
}

impl Default for NormalizerSpec {
    fn default() -> Self {
        Self {
            precompiled_charsmap: Vec::new(),
            add_dummy_prefix: true,
            remove_extra_whitespaces: true,
            escape_whitespaces: true,
        }
    }
}

impl ModelProto {
    /// Reads the whole file. A field of an unexpected wire type is skipped, as protocol buffers prescribe.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, ModelError> {
        let mut model = Self::default();
        let mut fields = Fields::new(bytes);
        while let Some((number, value)) = fields.next()? {
            let Some(message) = value.as_bytes() else { continue };
            match number {
                1 => {
                    if model.pieces.len() == MAX_PIECES {
                        return Err(ModelError::TooManyPieces { limit: MAX_PIECES });
                    }
                    let piece = parse_piece(message, model.pieces.len())?;
                    model.pieces.push(piece);
                }
                2 => parse_trainer(message, &mut model.trainer)?,
                3 => parse_normalizer(message, &mut model.normalizer)?,
                5 => parse_normalizer(message, &mut model.denormalizer)?,
                _ => {}
            }
        }
        Ok(model)
    }
}

fn parse_piece(message: &[u8], id: usize) -> Result<Piece, ModelError> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: PieceKind::Normal };
    let mut fields = Fields::new(message);
    while let Some((number, value)) = fields.next()? {
        match number {
            1 => set(&mut piece.text, string(&value, "a piece")?),
            2 => set(&mut piece.score, value.as_f32()),
            3 => {
                piece.kind = match value.as_i32() {
                    Some(1) | None => PieceKind::Normal,
                    Some(2) => PieceKind::Unknown,
                    Some(3) => PieceKind::Control,
                    Some(4) => PieceKind::UserDefined,
                    Some(5) => PieceKind::Unused,
                    Some(6) => PieceKind::Byte,
                    Some(kind) => return Err(ModelError::PieceKind { id, kind }),
                }
            }
            _ => {}
        }
    }
    if piece.text.is_empty() {
        return Err(ModelError::EmptyPiece { id });
    }
    if piece.text.len() > MAX_PIECE_BYTES {
        return Err(ModelError::LongPiece { id, bytes: piece.text.len(), limit: MAX_PIECE_BYTES });
    }
    if piece.score.is_nan() {
        return Err(ModelError::Score { id });
    }
    Ok(piece)
}

fn parse_trainer(message: &[u8], spec: &mut TrainerSpec) -> Result<(), ModelError> {
    let mut fields = Fields::new(message);
    while let Some((number, value)) = fields.next()? {
        match number {
            3 => {
                spec.algorithm = match value.as_i32() {
                    Some(1) | None => Algorithm::Unigram,
                    Some(2) => Algorithm::Bpe,
                    Some(other) => return Err(ModelError::Algorithm { number: other }),
                }
            }
            24 => set(&mut spec.treat_whitespace_as_suffix, value.as_bool()),
            35 => set(&mut spec.byte_fallback, value.as_bool()),
            40 => set(&mut spec.unk_id, value.as_i32()),
            44 => set(&mut spec.unk_surface, string(&value, "unk_surface")?),
            45 => set(&mut spec.unk_piece, string(&value, "unk_piece")?),
            46 => set(&mut spec.bos_piece, string(&value, "bos_piece")?),
            47 => set(&mut spec.eos_piece, string(&value, "eos_piece")?),
            48 => set(&mut spec.pad_piece, string(&value, "pad_piece")?),
            _ => {}
        }
    }
    Ok(())
}

fn parse_normalizer(message: &[u8], spec: &mut NormalizerSpec) -> Result<(), ModelError> {
    let mut fields = Fields::new(message);
    while let Some((number, value)) = fields.next()? {
        match number {
            2 => set(&mut spec.precompiled_charsmap, value.as_bytes().map(<[u8]>::to_vec)),
            3 => set(&mut spec.add_dummy_prefix, value.as_bool()),
            4 => set(&mut spec.remove_extra_whitespaces, value.as_bool()),
            5 => set(&mut spec.escape_whitespaces, value.as_bool()),
            _ => {}
        }
    }
    Ok(())
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

fn string(value: &Value<'_>, what: &'static str) -> Result<Option<String>, ModelError> {
    match value.as_bytes() {
        None => Ok(None),
        Some(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => Ok(Some(text.to_owned())),
            Err(_) => Err(ModelError::NotUtf8 { what }),
        },
    }
}

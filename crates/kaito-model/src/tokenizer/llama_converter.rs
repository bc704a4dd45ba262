//! Converts a SentencePiece model (unigram or BPE) as transformers does where a directory has no tokenizer.json
//! (`LlamaConverter` in transformers 4.46).

use std::cmp::Reverse;
use std::collections::HashMap;

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::{Prepend, Replace, Sequence as NormalizerSequence};
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::{AddedToken, ModelWrapper, Tokenizer};

use super::sentencepiece::{ModelProto, PieceKind, ProtoAlgorithm};

const SPACE_SYMBOL: &str = "\u{2581}";
/// transformers takes the first three pieces for the unknown, begin and end tokens, and their scores for zero.
const RESERVED: usize = 3;

/// How a converted tokenizer treats spaces.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spaces {
    /// A mark of a word's start before every segment, also after a special token.
    pub legacy: bool,
    /// Whether the text gets such a mark at all.
    pub add_prefix_space: bool,
}

/// The tokenizer, without post-processor and decoder.
pub(super) fn convert(proto: &ModelProto, spaces: Spaces) -> tokenizers::Result<Tokenizer> {
    let mut tokenizer = Tokenizer::new(model(proto)?);
    if spaces.legacy {
        let mut normalizers = Vec::new();
        if spaces.add_prefix_space {
            normalizers.push(Prepend::new(SPACE_SYMBOL.to_owned()).into());
        }
        normalizers.push(Replace::new(" ", SPACE_SYMBOL)?.into());
        tokenizer.with_normalizer(Some(NormalizerSequence::new(normalizers)))?;
    } else {
        let scheme = if spaces.add_prefix_space { PrependScheme::First } else { PrependScheme::Never };
        tokenizer.with_pre_tokenizer(Some(Metaspace::new('\u{2581}', scheme, false)));
    }
    let added = proto.pieces.iter().filter_map(|piece| match piece.kind {
        PieceKind::Control | PieceKind::UserDefined => {
            let special = piece.kind == PieceKind::Control;
            Some(AddedToken::from(piece.text.as_str(), special).normalized(false))
        }
        _ => None,
    });
    tokenizer.add_tokens(added)?;
    Ok(tokenizer)
}

fn model(proto: &ModelProto) -> tokenizers::Result<ModelWrapper> {
    let scores = || {
        let pieces = proto.pieces.iter().enumerate();
        pieces.map(|(id, piece)| (piece.text.as_str(), if id < RESERVED { 0.0 } else { piece.score }))
    };
    Ok(match proto.trainer.algorithm {
        ProtoAlgorithm::Unigram => {
            let vocabulary = scores().map(|(text, score)| (text.to_owned(), f64::from(score))).collect();
            Unigram::from(vocabulary, Some(0), true)?.into()
        }
        ProtoAlgorithm::Bpe => {
            let vocabulary: Vocab = scores().zip(0..).map(|((text, _), id)| (text.to_owned(), id)).collect();
            let merges = merges(&scores().collect::<Vec<_>>());
            BPE::builder()
                .vocab_and_merges(vocabulary, merges)
                .unk_token(proto.trainer.unk_piece.clone())
                .fuse_unk(true)
                .byte_fallback(true)
                .build()?
                .into()
        }
    })
}

/// Every way to make a piece of two others, the best piece first.
fn merges(pieces: &[(&str, f32)]) -> Vec<(String, String)> {
    let ids: HashMap<&str, usize> = pieces.iter().enumerate().map(|(id, (text, _))| (*text, id)).collect();
    let mut merges = Vec::new();
    for (text, score) in pieces {
        let cuts = text.char_indices().skip(1).filter_map(|(index, _)| {
            let (left, right) = text.split_at(index);
            Some((ids.get(left)?, ids.get(right)?, left, right))
        });
        let mut cuts: Vec<_> = cuts.collect();
        cuts.sort_by_key(|(left, right, ..)| (*left, *right));
        merges.extend(cuts.into_iter().map(|(.., left, right)| (*score, left, right)));
    }
    // Stable, so that what compares equal stays in the order of the vocabulary.
    merges.sort_by(|(score_a, left_a, right_a), (score_b, left_b, right_b)| {
        let lengths = |left: &str, right: &str| Reverse((left.chars().count(), right.chars().count()));
        let by_score = score_b.partial_cmp(score_a).unwrap_or(std::cmp::Ordering::Equal);
        by_score.then_with(|| lengths(left_a, right_a).cmp(&lengths(left_b, right_b)))
    });
    merges.into_iter().map(|(_, left, right)| (left.to_owned(), right.to_owned())).collect()
}

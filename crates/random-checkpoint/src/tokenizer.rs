//! A made-up vocabulary of the right size: special tokens at their published places, a piece for every byte, the
//! printable ASCII characters, and all short strings of small letters, with and without a space before them.

use std::collections::HashMap;

use kaito_presets::Shape;
use serde_json::{Value, json};

pub const UNKNOWN: &str = "<unk>";
/// Stands for a space.
const SPACE: char = '\u{2581}';

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Special,
    Byte,
    Text,
}

/// The text of the special token `id`.
pub fn special_text(shape: &Shape, id: u32) -> String {
    let ends = shape.eos_token_ids.contains(&id);
    match (id == shape.bos_token_id, ends) {
        (true, true) => "<|endoftext|>".into(),
        (true, false) => "<s>".into(),
        (false, true) if shape.eos_token_ids.first() == Some(&id) => "</s>".into(),
        _ => format!("<|{id}|>"),
    }
}

/// All pieces in the order of their ids.
fn pieces(shape: &Shape) -> Vec<(String, Kind)> {
    let ids = [shape.bos_token_id].into_iter().chain(shape.eos_token_ids.iter().copied()).chain(shape.pad_token_id);
    let mut special: HashMap<usize, String> = ids.map(|id| (id as usize, special_text(shape, id))).collect();
    special.insert(0, UNKNOWN.into());
    let bytes = (0..=0xff).map(|byte| (format!("<0x{byte:02X}>"), Kind::Byte));
    let characters = std::iter::once(SPACE).chain('!'..='~').map(|c| (c.to_string(), Kind::Text));
    let mut rest = bytes.chain(characters).chain(words().map(|word| (word, Kind::Text)));
    let piece = |id| match special.remove(&id) {
        Some(text) => Some((text, Kind::Special)),
        None => rest.next(),
    };
    (0..shape.vocab_size).map_while(piece).collect()
}

/// Strings of 2, 3, ... letters; the first may be a space. Each but the last letter of a string comes before it.
fn words() -> impl Iterator<Item = String> {
    (1..).flat_map(|letters| (0..27 * 26u32.pow(letters)).map(move |number| word(number, letters)))
}

/// A first character, of 27, and `letters` more, of 26: the digits of `number`.
fn word(number: u32, letters: u32) -> String {
    let letter = |digit: u32| char::from(b'a' + (digit % 26) as u8);
    let first = match number / 26u32.pow(letters) {
        0 => SPACE,
        digit => letter(digit - 1),
    };
    std::iter::once(first).chain((0..letters).rev().map(|place| letter(number / 26u32.pow(place)))).collect()
}

/// `tokenizer.json`: byte-pair encoding that falls back to bytes, with the normaliser and decoder of Llama's file.
pub fn hugging_face(shape: &Shape) -> Value {
    let pieces = pieces(shape);
    let mut vocabulary = serde_json::Map::new();
    let (mut merges, mut added) = (Vec::new(), Vec::new());
    for (id, (text, kind)) in pieces.iter().enumerate() {
        vocabulary.insert(text.clone(), json!(id));
        if *kind == Kind::Special {
            added.push(json!({
                "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true,
            }));
        }
        if let (Kind::Text, Some((last, letter))) = (kind, text.char_indices().next_back())
            && last > 0
        {
            merges.push(format!("{} {letter}", &text[..last]));
        }
    }
    let bos = special_text(shape, shape.bos_token_id);
    let mut single = vec![json!({ "Sequence": { "id": "A", "type_id": 0 } })];
    if shape.family.adds_bos {
        single.insert(0, json!({ "SpecialToken": { "id": bos, "type_id": 0 } }));
    }
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "Prepend", "prepend": SPACE },
            { "type": "Replace", "pattern": { "String": " " }, "content": SPACE },
        ] },
        "pre_tokenizer": null,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
            "special_tokens": { bos.clone(): { "id": bos, "ids": [shape.bos_token_id], "tokens": [bos] } },
        },
        "decoder": { "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": SPACE }, "content": " " },
            { "type": "ByteFallback" },
            { "type": "Fuse" },
            { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
        ] },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": UNKNOWN, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocabulary, "merges": merges,
        },
    })
}

/// `tokenizer.model`: a SentencePiece `ModelProto` (`sentencepiece_model.proto`) of the same pieces.
pub fn sentencepiece(shape: &Shape) -> Vec<u8> {
    let pieces = pieces(shape);
    let mut model = Vec::new();
    for (id, (text, kind)) in pieces.iter().enumerate() {
        let (number, score) = match kind {
            Kind::Special if id == 0 => (2, 0.0),
            Kind::Special => (3, 0.0),
            Kind::Byte => (6, 0.0),
            Kind::Text => (1, -(id as f32)),
        };
        let mut piece = Vec::new();
        bytes_field(&mut piece, 1, text.as_bytes());
        piece.push(2 << 3 | 5);
        piece.extend(score.to_le_bytes());
        number_field(&mut piece, 3, number);
        bytes_field(&mut model, 1, &piece);
    }
    let mut trainer = Vec::new();
    let bos = shape.bos_token_id.into();
    let eos = shape.eos_token_ids.first().copied().unwrap_or_default().into();
    // BPE, with bytes to fall back on; no padding.
    let numbers = [(3, 2), (4, pieces.len() as u64), (35, 1), (40, 0), (41, bos), (42, eos), (43, u64::MAX)];
    numbers.into_iter().for_each(|(field, value)| number_field(&mut trainer, field, value));
    bytes_field(&mut model, 2, &trainer);
    let mut normalizer = Vec::new();
    bytes_field(&mut normalizer, 1, b"identity");
    // A space before the text, spaces kept, and written as the mark.
    [(3, 1), (4, 0), (5, 1)].into_iter().for_each(|(field, value)| number_field(&mut normalizer, field, value));
    bytes_field(&mut model, 3, &normalizer);
    model
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn number_field(out: &mut Vec<u8>, field: u64, value: u64) {
    varint(out, field << 3);
    varint(out, value);
}

fn bytes_field(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    varint(out, field << 3 | 2);
    varint(out, bytes.len() as u64);
    out.extend(bytes);
}

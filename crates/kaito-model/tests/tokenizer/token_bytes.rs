//! The bytes of single tokens.

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use kaito_model::tokenizer::{Flavor, Special, Tokenizer};
use proptest::prelude::*;

use crate::properties::{SUBJECTS, Subject, sequence};
use crate::{META, OPTIONS, fixture, open_meta};

/// The tokenizers of the small models in the repository.
static OF_MODELS: LazyLock<Vec<Subject>> = LazyLock::new(|| {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let fixtures = fs::read_dir(root.join("tests/parity/fixtures")).unwrap().map(|entry| entry.unwrap().path());
    fixtures
        .chain([root.join("models/demo")])
        .filter(|path| path.join("config.json").exists() || path.join("params.json").exists())
        .map(|path| Subject::new(path.display().to_string(), Tokenizer::open(&path).unwrap()))
        .collect()
});

/// How a decoder makes characters of bytes that need not be any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Invalid {
    /// `ByteLevel` of the `tokenizers` crate: what Rust's lossy conversion of the whole gives.
    Lossy,
    /// `ByteFallback` of that crate: if a run of bytes is no text, each of them becomes U+FFFD.
    WholeRun,
    /// SentencePiece: each byte of a run that belongs to no character becomes U+FFFD.
    EachByte,
}

impl Invalid {
    fn of(tokenizer: &Tokenizer) -> Self {
        let is_byte_level = |id: u32| tokenizer.token_text(id).is_some_and(|text| text == "\u{120}");
        match tokenizer.flavor() {
            Flavor::Meta => Self::EachByte,
            Flavor::HuggingFace if (0..tokenizer.vocab_size() as u32).any(is_byte_level) => Self::Lossy,
            Flavor::HuggingFace => Self::WholeRun,
        }
    }

    fn text(self, run: &[u8]) -> String {
        match self {
            Self::Lossy => String::from_utf8_lossy(run).into_owned(),
            Self::WholeRun => match std::str::from_utf8(run) {
                Ok(text) => text.to_owned(),
                Err(_) => "\u{fffd}".repeat(run.len()),
            },
            Self::EachByte => run
                .utf8_chunks()
                .map(|chunk| chunk.valid().to_owned() + &"\u{fffd}".repeat(chunk.invalid().len()))
                .collect(),
        }
    }
}

/// The text of the joined bytes of tokens.
fn joined(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let invalid = Invalid::of(tokenizer);
    let mut text = String::new();
    let mut run = Vec::new();
    for &id in ids {
        let Some(bytes) = tokenizer.token_bytes(id) else { continue };
        let is_byte = bytes.len() == 1 && tokenizer.token_text(id).is_some_and(|token| token.starts_with("<0x"));
        if is_byte || invalid == Invalid::Lossy {
            run.extend(bytes);
            continue;
        }
        text.push_str(&invalid.text(&std::mem::take(&mut run)));
        // SentencePiece's control pieces have a name, but no text.
        let is_control = tokenizer.flavor() == Flavor::Meta
            && tokenizer.special_ids().contains(&id)
            && Some(id) != tokenizer.unk_token_id();
        if !is_control {
            text.push_str(std::str::from_utf8(&bytes).unwrap());
        }
    }
    text + &invalid.text(&run)
}

fn bytes_join_to_the_text(subject: &Subject, ids: &[u32]) -> Result<(), TestCaseError> {
    let Subject { name, tokenizer, .. } = subject;
    // Inside a text nothing is stripped.
    let before = tokenizer.encode("a", Special::Skip).unwrap();
    let whole = tokenizer.decode(&[before.as_slice(), ids].concat(), OPTIONS[0]);
    let expected = tokenizer.decode(&before, OPTIONS[0]) + &joined(tokenizer, ids);
    prop_assert_eq!(&whole, &expected, "{} {:?} inside a text", name, ids);
    // At its beginning spaces may be.
    let (whole, joined) = (tokenizer.decode(ids, OPTIONS[0]), joined(tokenizer, ids));
    let stripped = joined.strip_suffix(&whole);
    prop_assert!(stripped.is_some(), "{} {:?}: {:?} does not end with {:?}", name, ids, joined, whole);
    let stripped = stripped.unwrap_or_default();
    prop_assert!(stripped.chars().all(|c| c == ' '), "{} {:?}: {:?} is missing", name, ids, stripped);
    // All of them by SentencePiece models that remove extra spaces, and in the first token by a Metaspace decoder.
    let may_lose = match name.as_str() {
        "falcon" | "llama_model_no_prefix" => 0,
        "metaspace_first" | "meta_unigram" | "meta_unigram_bytes" | "meta_suffix" => usize::MAX,
        _ if Invalid::of(tokenizer) == Invalid::Lossy => 0,
        _ => 1,
    };
    prop_assert!(stripped.len() <= may_lose, "{} {:?}: {:?} is missing", name, ids, stripped);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn bytes_of_tokens_join_to_the_decoded_text((subject, ids, _) in sequence(&SUBJECTS)) {
        bytes_join_to_the_text(subject, &ids)?;
    }

    #[test]
    fn bytes_of_the_models_tokens_join_to_the_decoded_text((subject, ids, _) in sequence(&OF_MODELS)) {
        bytes_join_to_the_text(subject, &ids)?;
    }
}

#[test]
fn each_token_of_the_vocabulary_has_bytes_and_no_other() {
    assert!(OF_MODELS.len() > 10);
    for Subject { name, tokenizer, .. } in SUBJECTS.iter().chain(OF_MODELS.iter()) {
        let size = tokenizer.vocab_size() as u32;
        for id in 0..size {
            assert!(tokenizer.token_bytes(id).is_some_and(|bytes| !bytes.is_empty()), "{name}: {id}");
        }
        assert_eq!(tokenizer.token_bytes(size), None, "{name}");
        assert_eq!(tokenizer.token_bytes(u32::MAX), None, "{name}");
    }
}

/// Texts of tokens and their bytes. Byte-level ones as GPT-2's `bytes_to_unicode` pairs them.
const BYTE_LEVEL: &[(&str, &[u8])] = &[
    ("\u{120}the", b" the"),
    ("!", b"!"),
    ("\u{ff}", b"\xff"),
    ("\u{c3}", b"\xc3"),
    ("\u{a9}", b"\xa9"),
    ("\u{100}", b"\0"),
    ("\u{10a}", b"\n"),
    ("\u{120}", b" "),
    ("\u{121}", b"\x7f"),
    ("\u{122}", b"\x80"),
    ("\u{142}", b"\xa0"),
    ("\u{143}", b"\xad"),
    // Parts of the characters of a Greek and a Chinese word.
    ("\u{125}\u{ce}\u{ba}\u{cf}", b"\x83\xce\xba\xcf"),
    ("\u{126}\u{e6}\u{a3}\u{137}", b"\x84\xe6\xa3\x95"),
    ("<|endoftext|>", b"<|endoftext|>"),
    (">>TITLE<<", b">>TITLE<<"),
];
const BYTE_FALLBACK: &[(&str, &[u8])] = &[
    ("\u{2581}the", b" the"),
    ("\u{2581}\u{2581}", b"  "),
    ("a", b"a"),
    ("\u{72d0}", b"\xe7\x8b\x90"),
    ("<0x00>", b"\0"),
    ("<0x0A>", b"\n"),
    ("<0xC3>", b"\xc3"),
    ("<0xFF>", b"\xff"),
    ("<s>", b"<s>"),
    ("</s>", b"</s>"),
];
const HUGGING_FACE_UNKNOWN: &[(&str, &[u8])] = &[("<unk>", b"<unk>")];
/// " \u{2047} ", the surface that SentencePiece gives unknown text unless it is told another.
const META_UNKNOWN: &[(&str, &[u8])] = &[("<unk>", b" \xe2\x81\x87 ")];
const PHI3_ADDED: &[(&str, &[u8])] =
    &[("<|end|>", b"<|end|>"), ("<|assistant|>", b"<|assistant|>"), ("<custom>", b"<custom>")];
/// Without `ByteFallback` among the decoders, the name of a byte is a text.
const NO_BYTE_FALLBACK: &[(&str, &[u8])] = &[("\u{2581}the", b" the"), ("<0x0A>", b"<0x0A>"), ("<s>", b"<s>")];
const UNUSED: &[(&str, &[u8])] = &[("[INST]", b"[INST]"), ("\u{2581}the", b" the"), ("<custom>", b"<custom>")];

#[test]
fn tokens_have_the_bytes_that_their_kind_of_vocabulary_says() {
    for (name, kinds) in [
        ("falcon", &[BYTE_LEVEL] as &[&[(&str, &[u8])]]),
        ("llama2", &[BYTE_FALLBACK, HUGGING_FACE_UNKNOWN]),
        ("llama_model_no_prefix", &[BYTE_FALLBACK, HUGGING_FACE_UNKNOWN]),
        ("mistral_v03", &[BYTE_FALLBACK, HUGGING_FACE_UNKNOWN]),
        ("phi3", &[BYTE_FALLBACK, HUGGING_FACE_UNKNOWN, PHI3_ADDED]),
        ("metaspace_first", &[NO_BYTE_FALLBACK, HUGGING_FACE_UNKNOWN]),
        ("meta_llama", &[BYTE_FALLBACK, META_UNKNOWN]),
        ("meta_unused", &[UNUSED, META_UNKNOWN]),
        ("meta_unigram", &[META_UNKNOWN]),
    ] {
        let tokenizer = if META.contains(&name) { open_meta(name) } else { Tokenizer::open(&fixture(name)).unwrap() };
        let size = tokenizer.vocab_size() as u32;
        for (text, bytes) in kinds.iter().copied().flatten() {
            let id = (0..size).find(|id| tokenizer.token_text(*id).as_deref() == Some(*text));
            let id = id.unwrap_or_else(|| panic!("{name} has no {text}"));
            assert_eq!(tokenizer.token_bytes(id).as_deref(), Some(*bytes), "{name}: {text}");
        }
    }
}

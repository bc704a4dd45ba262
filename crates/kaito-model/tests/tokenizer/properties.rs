//! What holds for any text and any sequence of tokens.

use std::fmt;
use std::fs;
use std::sync::LazyLock;

use kaito_model::tokenizer::{DecodeOptions, Flavor, Special, StreamingDecoder, Tokenizer};
use proptest::prelude::*;

use crate::{HUGGING_FACE, META, OPTIONS, fixture, open_meta, streamed};

pub(crate) struct Subject {
    pub(crate) name: String,
    pub(crate) tokenizer: Tokenizer,
    /// Ids that matter to decoding more than their number shows: bytes and special tokens.
    bytes: Vec<u32>,
    special: Vec<u32>,
}

/// A failure names the subject, whose vocabulary would fill pages.
impl fmt::Debug for Subject {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.name)
    }
}

impl Subject {
    pub(crate) fn new(name: impl Into<String>, tokenizer: Tokenizer) -> Self {
        let is_byte =
            |id: &u32| tokenizer.token_text(*id).is_some_and(|text| text.starts_with("<0x") && text.len() == 6);
        let bytes: Vec<u32> = (0..tokenizer.vocab_size() as u32).filter(is_byte).collect();
        let special = tokenizer.special_ids().to_vec();
        Self { name: name.into(), tokenizer, bytes, special }
    }
}

pub(crate) static SUBJECTS: LazyLock<Vec<Subject>> = LazyLock::new(|| {
    let hugging_face = HUGGING_FACE.map(|name| Subject::new(name, Tokenizer::open(&fixture(name)).unwrap()));
    let meta = META.map(|name| Subject::new(name, open_meta(name)));
    hugging_face.into_iter().chain(meta).collect()
});

/// One of `subjects`, a sequence of ids in which bytes and special tokens are frequent, and where its prompt ends.
pub(crate) fn sequence(subjects: &'static [Subject]) -> impl Strategy<Value = (&'static Subject, Vec<u32>, usize)> {
    (
        0..subjects.len(),
        prop::collection::vec((0u8..10, any::<prop::sample::Index>()), 0..40),
        any::<prop::sample::Index>(),
    )
        .prop_map(move |(number, choices, cut)| {
            let subject = &subjects[number];
            let size = subject.tokenizer.vocab_size();
            let id = |(kind, index): (u8, prop::sample::Index)| match kind {
                0..=3 if !subject.bytes.is_empty() => subject.bytes[index.index(subject.bytes.len())],
                // The bytes of one emoji, so that valid characters come up as well.
                4 if !subject.bytes.is_empty() => subject.bytes[[0xf0, 0x9f, 0x98, 0x80][index.index(4)]],
                5 => subject.special[index.index(subject.special.len())],
                6 => index.index(size + 3) as u32,
                _ => index.index(size) as u32,
            };
            let ids: Vec<u32> = choices.into_iter().map(id).collect();
            let cut = cut.index(ids.len() + 1);
            (subject, ids, cut)
        })
}

fn after_prompt(tokenizer: &Tokenizer, ids: &[u32], cut: usize, options: DecodeOptions) -> String {
    let prompt = tokenizer.decode(&ids[..cut], options).chars().count();
    tokenizer.decode(ids, options).chars().skip(prompt).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn streamed_pieces_join_to_the_rest_of_the_whole_text((subject, ids, cut) in sequence(&SUBJECTS)) {
        for options in OPTIONS {
            let expected = after_prompt(&subject.tokenizer, &ids, cut, options);
            let ours = streamed(&subject.tokenizer, &ids[..cut], &ids[cut..], options);
            prop_assert_eq!(ours, expected, "{} {:?} cut at {} {:?}", subject.name, ids, cut, options);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_text_can_be_encoded(text in any::<String>()) {
        for subject in SUBJECTS.iter() {
            let ids = subject.tokenizer.encode(&text, Special::Add).unwrap();
            let size = subject.tokenizer.vocab_size() as u32;
            prop_assert!(ids.iter().all(|id| *id < size), "{}", subject.name);
        }
    }

    #[test]
    fn text_survives_a_model_with_byte_fallback(text in "[^\u{2581}]{0,60}") {
        let tokenizer = open_meta("meta_llama");
        let ids = tokenizer.encode(&text, Special::Add).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids, OPTIONS[0]), text);
    }
}

#[test]
fn a_stream_holds_back_only_what_can_change() {
    let text = "The quick brown fox jumps over the lazy dog, isn't it? \u{1f600} ".repeat(60);
    for subject in SUBJECTS.iter() {
        let ids = subject.tokenizer.encode(&text, Special::Skip).unwrap();
        for options in OPTIONS {
            let mut decoder = StreamingDecoder::new(&subject.tokenizer, &[], options);
            let mut come = String::new();
            for (index, id) in ids.iter().enumerate() {
                come.push_str(&decoder.push(*id));
                if index % 97 == 0 {
                    // A character of four bytes, or the longest text that the clean-up replaces.
                    let whole = subject.tokenizer.decode(&ids[..=index], options).chars().count();
                    assert!(come.chars().count() + 4 >= whole, "{}: {come:?}", subject.name);
                }
            }
            come.push_str(&decoder.finish());
            assert_eq!(come, subject.tokenizer.decode(&ids, options), "{}", subject.name);
        }
    }
}

/// Quadratic work in any of this would take minutes.
#[test]
fn prompts_of_100_kilobytes_come_back_whole_piece_by_piece() {
    let words = "the quick brown fox ".repeat(5_000);
    let one_letter = "a".repeat(100_000);
    let no_space = "abcdefgh".repeat(12_500);
    for subject in SUBJECTS.iter() {
        for text in [&words, &one_letter, &no_space] {
            let ids = subject.tokenizer.encode(text, Special::Add).unwrap();
            let mut decoder = StreamingDecoder::new(&subject.tokenizer, &[], OPTIONS[3]);
            let mut streamed: String = ids.iter().map(|id| decoder.push(*id)).collect();
            streamed.push_str(&decoder.finish());
            assert_eq!(streamed, subject.tokenizer.decode(&ids, OPTIONS[3]), "{}", subject.name);
        }
    }
}

#[test]
fn bytes_at_the_end_of_a_prompt_merge_with_the_first_new_bytes() {
    let tokenizer = Tokenizer::open(&fixture("llama2")).unwrap();
    let byte = |byte: u32| byte + 3;
    let text = |id| tokenizer.token_text(id).unwrap();
    assert_eq!([text(byte(0xc3)), text(byte(0xa9))], ["<0xC3>", "<0xA9>"]);
    // The prompt alone ends with U+FFFD; the new byte makes it "é", which is no longer than that: nothing is left.
    let mut decoder = StreamingDecoder::new(&tokenizer, &[1, byte(0xc3)], OPTIONS[2]);
    assert_eq!(decoder.push(byte(0xa9)) + &decoder.push(byte(0x21)) + &decoder.finish(), "!");
}

#[test]
fn metas_downloads_get_sentencepiece_semantics() {
    let download = tempfile::tempdir().unwrap();
    let directory = download.path().join("llama-2-7b");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("params.json"), "{}").unwrap();
    let model = fixture("meta_llama").join("tokenizer.model");
    // The download script puts the tokenizer above the models' directories.
    for place in [download.path().join("tokenizer.model"), directory.join("tokenizer.model")] {
        fs::copy(&model, &place).unwrap();
        let tokenizer = Tokenizer::open(&directory).unwrap();
        assert_eq!(tokenizer.flavor(), Flavor::Meta);
        let (bos, ids) = (tokenizer.bos_token_id().unwrap(), tokenizer.encode("<s>", Special::Add).unwrap());
        assert_eq!(ids.iter().filter(|id| **id == bos).count(), 1, "the text \"<s>\" is not the begin token");
        assert_eq!(tokenizer.encode("<s>", Special::Skip).unwrap(), ids[1..]);
        assert_eq!(tokenizer.decode(&ids, OPTIONS[0]), "<s>");
        fs::remove_file(place).unwrap();
    }
}

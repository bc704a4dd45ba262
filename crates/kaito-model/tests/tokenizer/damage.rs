//! Damaged and unusual directories: each gives an error that names the file and the cause, and none a panic.

use std::fs;
use std::path::Path;

use kaito_model::tokenizer::{ChatMessage, Special, Tokenizer, TokenizerError, sentencepiece};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{OPTIONS, copy_of, fixture};

type Edit = fn(&Path);

fn write(directory: &Path, name: &str, contents: impl AsRef<[u8]>) {
    fs::write(directory.join(name), contents).unwrap();
}

pub(crate) fn edit_json(directory: &Path, name: &str, edit: impl FnOnce(&mut Value)) {
    let mut json = serde_json::from_slice(&fs::read(directory.join(name)).unwrap()).unwrap();
    edit(&mut json);
    write(directory, name, json.to_string());
}

/// What is done to a directory, and what the error must say.
const DAMAGE: &[(&str, Edit, &[&str])] = &[
    ("llama2", |d| fs::remove_file(d.join("tokenizer.json")).unwrap(), &["tokenizer.json or tokenizer.model"]),
    ("llama2", |d| write(d, "tokenizer.json", ""), &["tokenizer.json", "EOF"]),
    ("llama2", |d| write(d, "tokenizer.json", "[]"), &["tokenizer.json", "map"]),
    ("llama2", |d| write(d, "tokenizer.json", "{}"), &["tokenizer.json"]),
    ("llama2", |d| write(d, "tokenizer.json", b"{\"a\": \"\xff\"}"), &["tokenizer.json", "line 1"]),
    ("llama2", |d| write(d, "tokenizer.json", vec![b' '; (64 << 20) + 1]), &["tokenizer.json", "67108864"]),
    ("llama2", |d| fs::write(d.join("tokenizer.json"), "[".repeat(100_000)).unwrap(), &["tokenizer.json"]),
    (
        "llama2",
        |d| edit_json(d, "tokenizer.json", |json| json["model"]["merges"][0] = json!(["no", "such"])),
        &["tokenizer.json", "out of vocabulary"],
    ),
    (
        "llama2",
        |d| edit_json(d, "tokenizer.json", |json| json["model"] = json!({"type": "Magic"})),
        &["tokenizer.json"],
    ),
    (
        "llama2",
        |d| {
            edit_json(d, "tokenizer.json", |json| {
                json["decoder"] = json!({"type": "WordPiece", "prefix": "##", "cleanup": true})
            })
        },
        &["tokenizer.json", "WordPiece"],
    ),
    (
        "llama2",
        |d| {
            edit_json(d, "tokenizer.json", |json| {
                json["decoder"] = json!({"type": "Replace", "pattern": {"Regex": "a+"}, "content": "b"})
            })
        },
        &["tokenizer.json", "fixed text"],
    ),
    ("llama2", |d| write(d, "tokenizer_config.json", "{\"bos_token\": "), &["tokenizer_config.json", "EOF"]),
    (
        "llama2",
        |d| edit_json(d, "tokenizer_config.json", |json| json["bos_token"] = json!(7)),
        &["tokenizer_config.json", "bos_token", "7"],
    ),
    (
        "llama2",
        |d| edit_json(d, "tokenizer_config.json", |json| json["add_bos_token"] = json!("yes")),
        &["tokenizer_config.json", "add_bos_token", "yes"],
    ),
    (
        "llama2",
        |d| edit_json(d, "tokenizer_config.json", |json| json["chat_template"] = json!(7)),
        &["tokenizer_config.json", "chat_template"],
    ),
    (
        "phi3",
        |d| edit_json(d, "tokenizer_config.json", |json| json["added_tokens_decoder"]["x"] = json!({"content": "y"})),
        &["tokenizer_config.json", "\"x\""],
    ),
    (
        "phi3",
        |d| edit_json(d, "tokenizer_config.json", |json| json["added_tokens_decoder"]["1"] = json!("<s>")),
        &["tokenizer_config.json", "added_tokens_decoder"],
    ),
    (
        "phi3",
        |d| edit_json(d, "tokenizer_config.json", |json| json["additional_special_tokens"] = json!({})),
        &["additional_special_tokens"],
    ),
    (
        "phi3",
        |d| {
            edit_json(d, "tokenizer_config.json", |json| {
                json["bos_token"] = Value::Null;
                json["add_bos_token"] = json!(true);
            })
        },
        &["add_bos_token", "bos_token"],
    ),
    ("llama2", |d| write(d, "special_tokens_map.json", "nonsense"), &["special_tokens_map.json"]),
    ("llama2", |d| write(d, "added_tokens.json", "{\"<x>\": -1}"), &["added_tokens.json", "<x>"]),
    ("llama_model_legacy", |d| write(d, "tokenizer.model", ""), &["tokenizer.model"]),
    (
        "llama_model_legacy",
        |d| write(d, "tokenizer.model", "version https://git-lfs.github.com/spec/v1\n"),
        &["tokenizer.model", "not a SentencePiece model"],
    ),
    (
        "llama_model_legacy",
        |d| {
            let m = fs::read(d.join("tokenizer.model")).unwrap();
            write(d, "tokenizer.model", &m[..m.len() / 2]);
        },
        &["tokenizer.model", "beyond the end"],
    ),
];

#[test]
fn damaged_files_are_named_with_the_cause() {
    for (index, (name, edit, expected)) in DAMAGE.iter().enumerate() {
        let directory = copy_of(name);
        edit(directory.path());
        let error = Tokenizer::open(directory.path()).map(|_| ()).unwrap_err().to_string();
        for part in *expected {
            assert!(error.contains(part), "damage {index} of {name}: {error:?} does not say {part:?}");
        }
        assert!(!error.contains('\n'), "{error:?} is not one sentence");
    }
}

/// A field of protocol buffers with a length.
fn field(number: u8, contents: &[u8]) -> Vec<u8> {
    assert!(contents.len() < 128);
    [&[number << 3 | 2, contents.len() as u8], contents].concat()
}

fn piece(text: &str, kind: u8) -> Vec<u8> {
    field(1, &[field(1, text.as_bytes()), vec![0x18, kind]].concat())
}

#[test]
fn sentencepiece_models_that_contradict_themselves_are_refused() {
    let (unknown, normal, byte) = (piece("<unk>", 2), piece("a", 1), piece("<0x41>", 6));
    let cases: &[(Vec<u8>, &str)] = &[
        (vec![], "0 pieces of type unknown"),
        ([unknown.clone(), piece("<unk2>", 2)].concat(), "2 pieces of type unknown"),
        ([unknown.clone(), normal.clone(), normal.clone()].concat(), "piece 2 is \"a\""),
        ([unknown.clone(), piece("", 1)].concat(), "piece 1 is empty"),
        ([unknown.clone(), piece("a", 9)].concat(), "piece 1 has the unknown type 9"),
        ([unknown.clone(), byte].concat(), "1 byte pieces with byte_fallback false"),
        ([unknown.clone(), piece("<0xaa>", 6)].concat(), "byte piece 1 is \"<0xaa>\""),
        ([unknown.clone(), field(2, &[0x18, 3])].concat(), "model type 3"),
        ([unknown.clone(), field(3, &field(2, b"xx"))].concat(), "character map"),
        ([unknown.clone(), field(5, &field(2, b"xx"))].concat(), "denormalisation"),
        ([unknown.clone(), field(1, &field(1, b"\xff"))].concat(), "a piece is not UTF-8"),
        (
            [unknown.clone(), field(1, &[field(1, b"a"), vec![0x15, 0, 0, 0xc0, 0x7f]].concat())].concat(),
            "score of piece 1",
        ),
        ([unknown.clone(), vec![0x0b]].concat(), "wire type 3"),
        ([unknown.clone(), vec![0x0a, 0x7f]].concat(), "127 bytes beyond the end"),
        (
            [unknown.clone(), vec![0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]].concat(),
            "more than ten bytes",
        ),
        ([unknown, vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]].concat(), "beyond the end"),
    ];
    for (bytes, expected) in cases {
        let error = sentencepiece::Model::parse(bytes).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    }
    let model =
        sentencepiece::Model::parse(&[piece("<unk>", 2), normal, vec![0x78, 5, 0x79, 0, 0, 0, 0, 0, 0, 0, 0]].concat());
    assert_eq!(model.unwrap().encode("a"), [0, 1], "unknown fields are skipped");
}

/// A change to a file: bytes overwritten, and perhaps an end cut off.
fn mutation() -> impl Strategy<Value = (Vec<(prop::sample::Index, u8)>, Option<prop::sample::Index>)> {
    (
        prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        prop::option::weighted(0.2, any::<prop::sample::Index>()),
    )
}

fn mutate(contents: &mut Vec<u8>, (bytes, cut): &(Vec<(prop::sample::Index, u8)>, Option<prop::sample::Index>)) {
    for (index, byte) in bytes {
        let index = index.index(contents.len());
        contents[index] = *byte;
    }
    if let Some(cut) = cut {
        contents.truncate(cut.index(contents.len()));
    }
}

const TEXT: &str = " Hello <s> w\u{f6}rld\n\u{1f600} <|end|>  <custom>123 [INST] ing\u{2581}the";

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn mutated_sentencepiece_models_never_panic(
        name in prop::sample::select(crate::META.to_vec()), mutation in mutation(),
    ) {
        let mut contents = fs::read(fixture(name).join("tokenizer.model")).unwrap();
        mutate(&mut contents, &mutation);
        if let Ok(model) = sentencepiece::Model::parse(&contents) {
            let ids = model.encode(TEXT);
            model.decode(&ids);
            model.decode(&(0..model.size() as u32 + 2).collect::<Vec<_>>());
        }
    }

    #[test]
    fn any_bytes_are_no_sentencepiece_model_that_panics(contents in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(model) = sentencepiece::Model::parse(&contents) {
            model.encode(TEXT);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    #[test]
    fn mutated_directories_never_panic(
        name in prop::sample::select(crate::HUGGING_FACE.to_vec()), file in any::<prop::sample::Index>(), mutation in mutation(),
    ) {
        let directory = copy_of(name);
        fs::remove_file(directory.path().join("cases.json")).unwrap();
        let mut files: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        let path = file.get(&files);
        let mut contents = fs::read(path).unwrap();
        mutate(&mut contents, &mutation);
        fs::write(path, contents).unwrap();
        if let Ok(tokenizer) = Tokenizer::open(directory.path()) {
            let _: Result<Vec<u32>, TokenizerError> = tokenizer.encode(TEXT, Special::Add);
            let all: Vec<u32> = (0..tokenizer.vocab_size() as u32 + 2).collect();
            for options in OPTIONS {
                tokenizer.decode(&all, options);
            }
            all.iter().for_each(|id| drop(tokenizer.token_bytes(*id)));
        }
    }
}

fn with_template(template: &str) -> Tokenizer {
    let directory = copy_of("llama2");
    edit_json(directory.path(), "tokenizer_config.json", |json| json["chat_template"] = json!(template));
    Tokenizer::open(directory.path()).unwrap()
}

#[test]
fn chat_templates_are_bounded_and_their_failures_are_sentences() {
    let cases = [
        ("{{ raise_exception('No ' + messages[0].role + ' here!') }}", "No user here!"),
        ("{% if %}", "Expected an expression"),
        ("{{ messages[0].content.nonsense() }}", "nonsense"),
        ("{% for i in range(10000) %}{% for j in range(10000) %}x{% endfor %}{% endfor %}", "steps"),
        ("{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}", "nests deeper"),
        ("{% set s = 'x' * 1000000 %}{% for i in range(100) %}{{ s }}{% endfor %}", "more memory"),
        ("{{ ('x' * 1000000) * 1000000 }}", "more memory"),
        ("{% set ns = namespace(s=[]) %}{% for i in range(90000) %}{% set ns.s = [ns.s] %}{% endfor %}", "deeper"),
        ("{% include 'other' %}", "no loader"),
    ];
    let messages = [ChatMessage { role: "user".to_owned(), content: "Hello".to_owned() }];
    for (template, expected) in cases {
        let error = with_template(template).apply_chat_template(&messages, true).unwrap_err().to_string();
        assert!(error.contains(expected), "{template}: {error:?} does not say {expected:?}");
        assert!(!error.contains('\n'), "{error:?} is not one sentence");
    }
    let error = Tokenizer::open(&fixture("llama2")).unwrap().apply_chat_template(&messages, true).unwrap_err();
    assert!(matches!(error, TokenizerError::NoChatTemplate), "{error}");
}

#[test]
fn strftime_now_knows_the_year() {
    let text = with_template("{{ strftime_now('%d %B %Y|%H:%M') }}").apply_chat_template(&[], true).unwrap();
    let (date, time) = text.split_once('|').unwrap();
    let year: u32 = date.rsplit(' ').next().unwrap().parse().unwrap();
    assert!(year >= 2024, "{text}");
    assert_eq!((time.len(), time.find(':')), (5, Some(2)), "{text}");
}

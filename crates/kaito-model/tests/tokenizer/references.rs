//! What transformers, `tokenizers` and SentencePiece give: `fixtures/tokenizer/make_fixtures.py` asked them.

use std::fs;
use std::path::Path;

use kaito_model::tokenizer::{ChatMessage, Flavor, Special, Tokenizer, TokenizerError, sentencepiece};
use serde_json::{Value, json};

use crate::{HUGGING_FACE, META, OPTIONS, copy_of, fixture, streamed};

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

/// Fails with every difference, not only the first.
fn report(differences: &[String]) {
    assert!(
        differences.is_empty(),
        "{} differences:\n{}",
        differences.len(),
        differences[..differences.len().min(40)].join("\n")
    );
}

fn compare<T: PartialEq + std::fmt::Debug>(differences: &mut Vec<String>, what: String, ours: T, expected: T) {
    if ours != expected {
        differences.push(format!("{what}\n  ours     {ours:?}\n  expected {expected:?}"));
    }
}

#[test]
fn hugging_face_tokenizers_encode_as_transformers_does() {
    let mut differences = Vec::new();
    for name in HUGGING_FACE {
        let tokenizer = Tokenizer::open(&fixture(name)).unwrap();
        let cases = read_json(&fixture(name).join("cases.json"));
        let cases = cases["encode"].as_array().unwrap();
        assert!(cases.len() > 200, "{name} has {} cases", cases.len());
        for case in cases {
            let text = case["text"].as_str().unwrap();
            let ours = tokenizer.encode(text, Special::Add).unwrap();
            compare(&mut differences, format!("{name}: {text:?}"), ours, ids(&case["ids"]));
            let ours = tokenizer.encode(text, Special::Skip).unwrap();
            compare(&mut differences, format!("{name}, plain: {text:?}"), ours, ids(&case["plain"]));
        }
    }
    report(&differences);
}

#[test]
fn hugging_face_tokenizers_decode_as_transformers_does() {
    let mut differences = Vec::new();
    for name in HUGGING_FACE {
        let tokenizer = Tokenizer::open(&fixture(name)).unwrap();
        let cases = read_json(&fixture(name).join("cases.json"));
        for case in cases["encode"].as_array().unwrap().iter().chain(cases["decode"].as_array().unwrap()) {
            let ids = ids(&case["ids"]);
            for (options, expected) in OPTIONS.into_iter().zip(strings(&case["decoded"])) {
                compare(
                    &mut differences,
                    format!("{name}: {ids:?} {options:?}"),
                    tokenizer.decode(&ids, options).as_str(),
                    expected,
                );
            }
        }
    }
    report(&differences);
}

#[test]
fn streams_the_rest_of_the_whole_decode_after_the_prompt() {
    let mut differences = Vec::new();
    for name in HUGGING_FACE {
        let tokenizer = Tokenizer::open(&fixture(name)).unwrap();
        let cases = read_json(&fixture(name).join("cases.json"));
        for case in cases["decode"].as_array().unwrap() {
            let ids = ids(&case["ids"]);
            let (prompt, new) = ids.split_at(case["cut"].as_u64().unwrap() as usize);
            for (options, expected) in OPTIONS.into_iter().zip(strings(&case["rest"])) {
                let ours = streamed(&tokenizer, prompt, new, options);
                compare(&mut differences, format!("{name}: {prompt:?} + {new:?} {options:?}"), ours.as_str(), expected);
            }
        }
    }
    report(&differences);
}

#[test]
fn hugging_face_tokenizers_know_their_special_tokens() {
    let mut differences = Vec::new();
    for name in HUGGING_FACE {
        let tokenizer = Tokenizer::open(&fixture(name)).unwrap();
        let cases = read_json(&fixture(name).join("cases.json"));
        assert_eq!(tokenizer.flavor(), Flavor::HuggingFace);
        let id = |key: &str| cases[key].as_u64().map(|id| id as u32);
        let ours =
            [tokenizer.bos_token_id(), tokenizer.eos_token_id(), tokenizer.pad_token_id(), tokenizer.unk_token_id()];
        compare(&mut differences, format!("{name}: special"), ours, [id("bos"), id("eos"), id("pad"), id("unk")]);
        compare(
            &mut differences,
            format!("{name}: size"),
            tokenizer.vocab_size() as u64,
            cases["vocab_size"].as_u64().unwrap(),
        );
        let length = tokenizer.model_max_length().map(|length| length as u64);
        compare(&mut differences, format!("{name}: length"), length, cases["model_max_length"].as_u64());
        let clean_up = tokenizer.clean_up_tokenization_spaces();
        compare(&mut differences, format!("{name}: clean up"), clean_up, cases["clean_up"].as_bool().unwrap());
        for token in cases["tokens"].as_array().unwrap() {
            let id = token[0].as_u64().unwrap() as u32;
            compare(
                &mut differences,
                format!("{name}: token {id}"),
                tokenizer.token_text(id).as_deref(),
                token[1].as_str(),
            );
        }
    }
    report(&differences);
}

#[test]
fn sentencepiece_models_encode_and_decode_as_the_library_does() {
    let mut differences = Vec::new();
    for name in META {
        let model = sentencepiece::Model::parse(&fs::read(fixture(name).join("tokenizer.model")).unwrap()).unwrap();
        let tokenizer = Tokenizer::from_sentencepiece(model.clone());
        let cases = read_json(&fixture(name).join("cases.json"));
        let id = |id: Option<u32>| id.map_or(-1, i64::from);
        let ours = [model.size() as i64, id(model.bos()), id(model.eos()), id(model.pad()), i64::from(model.unk())];
        let expected = ["size", "bos", "eos", "pad", "unk"].map(|key| cases[key].as_i64().unwrap());
        compare(&mut differences, format!("{name}: special"), ours, expected);
        for case in cases["encode"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            compare(&mut differences, format!("{name}: {text:?}"), model.encode(text), ids(&case["ids"]));
        }
        for case in cases["encode"].as_array().unwrap().iter().chain(cases["decode"].as_array().unwrap()) {
            let ids = ids(&case["ids"]);
            let expected = case["decoded"].as_str().unwrap();
            compare(&mut differences, format!("{name}: {ids:?}"), model.decode(&ids).as_str(), expected);
            let ours = streamed(&tokenizer, &[], &ids, OPTIONS[0]);
            compare(&mut differences, format!("{name}, streamed: {ids:?}"), ours.as_str(), expected);
        }
    }
    report(&differences);
}

#[test]
fn chat_templates_render_as_transformers_renders_them() {
    let mut differences = Vec::new();
    let fixtures = read_json(&fixture("chat_templates.json"));
    for (name, template) in fixtures["templates"].as_object().unwrap() {
        let directory = copy_of("llama2");
        let path = directory.path().join("tokenizer_config.json");
        let mut config = read_json(&path);
        config["chat_template"] = template.clone();
        fs::write(&path, config.to_string()).unwrap();
        let tokenizer = Tokenizer::open(directory.path()).unwrap();
        assert!(tokenizer.has_chat_template(), "{name}");
        for case in fixtures["cases"].as_array().unwrap().iter().filter(|case| case["template"] == **name) {
            let messages: Vec<ChatMessage> = case["messages"].as_array().unwrap().iter().map(message).collect();
            let rendered = tokenizer.apply_chat_template(&messages, case["add_generation_prompt"].as_bool().unwrap());
            let what = format!("{name}: {}", case["conversation"]);
            match (case["text"].as_str(), rendered) {
                (Some(expected), Ok(ours)) => compare(&mut differences, what, ours.as_str(), expected),
                (None, Err(TokenizerError::ChatRefused { message })) => {
                    compare(&mut differences, what, message.as_str(), case["error"].as_str().unwrap());
                }
                (expected, ours) => differences.push(format!("{what}\n  ours     {ours:?}\n  expected {expected:?}")),
            }
        }
    }
    report(&differences);
}

fn message(message: &Value) -> ChatMessage {
    let field = |name: &str| message[name].as_str().unwrap().to_owned();
    ChatMessage { role: field("role"), content: field("content") }
}

#[test]
fn configurations_mean_what_they_mean_to_transformers() {
    let mut differences = Vec::new();
    let (mut opened, mut refused) = (0, 0);
    for file in ["variants.json", "variants_5.json"] {
        for variant in read_json(&fixture(file))["variants"].as_array().unwrap() {
            let directory = copy_of(variant["base"].as_str().unwrap());
            for (file, contents) in variant["files"].as_object().unwrap() {
                lay_over(&directory.path().join(file), contents);
            }
            let name = format!("{file}, {}", variant["name"]);
            match (Tokenizer::open(directory.path()), variant["refused"].as_str()) {
                (Ok(tokenizer), None) => {
                    opened += 1;
                    compare_variant(&mut differences, &name, &tokenizer, variant);
                }
                (Err(error), Some(named)) if error.to_string().contains(named) => refused += 1,
                (Ok(_), Some(named)) => differences.push(format!("{name}: opened, though {named} is not supported")),
                (Err(error), named) => differences.push(format!("{name}: refused ({error}), expected {named:?}")),
            }
        }
    }
    report(&differences);
    assert!(opened > 85 && refused > 10, "{opened} opened, {refused} refused");
}

fn compare_variant(differences: &mut Vec<String>, name: &str, tokenizer: &Tokenizer, variant: &Value) {
    let ours = [tokenizer.bos_token_id(), tokenizer.eos_token_id(), tokenizer.pad_token_id(), tokenizer.unk_token_id()];
    let expected: Vec<_> = variant["special"].as_array().unwrap().iter().map(Value::as_u64).collect();
    compare(differences, format!("{name}: special"), ours.map(|id| id.map(u64::from)).to_vec(), expected);
    let size = tokenizer.vocab_size() as u64;
    compare(differences, format!("{name}: size"), size, variant["size"].as_u64().unwrap());
    let length = tokenizer.model_max_length().map(|length| length as u64);
    compare(differences, format!("{name}: length"), length, variant["model_max_length"].as_u64());
    let clean_up = tokenizer.clean_up_tokenization_spaces();
    compare(differences, format!("{name}: clean up"), Some(clean_up), variant["clean_up"].as_bool());
    for case in variant["encode"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let ours = tokenizer.encode(text, Special::Add).unwrap();
        compare(differences, format!("{name}: {text:?}"), ours, ids(&case["ids"]));
        let ours = tokenizer.encode(text, Special::Skip).unwrap();
        compare(differences, format!("{name}, plain: {text:?}"), ours, ids(&case["plain"]));
    }
    for case in variant["decode"].as_array().unwrap() {
        let ids = ids(&case["ids"]);
        for (options, expected) in OPTIONS.into_iter().zip(case["decoded"].as_array().unwrap()) {
            let Some(expected) = expected.as_str() else { continue };
            let ours = tokenizer.decode(&ids, options);
            compare(differences, format!("{name}: {ids:?} {options:?}"), ours.as_str(), expected);
        }
    }
}

/// `add_prefix_space` makes the class of transformers 4.46 convert a tokenizer.model. Where there is none, tokenizer.json does
/// for what it does anyway.
#[test]
fn a_prefix_space_that_tokenizer_json_adds_anyway_needs_no_conversion() {
    let directory = copy_of("llama2");
    let settings = |value: bool| json!({ "tokenizer_class": "LlamaTokenizer", "add_prefix_space": value }).to_string();
    let plain = Tokenizer::open(directory.path()).unwrap().encode("Hello", Special::Add).unwrap();
    fs::write(directory.path().join("tokenizer_config.json"), settings(true)).unwrap();
    assert_eq!(Tokenizer::open(directory.path()).unwrap().encode("Hello", Special::Add).unwrap(), plain);
    fs::write(directory.path().join("tokenizer_config.json"), settings(false)).unwrap();
    let error = Tokenizer::open(directory.path()).unwrap_err().to_string();
    assert!(
        error.contains("\"add_prefix_space\", for which the tokenizer would be made of a tokenizer.model"),
        "{error}"
    );
}

#[test]
fn code_llamas_gap_in_a_prompt_is_refused_by_its_mark() {
    let directory = copy_of("llama2");
    let settings = json!({ "tokenizer_class": "CodeLlamaTokenizer" }).to_string();
    fs::write(directory.path().join("tokenizer_config.json"), settings).unwrap();
    let tokenizer = Tokenizer::open(directory.path()).unwrap();
    let error = tokenizer.encode("def f(): <FILL_ME> return", Special::Add).unwrap_err().to_string();
    assert_eq!(
        error,
        "the tokenizer cannot encode this text: it holds <FILL_ME>, and filling a gap in a text is not supported"
    );
}

/// Writes a file, or removes it for null; entries of tokenizer.json go over those that are there.
fn lay_over(path: &Path, contents: &Value) {
    match contents {
        Value::Null => fs::remove_file(path).unwrap(),
        Value::Object(entries) if path.ends_with("tokenizer.json") && path.exists() => {
            let mut whole = read_json(path);
            whole.as_object_mut().unwrap().extend(entries.clone());
            fs::write(path, whole.to_string()).unwrap();
        }
        other => fs::write(path, other.to_string()).unwrap(),
    }
}

//! What the mask allows is what the tokens spell.

use kaito_engine::Constraint;
use kaito_grammar::{Grammar, Grammars};
use kaito_model::tokenizer::Special;
use serde_json::json;

use crate::common::{BEYOND, FOLDERS, Model, allows, strict};

/// Whether the text allows the bytes of `token` next, as JSON strings do.
fn inside_a_string(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|&byte| byte >= 0x20 && byte != b'"' && byte != b'\\' && byte != 0x7f)
}

#[test]
fn inside_a_string_every_token_of_plain_text_is_allowed_and_no_special_one() {
    for folder in FOLDERS {
        let model = Model::open(folder);
        let mut constraint = model.constraint(&strict(json!({ "type": "string" })));
        assert_eq!(
            model.follow(&mut *constraint, "\"a"),
            (model.tokens("\"a").len(), model.tokens("\"a").len(), false)
        );
        let mask = model.mask(&mut *constraint);
        for token in 0..model.tokenizer.vocab_size() as u32 {
            let Some(bytes) = model.tokenizer.token_bytes(token) else { continue };
            let is_special = model.tokenizer.special_ids().contains(&token);
            let is_text = std::str::from_utf8(&bytes).is_ok();
            if is_special {
                assert!(!allows(&mask, token), "{folder}: special token {token}");
            } else if is_text && inside_a_string(&bytes) {
                assert!(allows(&mask, token), "{folder}: token {token} {bytes:?}");
            } else if is_text && bytes.iter().any(|&byte| byte < 0x20) {
                assert!(!allows(&mask, token), "{folder}: token {token} {bytes:?}");
            }
        }
        for beyond in model.rows - BEYOND..model.rows + 64 {
            assert!(!allows(&mask, beyond as u32), "{folder}: row {beyond}");
        }
        assert!(!allows(&mask, model.end), "{folder}");
    }
}

#[test]
fn a_special_token_s_name_is_spelled_and_never_the_token() {
    let model = Model::demo();
    let mut constraint = model.constraint(&Grammar::Choice(vec!["</s>".to_owned()]));
    let allowed = model.allowed(&mut *constraint);
    assert!(!allowed.is_empty() && !allowed.contains(&model.end), "{allowed:?}");
    // A grammar may ask for the token itself, by its number.
    let mut constraint = model.constraint(&Grammar::Lark("start: <[1]> \"a\"".to_owned()));
    assert_eq!(model.allowed(&mut *constraint), [1]);
    assert!(constraint.accept(1) && constraint.accept(model.tokens("a")[0]) && constraint.is_finished());
}

#[test]
fn characters_are_spelled_by_bytes_where_there_is_no_token() {
    for folder in ["models/demo", "crates/kaito-model/tests/fixtures/tokenizer/falcon"] {
        let model = Model::open(folder);
        let schema = strict(json!({ "type": "string" }));
        let text = "\"a\u{1F98A}é中\"";
        let mut constraint = model.constraint(&schema);
        let tokens = model.tokens(text);
        assert!(tokens.len() > 7, "{folder}: the fox takes several tokens");
        let mut partial = false;
        for (at, &token) in tokens.iter().enumerate() {
            assert!(allows(&model.mask(&mut *constraint), token), "{folder}: {token}");
            assert!(constraint.accept(token));
            let so_far: Vec<u8> =
                tokens[..=at].iter().flat_map(|&id| model.tokenizer.token_bytes(id).unwrap()).collect();
            if std::str::from_utf8(&so_far).is_err() {
                partial = true;
                // In the middle of a character nothing but its other bytes may come.
                let quote = model.tokens("\"")[0];
                assert!(!allows(&model.mask(&mut *constraint), quote), "{folder}");
            }
        }
        assert!(partial && constraint.is_finished());
        assert_eq!(serde_json::from_str::<String>(&model.text(&tokens)).unwrap(), "a\u{1F98A}é中");
    }
}

#[test]
fn all_end_tokens_end() {
    let demo = Model::demo();
    // As Phi-3 has it: several tokens that end, one of which is plain text to the tokenizer.
    let other = demo.tokenizer.encode("end", Special::Skip).unwrap()[0];
    let grammars = Grammars::new(demo.tokenizer.clone(), demo.rows, vec![demo.end, other]);
    let mut constraint = grammars.constraint(&strict(json!({ "type": "integer" })), &Default::default()).unwrap();
    assert!(!constraint.may_end());
    assert!(constraint.accept(demo.tokens("7")[0]) && constraint.may_end());
    let mask = demo.mask(&mut *constraint);
    assert!(allows(&mask, demo.end) && allows(&mask, other));
    let mut string = grammars.constraint(&strict(json!({ "type": "string" })), &Default::default()).unwrap();
    assert!(string.accept(demo.tokens("\"")[0]));
    assert!(!allows(&demo.mask(&mut *string), other), "an end token is no text");
}

#[test]
fn forks_go_on_by_themselves_and_back() {
    let model = Model::demo();
    let mut one: Box<dyn Constraint> = model.constraint(&Grammar::Choice(vec!["abc".to_owned(), "abd".to_owned()]));
    let before = model.allowed(&mut *one);
    let (a, b) = (model.tokens("a")[0], model.tokens("b")[0]);
    assert!(one.accept(a));
    let mut other = one.fork();
    assert!(one.accept(b));
    assert!(one.accept(model.tokens("c")[0]) && one.is_finished());
    assert!(!other.is_finished() && other.accept(b));
    assert!(!other.accept(a), "after ab comes c or d");
    assert!(other.accept(model.tokens("d")[0]) && other.is_finished());
    assert!(!one.accept(a) && one.is_finished(), "nothing follows the end");
    one.rollback(3);
    assert!(!one.is_finished() && !one.may_end());
    assert_eq!(model.allowed(&mut *one), before);
    assert!(other.is_finished());
}

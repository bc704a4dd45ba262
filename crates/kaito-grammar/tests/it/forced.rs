//! Tokens that nothing else could be instead of.

use kaito_grammar::Grammar;
use serde_json::json;

use crate::common::{FOLDERS, Model, strict};

#[test]
fn a_key_without_alternative_is_forced_and_spelled_as_the_tokenizer_spells_it() {
    for folder in FOLDERS {
        let model = Model::open(folder);
        let schema = strict(json!({
            "type": "object", "properties": { "temperature": { "type": "integer" } },
            "required": ["temperature"], "additionalProperties": false,
        }));
        let mut constraint = model.constraint(&schema);
        let mut forced = Vec::new();
        while forced.len() < 40 {
            let mut next = Vec::new();
            constraint.forced(&mut next);
            let Some(&first) = next.first() else { break };
            let allowed = model.allowed(&mut *constraint);
            assert_eq!(allowed, [first], "{folder}: what is forced is all that is allowed");
            for token in next {
                assert!(constraint.accept(token), "{folder}");
                forced.push(token);
            }
        }
        let text: Vec<u8> = forced.iter().flat_map(|&token| model.tokenizer.token_bytes(token).unwrap()).collect();
        assert!("{\"temperature\":".as_bytes().starts_with(&text) || text.is_empty(), "{folder}: {text:?}");
    }
}

#[test]
fn the_only_choice_is_forced_whole() {
    let model = Model::demo();
    let mut constraint = model.constraint(&Grammar::Choice(vec!["the little house".to_owned()]));
    let mut forced = Vec::new();
    constraint.forced(&mut forced);
    assert_eq!(forced, model.tokens("the little house"));
    // Asking changes nothing.
    let mut again = Vec::new();
    constraint.forced(&mut again);
    assert_eq!(again, forced);
    constraint.rollback(0);
    for &token in &forced {
        assert!(constraint.accept(token));
    }
    assert!(constraint.is_finished());
    again.clear();
    constraint.forced(&mut again);
    assert_eq!(again, [] as [u32; 0]);
    constraint.rollback(forced.len());
    constraint.forced(&mut again);
    assert_eq!(again, forced);
}

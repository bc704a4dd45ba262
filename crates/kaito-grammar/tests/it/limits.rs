//! Grammars that are too complex fail by themselves.

use std::thread;
use std::time::{Duration, Instant};

use kaito_engine::Cancel;
use kaito_grammar::{Error, Grammar};
use serde_json::{Value, json};

use crate::common::{Model, lenient, strict};

/// Schemas and other grammars made to take time or memory, if anything bounds neither.
fn bombs() -> Vec<(&'static str, Grammar)> {
    let regex = |text: &str| Grammar::Regex(text.to_owned());
    let pattern = |text: &str| strict(json!({ "type": "string", "pattern": text }));
    let doubled = |depth: usize| {
        let mut definitions = serde_json::Map::new();
        for level in 0..depth {
            let next = json!({ "$ref": format!("#/$defs/{}", level + 1) });
            let both = json!({ "type": "object", "properties": { "a": next, "b": next }, "required": ["a", "b"] });
            definitions.insert(level.to_string(), both);
        }
        definitions.insert(depth.to_string(), json!({ "type": "null" }));
        json!({ "$ref": "#/$defs/0", "$defs": definitions })
    };
    let all_of = |depth: usize| {
        let any = |at: usize| {
            let named = |name: String| json!({ "type": "object", "properties": { name: { "type": "integer" } } });
            json!({ "anyOf": (0..8).map(|i| named(format!("{at}-{i}"))).collect::<Vec<Value>>() })
        };
        json!({ "allOf": (0..depth).map(any).collect::<Vec<Value>>() })
    };
    let chain = |length: usize| {
        let mut definitions = serde_json::Map::new();
        for level in 0..length {
            definitions.insert(level.to_string(), json!({ "items": { "$ref": format!("#/$defs/{}", level + 1) } }));
        }
        definitions.insert(length.to_string(), json!({ "type": "null" }));
        json!({ "$ref": "#/$defs/0", "$defs": definitions })
    };
    let rules = |length: usize| {
        let rules: String = (0..length).map(|i| format!("r{i}: \"a\" r{}\n", i + 1)).collect();
        Grammar::Lark(format!("start: r0\n{rules}r{length}: \"b\"\n"))
    };
    vec![
        ("repeats of repeats", regex("((a{1,1000}){1,1000}){1,1000}")),
        ("repeats of classes", regex(r"(\w{1,500}\s?){1,500}")),
        ("alternatives far back", regex("(a|b)*a(a|b){300}")),
        ("many alternatives far back", pattern("^(.*a.{200}|.*b.{210}|.*c.{220})$")),
        ("nested groups", regex(&format!("{}a{}", "(".repeat(20_000), ")".repeat(20_000)))),
        ("large bounds", strict(json!({ "type": "array", "minItems": 100_000, "maxItems": 10_000_000, "items": {} }))),
        ("long strings", strict(json!({ "type": "string", "minLength": 5_000_000, "maxLength": 5_000_001 }))),
        ("references doubled", lenient(doubled(60))),
        ("intersections", lenient(all_of(40))),
        ("a chain of references", strict(chain(2000))),
        (
            "many properties",
            strict(json!({
                "type": "object",
                "properties": (0..2000).map(|i| (format!("p{i}"), json!({ "type": "string" }))).collect::<serde_json::Map<_, _>>(),
            })),
        ),
        ("a chain of rules", rules(20_000)),
        ("braces", Grammar::Lark(format!("start: {}", "a{".repeat(100_000)))),
        ("groups", Grammar::Lark(format!("start: {}\"a\"{}", "(".repeat(100_000), ")".repeat(100_000)))),
        ("ambiguity", Grammar::Lark("start: a\na: a a a a | \"x\" a \"x\" | \"x\" |\n".to_owned())),
        ("large repeats", Grammar::Lark("start: a{1000000}\na: \"x\" | \"y\"\n".to_owned())),
        ("nested repeats", Grammar::Lark("start: (((A{1,100}){1,100}){1,100}){1,100}\nA: \"x\"\n".to_owned())),
    ]
}

#[test]
fn a_bomb_fails_alone_or_is_followed_within_its_limits() {
    let model = Model::demo();
    for (name, grammar) in bombs() {
        let start = Instant::now();
        match model.grammars.constraint(&grammar, &Cancel::default()) {
            // Whatever is allowed can be followed; what goes over a limit on the way allows nothing any more.
            Ok(mut constraint) => {
                for step in 0..50 {
                    if constraint.is_finished() {
                        break;
                    }
                    let allowed = model.allowed(&mut *constraint);
                    let Some(&token) = allowed.iter().find(|&&token| token != model.end) else { break };
                    if !constraint.accept(token) {
                        assert_eq!(model.allowed(&mut *constraint), [] as [u32; 0], "{name}: step {step}");
                        assert!(!constraint.may_end() && !constraint.is_finished(), "{name}: step {step}");
                        break;
                    }
                }
            }
            Err(Error::InvalidSchema { .. } | Error::Invalid { .. }) => {}
            // It ends by the parser's limits, and nobody else waits for it meanwhile.
            Err(late @ Error::TimedOut { .. }) => {
                while model.grammars.constraint(&grammar, &Cancel::default()).err() == Some(late.clone()) {
                    thread::sleep(Duration::from_millis(10));
                }
            }
            Err(other) => panic!("{name}: {other}"),
        }
        eprintln!("{name}: {:?}", start.elapsed());
        assert!(model.takes(&Grammar::JsonObject, "{}"), "others go on after {name}");
    }
}

#[test]
fn nobody_waits_whose_request_is_cancelled() {
    let model = Model::demo();
    let cancel = Cancel::default();
    cancel.cancel();
    // What is there already needs no wait.
    let error = model.grammars.constraint(&strict(json!({ "type": "array" })), &cancel);
    assert!(matches!(error, Err(Error::Cancelled) | Ok(_)));
}

#[test]
fn grammars_are_compiled_and_followed_on_many_threads_at_once() {
    let model = Model::demo();
    thread::scope(|scope| {
        for thread in 0..8 {
            let model = &model;
            scope.spawn(move || {
                for round in 0..4 {
                    let schema = strict(json!({ "type": "integer", "minimum": (thread + round) % 5, "maximum": 9 }));
                    assert!(model.takes(&schema, "9"));
                    assert!(!model.takes(&schema, "-1"));
                }
            });
        }
    });
}

/// The mask of a token that the grammar forces is there before a limit that is met further ahead is known.
#[test]
fn a_limit_that_forced_tokens_meet_is_told() {
    let model = Model::demo();
    // Found by fuzzing; its first byte says that it is a regular expression.
    let found = include_str!("../fixtures/fuzz/regex_control_characters");
    let mut constraint = model.constraint(&Grammar::Regex(found[1..].to_owned()));
    let mut accepted = 0;
    while let Some(&token) = model.allowed(&mut *constraint).first() {
        if !constraint.accept(token) {
            break;
        }
        accepted += 1;
    }
    assert_eq!(accepted, 1);
    assert!(constraint.fault().is_some_and(|reason| reason.contains("too many expressions")), "{constraint:?}");
}

//! Each kind of grammar takes what it describes, and nothing else.

use kaito_grammar::{Error, Grammar, inline_schema};
use serde_json::{Value, json};

use crate::common::{Model, lenient, strict};

#[test]
fn texts_are_taken_or_not() {
    let model = Model::demo();
    let choice = |texts: &[&str]| Grammar::Choice(texts.iter().map(|&text| text.to_owned()).collect());
    let regex = |text: &str| Grammar::Regex(text.to_owned());
    let lark = |text: &str| Grammar::Lark(text.to_owned());
    let inline =
        inline_schema(&json!({ "type": "object", "properties": { "a": { "type": "integer" } } }), true).unwrap();
    let called = lark(&format!("start: \"call \" body\nbody: {inline}\n"));
    for (grammar, taken, refused) in [
        (
            Grammar::JsonObject,
            &["{}", "{\"a\": [1, null, {\"b\": \"c\"}]}"][..],
            &["[]", "1", "{", "{}{}", "{} ", " {}"][..],
        ),
        (strict(json!({})), &["1", "\"x\"", "[]", "null", "{\"a\":1}"], &["", "nul", "01", "'x'"]),
        (strict(json!(true)), &["1"], &["x"]),
        (regex("[a-c]+[0-9]{2}"), &["abc12", "a00"], &["abc1", "abc123", "d12", ""]),
        (regex(r"^(yes|no)\$$"), &["yes$", "no$"], &["yes", "$"]),
        (regex(r"\d/\d"), &["1/2"], &["1\\/2"]),
        (regex("[ä-ü]{1,2}😀?"), &["ö", "öü😀"], &["o", "😀"]),
        (
            choice(&["yes", "yes please", "no \"x\"\n"]),
            &["yes", "yes please", "no \"x\"\n"],
            &["", "yes p", "no", "maybe"],
        ),
        (choice(&["\u{7f}\t\\", "/a/i", "ß"]), &["\u{7f}\t\\", "/a/i", "ß"], &["s", "/a/"]),
        (lark("start: A B?\nA: \"a\"+\nB: /[0-9]/\n"), &["a", "aaa", "aa1"], &["", "1", "a11"]),
        (called, &["call {}", "call {\"a\": 1}", "call {\n  \"a\":1\n}"], &["call", "{}", "call {\"a\": \"1\"}"]),
    ] {
        for text in taken {
            assert!(model.takes(&grammar, text), "{grammar:?} takes {text:?}");
        }
        for text in refused {
            assert!(!model.takes(&grammar, text), "{grammar:?} does not take {text:?}");
        }
    }
}

#[test]
fn white_space_is_at_most_a_line_break_and_twenty_spaces() {
    let model = Model::demo();
    let spaces = |n: usize| " ".repeat(n);
    for grammar in [Grammar::JsonObject, strict(json!({ "type": "object" })), lenient(json!({ "type": "object" }))] {
        for (space, taken) in [
            (String::new(), true),
            (spaces(20), true),
            (format!("\n{}", spaces(20)), true),
            ("\n".to_owned(), true),
            (spaces(21), false),
            (format!("\n{}", spaces(21)), false),
            ("\n\n".to_owned(), false),
            (" \n".to_owned(), false),
            ("\t".to_owned(), false),
            ("\r\n".to_owned(), false),
        ] {
            let text = format!("{{{space}\"a\"{space}:{space}[1{space},{space}2]{space}}}");
            assert_eq!(model.takes(&grammar, &text), taken, "{grammar:?} {text:?}");
        }
    }
    let schema = json!({ "type": "array", "items": { "type": "integer" } });
    let with = |pattern: &str| Grammar::JsonSchema {
        schema: schema.clone(),
        strict: true,
        whitespace: Some(pattern.to_owned()),
    };
    for (pattern, taken, refused) in [
        ("", "[1,2]", "[1, 2]"),
        ("[ \t]{1,3}", "[1,\t2]", "[1,\n2]"),
        (" ?", "[1, 2]", "[1,  2]"),
        ("[ \n]*", "[1,\n\n  2]", "[1,\t2]"),
    ] {
        assert!(model.takes(&with(pattern), taken), "{pattern:?} {taken:?}");
        assert!(model.takes(&with(pattern), "[1,2]"), "{pattern:?}");
        assert!(!model.takes(&with(pattern), refused), "{pattern:?} {refused:?}");
    }
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    let model = Model::demo();
    for (schema, path, reason) in [
        (json!({ "properties": { "a": { "not": {} } } }), "#/properties/a/not", "the keyword `not` is not supported"),
        (json!({ "type": "text" }), "#", "Invalid type: text"),
        (json!({ "properties": { "a": { "type": "string", "pattern": "(?=x)" } } }), "#/properties/a/pattern", "(?=x)"),
        (json!({ "properties": { "a": { "type": "string", "format": "zip" } } }), "#/properties/a/format", "zip"),
        (json!({ "items": { "$ref": "#/$defs/none" } }), "#/items/$ref", "none"),
        (json!({ "items": { "$ref": "https://example.com/x" } }), "#/items/$ref", "https://example.com/x"),
        (json!(false), "#", "nsatisfiable"),
        (
            json!({ "items": { "oneOf": [{ "type": "integer" }, { "minimum": 3 }] }, "minItems": 1 }),
            "#/items/oneOf",
            "oneOf",
        ),
        (json!({ "properties": { "a": 3 } }), "#/properties/a", "a schema is an object or a boolean, not a number"),
        (json!("x"), "#", "not a string"),
    ] {
        match model.error(&strict(schema.clone())) {
            Error::InvalidSchema { path: found, reason: why } => {
                assert_eq!(found, path, "{schema}: {why}");
                assert!(why.contains(reason), "{schema}: {why}");
                assert!(!why.contains('\n') && why.len() <= 1000, "{why}");
            }
            other => panic!("{schema}: {other}"),
        }
    }
    for (grammar, what, reason) in [
        (Grammar::Regex("(a".to_owned()), "the regular expression", "unclosed group"),
        (Grammar::Regex("a(?=b)".to_owned()), "the regular expression", "look-around"),
        (Grammar::Choice(vec![]), "the list of choices", "it has 0 choices, not 1 to 10000"),
        (
            Grammar::Choice(vec!["a".to_owned(), String::new()]),
            "the list of choices",
            "the choice with index 1 is empty",
        ),
        (Grammar::Lark("begin: \"a\"".to_owned()), "the grammar", "start"),
        (Grammar::Lark("start: \"a".to_owned()), "the grammar", ""),
        (Grammar::Lark("root ::= \"a\"".to_owned()), "the grammar", ""),
        (Grammar::Lark(String::new()), "the grammar", ""),
    ] {
        match model.error(&grammar) {
            Error::Invalid { what: found, reason: why } => {
                assert_eq!(found, what);
                assert!(why.contains(reason), "{grammar:?}: {why}");
            }
            other => panic!("{grammar:?}: {other}"),
        }
    }
}

#[test]
fn without_strict_what_cannot_be_kept_to_is_left_out() {
    let model = Model::demo();
    let schema = json!({
        "type": "object",
        "properties": { "a": { "type": "array", "items": { "type": "integer" }, "uniqueItems": true } },
        "required": ["a"], "additionalProperties": false,
    });
    assert!(model.takes(&lenient(schema.clone()), "{\"a\": [1, 1]}"));
    assert!(!model.takes(&lenient(schema), "{\"a\": [\"1\"]}"));
    let either = json!({ "oneOf": [{ "type": "integer" }, { "type": "integer", "minimum": 3 }] });
    assert!(model.takes(&lenient(either), "7"));
    // A reference that leads nowhere could mean anything.
    assert!(matches!(model.error(&lenient(json!({ "$ref": "#/$defs/a" }))), Error::InvalidSchema { .. }));
}

/// The compiler counts properties wrong beside optional ones that are listed: what is valid could not be written.
#[test]
fn bounds_of_the_number_of_properties_rule_nothing_out_that_is_valid() {
    let model = Model::demo();
    let text = json!({ "type": "string" });
    let listed = json!({ "type": "object", "properties": { "a": text, "b": text }, "minProperties": 1 });
    let closed = |more: Value| {
        let mut schema = listed.clone();
        schema["additionalProperties"] = false.into();
        schema.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        schema
    };
    let inside =
        json!({ "type": "object", "properties": { "c": listed }, "required": ["c"], "additionalProperties": false });
    let merged = json!({ "allOf": [listed, { "maxProperties": 5 }] });
    let referred = json!({ "$ref": "#/$defs/one", "$defs": { "one": listed } });
    let two = closed(json!({ "minProperties": 2 }));
    let counted = closed(json!({ "maxProperties": 1 }));
    let map = json!({ "type": "object", "additionalProperties": text, "minProperties": 1, "maxProperties": 2 });
    for (schema, valid, invalid) in [
        (
            listed.clone(),
            &[r#"{"a":"x"}"#, r#"{"b":"x"}"#, r#"{"a":"x","b":"y"}"#, r#"{"z":1}"#][..],
            &[r#"{"a":1}"#][..],
        ),
        (inside, &[r#"{"c":{"b":"x"}}"#], &["{}"]),
        (merged, &[r#"{"a":"x"}"#], &[]),
        (referred, &[r#"{"a":"x"}"#], &[]),
        (two, &[r#"{"a":"x","b":"y"}"#], &[r#"{"c":"x"}"#]),
        // What the compiler does count is kept to.
        (counted, &[r#"{"a":"x"}"#, r#"{"b":"x"}"#], &["{}", r#"{"a":"x","b":"y"}"#]),
        (map, &[r#"{"a":"x"}"#, r#"{"a":"x","b":"y"}"#], &["{}", r#"{"a":"x","b":"y","c":"z"}"#]),
    ] {
        for text in valid {
            assert!(model.takes(&lenient(schema.clone()), text), "{schema}: {text}");
        }
        for text in invalid {
            assert!(!model.takes(&lenient(schema.clone()), text), "{schema}: {text}");
        }
    }
}

#[test]
fn a_schema_sets_no_options_of_the_compiler() {
    let model = Model::demo();
    let schema = json!({ "x-guidance": { "whitespace_pattern": "x" }, "type": "array", "items": { "type": "null" } });
    assert!(model.takes(&strict(schema.clone()), "[null, null]"));
    assert!(!model.takes(&strict(schema), "[nullx,null]"));
}

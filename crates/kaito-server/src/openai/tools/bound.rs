//! Grammars of calls, compiled for models' tokens: what they let through, and that the reader reads it as it was meant.

use std::collections::HashMap;
use std::path::Path;

use kaito_engine::{Cancel, Constraint, TokenMask, Tokenizer};
use kaito_grammar::{Grammar, Grammars};
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use super::{CallReader, Piece, ToolFormat, Tools};
use crate::fields::Fields;

const MARKER: &str = "[TOOL_CALLS]";

/// A model's tokens.
struct Model {
    tokenizer: Tokenizer,
    grammars: Grammars,
    rows: usize,
    /// Tokens that are no special ones, by their bytes.
    ids: HashMap<Vec<u8>, u32>,
    longest: usize,
    marker: Option<u32>,
}

impl Model {
    fn open(folder: &str) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let tokenizer = Tokenizer::open(&root.join(folder)).unwrap();
        let rows = tokenizer.vocab_size();
        let mut ids = HashMap::new();
        for id in (0..).take(rows).filter(|id| !tokenizer.special_ids().contains(id)) {
            if let Some(bytes) = tokenizer.token_bytes(id) {
                ids.entry(bytes).or_insert(id);
            }
        }
        let end = tokenizer.eos_token_id().into_iter().collect();
        Self {
            grammars: Grammars::new(tokenizer.clone(), rows, end),
            marker: tokenizer.added_token(MARKER),
            longest: ids.keys().map(Vec::len).max().unwrap(),
            tokenizer,
            rows,
            ids,
        }
    }

    /// The longest tokens first. The marker is its token.
    fn tokens(&self, text: &str) -> Vec<u32> {
        let mut tokens = Vec::new();
        let mut rest = text.as_bytes();
        if let (Some(marker), Some(after)) = (self.marker, text.strip_prefix(MARKER)) {
            tokens.push(marker);
            rest = after.as_bytes();
        }
        while !rest.is_empty() {
            let (length, id) = (1..=self.longest.min(rest.len()))
                .rev()
                .find_map(|length| Some((length, *self.ids.get(&rest[..length])?)))
                .unwrap();
            tokens.push(id);
            rest = &rest[length..];
        }
        tokens
    }

    fn constraint(&self, grammar: &Grammar) -> Box<dyn Constraint> {
        self.grammars.constraint(grammar, &Cancel::default()).unwrap()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fit {
    /// It may not begin so.
    Refused,
    /// More must follow.
    Begun,
    /// It may end, or go on.
    Whole,
    /// Nothing may follow.
    Finished,
}

fn fit(mut constraint: Box<dyn Constraint>, tokens: &[u32]) -> Fit {
    for token in tokens {
        if !constraint.accept(*token) {
            return Fit::Refused;
        }
    }
    match (constraint.is_finished(), constraint.may_end()) {
        (true, _) => Fit::Finished,
        (false, true) => Fit::Whole,
        (false, false) => Fit::Begun,
    }
}

/// Fields of a request beside `tools`, the format that it asks for, and how texts fit.
type Case = (Value, Option<Grammar>, Vec<(String, Fit)>);

fn tools(more: Value) -> Tools {
    let mut body = json!({
        "tools": [
            {"type": "function", "function": {"name": "get_weather", "parameters": {
                "type": "object", "required": ["city"],
                "properties": {
                    "city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["celsius", "fahrenheit"]},
                    "at": {"$ref": "#/$defs/place"}},
                "$defs": {"place": {
                    "type": "object", "properties": {"lat": {"type": "integer"}}, "additionalProperties": false}}}}},
            {"type": "function", "function": {"name": "stop"}},
            {"type": "function", "function": {"name": "get", "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}}}},
        ],
    });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    Tools::parse(&mut Fields::root(body.as_object().unwrap().clone())).unwrap().unwrap()
}

const WEATHER: &str = r#"{"name": "get_weather", "arguments": {"city": "Zürich"}}"#;
const ALL: &str = "{\"name\": \"get_weather\", \"arguments\": {\"city\":\"Rome\", \"unit\": \"celsius\",\n  \"at\": {\"lat\": 4}}}, \
                   {\"name\": \"stop\", \"arguments\": {}}, {\"name\": \"get\", \"arguments\": {\"n\": 1 }}";

fn call(list: &str) -> String {
    format!("{{\"tool_calls\": [{list}]}}")
}

fn schema(schema: Value) -> Option<Grammar> {
    Some(Grammar::JsonSchema { schema, strict: true, whitespace: None })
}

#[test]
fn answers_are_calls_whose_arguments_follow_the_schema_or_what_else_is_asked_for() {
    use Fit::{Begun, Finished, Refused, Whole};
    let one = |name: &str, arguments: &str| call(&format!("{{\"name\": \"{name}\", \"arguments\": {arguments}}}"));
    let many = |count: usize| call(&vec![WEATHER; count].join(", "));
    let auto = || json!({});
    let answer = json!({"type": "object", "properties": {"tool": {"type": "integer"}}, "required": ["tool"], "additionalProperties": false});
    let generic: Vec<Case> = vec![
        (
            auto(),
            None,
            vec![
                (call(WEATHER), Finished),
                (format!(" {}", call(WEATHER)), Finished),
                (format!("\n{}", call(ALL)), Finished),
                (many(16), Finished),
                (call(&vec![WEATHER; 17].join(", ")), Refused),
                (call(WEATHER) + " ", Refused),
                (call(""), Refused),
                (String::new(), Whole),
                (" \n".to_owned(), Whole),
                ("Hello {\"tool_calls\": 1}".to_owned(), Whole),
                ("  \u{1f600}".to_owned(), Whole),
                ("[1]".to_owned(), Whole),
                ("{".to_owned(), Begun),
                ("{\"a\"".to_owned(), Refused),
                (one("stop", "{\"a\""), Refused),
                (one("other", "{}"), Refused),
                (one("get_weather", "{}"), Refused),
                (one("get_weather", "{\"city\": 1}"), Refused),
                (one("get_weather", "{\"city\": \"a\", \"unit\": \"kelvin\"}"), Refused),
                (one("get_weather", "{\"city\": \"a\", \"at\": {\"lon\""), Refused),
                (one("get", "{\"m\": 1}"), Refused),
                ("{\"tool_calls\": [{\"name\": \"get\", \"arguments\": {\"n\": 12".to_owned(), Begun),
            ],
        ),
        (
            json!({"parallel_tool_calls": false}),
            None,
            vec![(call(WEATHER), Finished), (many(2), Refused), ("Hello".to_owned(), Whole)],
        ),
        (
            json!({"tool_choice": "required"}),
            None,
            vec![(call(ALL), Finished), ("Hello".to_owned(), Refused), (String::new(), Begun), (" ".to_owned(), Begun)],
        ),
        (
            json!({"tool_choice": "none"}),
            None,
            vec![
                ("Hello {\"tool_calls\": 1}".to_owned(), Whole),
                (String::new(), Whole),
                ("[1]".to_owned(), Whole),
                (call(WEATHER), Refused),
                (" {".to_owned(), Refused),
            ],
        ),
        (
            json!({"tool_choice": {"type": "function", "function": {"name": "stop"}}}),
            None,
            vec![(one("stop", "{}"), Finished), (call(WEATHER), Refused), (one("stop", "{}") + ",", Refused)],
        ),
        (
            auto(),
            Some(Grammar::JsonObject),
            vec![
                (call(WEATHER), Finished),
                (call(ALL), Finished),
                ("{\"tool\": [1]}".to_owned(), Finished),
                ("{ \"a\" : 1}".to_owned(), Finished),
                ("{}".to_owned(), Finished),
                ("Hello".to_owned(), Refused),
                (one("stop", "{\"a\""), Refused),
                ("{\"tool_calls\": 1".to_owned(), Refused),
                ("{\"a\": 1, \"tool_calls\"".to_owned(), Refused),
            ],
        ),
        (
            auto(),
            schema(answer),
            vec![
                (call(ALL), Finished),
                ("{\"tool\": 12}".to_owned(), Finished),
                ("{\"tool\": \"a".to_owned(), Refused),
                ("{\"tool_calls\": 1".to_owned(), Refused),
                ("{\"a\"".to_owned(), Refused),
            ],
        ),
        (
            auto(),
            schema(
                json!({"$ref": "#/$defs/a", "$defs": {"a": {"type": "object", "properties": {"b": {"type": "null"}}}}}),
            ),
            vec![
                (call(ALL), Finished),
                ("{\"b\": null}".to_owned(), Finished),
                ("{\"b\": 1".to_owned(), Refused),
                ("{\"tool_calls\": 1".to_owned(), Refused),
            ],
        ),
        (
            auto(),
            schema(json!({"type": "array", "items": {"type": "integer"}})),
            vec![(call(ALL), Finished), ("[1, 2]".to_owned(), Finished), ("[\"a".to_owned(), Refused)],
        ),
        (
            auto(),
            schema(json!(true)),
            vec![(call(ALL), Finished), ("{\"a\": 1}".to_owned(), Finished), ("\"a\"".to_owned(), Finished)],
        ),
        (
            auto(),
            Some(Grammar::Regex("^a/b+|\\{\".*$".to_owned())),
            vec![
                (call(WEATHER), Finished),
                ("a/b".to_owned(), Whole),
                ("{\"tool_call\": ".to_owned(), Whole),
                ("{\"tool_calls\": 1".to_owned(), Refused),
                ("{ \"".to_owned(), Refused),
                ("b".to_owned(), Refused),
            ],
        ),
        (
            auto(),
            Some(Grammar::Choice(["yes", "no\n", "{\"tool\"}", "{\"tool_calls\"}"].map(str::to_owned).into())),
            vec![
                (call(WEATHER), Finished),
                ("yes".to_owned(), Finished),
                ("no".to_owned(), Begun),
                ("no\n".to_owned(), Finished),
                ("{\"tool\"}".to_owned(), Finished),
                ("{\"tool_calls\"}".to_owned(), Refused),
            ],
        ),
    ];
    let mark = |list: &str| format!("{MARKER} [{list}]");
    let native: Vec<Case> = vec![
        (
            auto(),
            None,
            vec![
                (mark(WEATHER), Finished),
                (mark(ALL), Finished),
                (MARKER.to_owned(), Begun),
                (format!("{MARKER} Hello"), Refused),
                (mark("{\"name\": \"stop\", \"arguments\": {\"a\""), Refused),
                (String::new(), Whole),
                ("Hello".to_owned(), Whole),
                ("[link](https://localhost)".to_owned(), Whole),
                ("[TOOL_CALL] ".to_owned(), Whole),
                ("{\"tool_calls\": 1}".to_owned(), Whole),
            ],
        ),
        (json!({"tool_choice": "required"}), None, vec![(mark(ALL), Finished), ("Hello".to_owned(), Refused)]),
        (
            auto(),
            Some(Grammar::JsonObject),
            vec![
                (mark(ALL), Finished),
                ("{\"tool_calls\": 1}".to_owned(), Finished),
                ("Hello".to_owned(), Refused),
                (format!("{MARKER} {{"), Refused),
            ],
        ),
        (
            auto(),
            Some(Grammar::Choice(vec!["yes".to_owned()])),
            vec![(mark(WEATHER), Finished), ("yes".to_owned(), Finished), ("no".to_owned(), Refused)],
        ),
    ];
    let mut wrong = Vec::new();
    for folder in [
        "models/demo",
        "crates/kaito-model/tests/fixtures/tokenizer/mistral_v03",
        "crates/kaito-model/tests/fixtures/tokenizer/falcon",
    ] {
        let model = Model::open(folder);
        let native = model.marker.map(|call_token| (ToolFormat::Native { call_token }, &native));
        for (format, cases) in [(ToolFormat::Generic, &generic)].into_iter().chain(native) {
            for (more, response, texts) in cases {
                let grammar = tools(more.clone()).grammar(format, response.as_ref()).unwrap();
                let constraint = model.constraint(&grammar);
                for (text, expected) in texts {
                    let fit = fit(constraint.fork(), &model.tokens(text));
                    if fit != *expected {
                        wrong.push(format!(
                            "{folder} {format:?} {more} {response:?} {text:?}: {fit:?}, not {expected:?}"
                        ));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What calls of an answer are, as far as they have come.
fn read(mut reader: CallReader, parts: &[String]) -> (String, Vec<(String, String)>) {
    let (mut text, mut calls) = (String::new(), Vec::new());
    let mut take = |pieces: Vec<Piece>| {
        for piece in pieces {
            match piece {
                Piece::Text(more) => text.push_str(&more),
                Piece::Call { name, .. } => calls.push((name, String::new())),
                Piece::Arguments { index, text } => calls[index].1.push_str(&text),
            }
        }
    };
    parts.iter().for_each(|part| take(reader.push(part)));
    take(reader.finish());
    (text, calls)
}

/// Answers of tokens drawn at random among those that the grammar allows.
#[test]
fn whatever_the_grammar_allows_is_read_as_text_or_as_calls_that_follow_the_schema() {
    let model = Model::open("crates/kaito-model/tests/fixtures/tokenizer/mistral_v03");
    let native = ToolFormat::Native { call_token: model.marker.unwrap() };
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let (mut with_calls, mut with_text, mut complete) = (0, 0, 0);
    for (format, more, response) in [
        (ToolFormat::Generic, json!({}), None),
        (ToolFormat::Generic, json!({}), Some(Grammar::JsonObject)),
        (ToolFormat::Generic, json!({"tool_choice": "required"}), None),
        (native, json!({}), None),
        (native, json!({"tool_choice": "required", "parallel_tool_calls": false}), None),
    ] {
        let tools = tools(more);
        let constraint = model.constraint(&tools.grammar(format, response.as_ref()).unwrap());
        for _ in 0..20 {
            let mut constraint = constraint.fork();
            let mut tokens = Vec::new();
            let ended = loop {
                if constraint.is_finished() || constraint.may_end() && rng.random_bool(0.1) {
                    break true;
                }
                if tokens.len() == 300 {
                    break false;
                }
                let mut mask = TokenMask::of(model.rows, &[]);
                constraint.mask(&mut mask);
                let words = mask.words_mut();
                let allowed = |id: &u32| words[*id as usize / 64] >> (id % 64) & 1 == 1;
                let allowed: Vec<u32> = (0..).take(model.rows).filter(allowed).collect();
                // Calls as often as texts, and ends of strings now and then.
                let structure = |id: &&u32| {
                    let bytes = model.tokenizer.token_bytes(**id).unwrap_or_default();
                    Some(**id) == model.marker || bytes.iter().all(|byte| b"{}\"".contains(byte))
                };
                let wanted = allowed.iter().find(structure).copied().filter(|_| rng.random_bool(0.3));
                let token = wanted.unwrap_or_else(|| *allowed.choose(&mut rng).unwrap());
                assert!(constraint.accept(token));
                tokens.push(token);
            };
            let bytes: Vec<u8> = tokens.iter().flat_map(|token| model.tokenizer.token_bytes(*token).unwrap()).collect();
            let whole = String::from_utf8_lossy(&bytes).into_owned();
            let cut: Vec<String> = whole.chars().map(String::from).collect();
            let (text, calls) = read(tools.reader(format), std::slice::from_ref(&whole));
            assert_eq!(read(tools.reader(format), &cut), (text.clone(), calls.clone()), "{whole}");
            if calls.is_empty() {
                assert_eq!(text, whole);
                with_text += 1;
                continue;
            }
            with_calls += 1;
            assert_eq!(text, "", "{whole}");
            let last = calls.len() - 1;
            for (index, (name, arguments)) in calls.iter().enumerate() {
                if index == last && !ended {
                    continue;
                }
                complete += 1;
                let arguments: Value = serde_json::from_str(arguments).unwrap();
                let arguments = arguments.as_object().unwrap();
                let known: &[&str] = match name.as_str() {
                    "get_weather" => &["city", "unit", "at"],
                    "get" => &["n"],
                    _ => &[],
                };
                assert!(arguments.keys().all(|key| known.contains(&key.as_str())), "{whole}");
                assert_eq!(arguments.contains_key("city"), name == "get_weather", "{whole}");
                assert!(arguments.get("city").is_none_or(Value::is_string), "{whole}");
                assert!(arguments.get("n").is_none_or(|n| n.as_f64().is_some_and(|n| n.fract() == 0.0)), "{whole}");
            }
        }
    }
    assert!(with_calls > 30 && with_text > 10 && complete > 20, "{with_calls} {with_text} {complete}");
}

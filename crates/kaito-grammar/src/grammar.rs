//! The kinds of grammar, and how each becomes one that can be compiled.

use kaito_engine::ConstraintSource;
use llguidance::JsonCompileOptions;
use llguidance::api::TopLevelGrammar;
use serde_json::{Map, Value, json};

use crate::Error;
use crate::schema;

/// What an answer has to be.
#[derive(Debug, Clone, PartialEq)]
pub enum Grammar {
    /// Any JSON object.
    JsonObject,
    /// JSON that a schema describes.
    JsonSchema {
        /// The schema.
        schema: Value,
        /// Refuse keywords that the grammar cannot keep to. Otherwise they are left out, with a warning in the log.
        strict: bool,
        /// A regular expression for the white space between JSON's tokens, in place of at most one line break and 20 spaces.
        whitespace: Option<String>,
    },
    /// A text that the regular expression matches whole.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A grammar in the variant of Lark's syntax that llguidance documents. Its rule `start` is the whole answer.
    Lark(String),
}

/// Between JSON's tokens: without a bound, small models write spaces to the end.
const WHITE_SPACE: &str = r"\x0A\x20{0,20}|\x20{1,20}";
/// Most bytes of a grammar in Lark's syntax, and of a regular expression.
const MAX_LARK: usize = 512 << 10;
const MAX_REGEX: usize = 64 << 10;
/// Most choices, and most bytes of all of them.
const MAX_CHOICES: usize = 10_000;
const MAX_CHOICE_BYTES: usize = 1 << 20;
/// How deep braces may nest in Lark's syntax.
const MAX_BRACES: usize = 200;
/// Where llguidance takes its options for a schema from.
const OPTIONS: &str = "x-guidance";
/// Most characters of a reason.
const MAX_REASON: usize = 300;

/// A grammar that was checked, as llguidance takes it.
pub(crate) struct Source {
    pub(crate) kind: &'static str,
    pub(crate) grammar: TopLevelGrammar,
    /// The schema, for the places of errors.
    pub(crate) schema: Option<Value>,
}

impl Grammar {
    /// What it is called in an error.
    pub(crate) fn what(&self) -> &'static str {
        match self {
            Self::JsonObject | Self::JsonSchema { .. } => "the JSON schema",
            Self::Regex(_) => "the regular expression",
            Self::Choice(_) => "the list of choices",
            Self::Lark(_) => "the grammar",
        }
    }

    /// Its kind and text: equal ones are the same grammar.
    pub(crate) fn key(&self) -> String {
        match self {
            Self::JsonObject => "object".to_owned(),
            Self::JsonSchema { schema, strict, whitespace } => {
                json!(["schema", strict, whitespace, schema]).to_string()
            }
            Self::Regex(regex) => format!("regex\n{regex}"),
            Self::Choice(choices) => json!(choices).to_string(),
            Self::Lark(text) => format!("lark\n{text}"),
        }
    }

    /// What it is to an engine that compiles it itself; `None` where it can't be written down.
    pub(crate) fn constraint_source(&self) -> Option<ConstraintSource> {
        Some(match self {
            Self::JsonObject => ConstraintSource::JsonObject,
            Self::JsonSchema { schema, whitespace: None, .. } => ConstraintSource::JsonSchema(schema.clone()),
            // Only llguidance's own notation has this.
            Self::JsonSchema { schema, strict, whitespace } => {
                let with_options = with_options(schema, *strict, whitespace.as_deref()).ok()?;
                ConstraintSource::Lark(format!("start: %json {with_options}\n"))
            }
            Self::Regex(regex) => ConstraintSource::Regex(without_anchors(regex).to_owned()),
            Self::Choice(choices) => ConstraintSource::Choice(choices.clone()),
            Self::Lark(text) => ConstraintSource::Lark(text.clone()),
        })
    }

    /// Checks it, as far as that needs no compiling.
    pub(crate) fn source(&self) -> Result<Source, Error> {
        let what = self.what();
        let invalid = |reason: String| Error::Invalid { what, reason };
        let at_most = |bytes: usize, most: usize| {
            if bytes > most { Err(invalid(format!("it has {bytes} bytes, more than {most}"))) } else { Ok(()) }
        };
        let (grammar, schema) = match self {
            Self::JsonObject => {
                let schema = json!({ "type": "object" });
                (TopLevelGrammar::from_json_schema(with_options(&schema, false, None)?), Some(schema))
            }
            Self::JsonSchema { schema, strict, whitespace } => {
                schema::check(schema, *strict)?;
                let with_options = with_options(schema, *strict, whitespace.as_deref())?;
                (TopLevelGrammar::from_json_schema(with_options), Some(schema.clone()))
            }
            Self::Regex(regex) => {
                at_most(regex.len(), MAX_REGEX)?;
                (TopLevelGrammar::from_regex(without_anchors(regex)), None)
            }
            Self::Choice(choices) => {
                if choices.is_empty() || choices.len() > MAX_CHOICES {
                    return Err(invalid(format!("it has {} choices, not 1 to {MAX_CHOICES}", choices.len())));
                }
                if let Some(at) = choices.iter().position(String::is_empty) {
                    return Err(invalid(format!("the choice with index {at} is empty")));
                }
                at_most(choices.iter().map(String::len).sum(), MAX_CHOICE_BYTES)?;
                let choices: Vec<String> = choices.iter().map(|choice| literal(choice)).collect();
                (TopLevelGrammar::from_lark(format!("start: {}\n", choices.join(" | "))), None)
            }
            Self::Lark(text) => {
                at_most(text.len(), MAX_LARK)?;
                let deepest = depth_of_braces(text);
                if deepest > MAX_BRACES {
                    return Err(invalid(format!("its braces nest {deepest} deep, more than {MAX_BRACES}")));
                }
                (TopLevelGrammar::from_lark(text.clone()), None)
            }
        };
        Ok(Source { kind: what, grammar, schema })
    }
}

/// What stands for a schema within a grammar in Lark's syntax: `%json` and the schema, with the same white space and the
/// same strictness as [`Grammar::JsonSchema`] has.
///
/// # Errors
/// For a schema that [`Grammar::JsonSchema`] would refuse before compiling it.
pub fn inline_schema(schema: &Value, strict: bool) -> Result<String, Error> {
    schema::check(schema, strict)?;
    Ok(format!("%json {}", with_options(schema, strict, None)?))
}

/// The schema with how it is to be compiled.
fn with_options(schema: &Value, strict: bool, whitespace: Option<&str>) -> Result<Value, Error> {
    let schema = if strict { schema.clone() } else { schema::without_wrong_counts(schema.clone()) };
    let mut object = match &schema {
        Value::Object(object) => object.clone(),
        // Of two keywords one would do, but the schema `false` is no object.
        Value::Bool(true) => Map::new(),
        Value::Bool(false) => Map::from_iter([("enum".to_owned(), json!([]))]),
        other => return Err(schema::no_schema("#", other)),
    };
    let pattern = whitespace.unwrap_or(WHITE_SPACE);
    let options = JsonCompileOptions {
        whitespace_flexible: !pattern.is_empty(),
        whitespace_pattern: (!pattern.is_empty()).then(|| pattern.to_owned()),
        lenient: !strict,
        ..JsonCompileOptions::default()
    };
    object.shift_remove(OPTIONS);
    let options = serde_json::to_value(options).map_err(|error| Error::Internal { reason: error.to_string() })?;
    object.insert(OPTIONS.to_owned(), options);
    Ok(Value::Object(object))
}

/// A regular expression matches the whole text anyway.
fn without_anchors(regex: &str) -> &str {
    let regex = regex.strip_prefix('^').unwrap_or(regex);
    match regex.strip_suffix('$') {
        Some(before) if before.chars().rev().take_while(|&c| c == '\\').count() % 2 == 0 => before,
        _ => regex,
    }
}

/// A text as a literal of Lark's syntax.
fn literal(text: &str) -> String {
    json!(text).to_string().replace('\u{7f}', "\\u007f")
}

fn depth_of_braces(text: &str) -> usize {
    let depth = |(deepest, depth): (usize, usize), byte: u8| match byte {
        b'{' => (deepest.max(depth + 1), depth + 1),
        b'}' => (deepest, depth.saturating_sub(1)),
        _ => (deepest, depth),
    };
    text.bytes().fold((0, 0), depth).0
}

/// A reason in one line, shortened where it is very long.
pub(crate) fn one_line(reason: &str) -> String {
    let reason = reason.split("<non-verbose/>").next().unwrap_or_default();
    let words: Vec<&str> = reason.split_whitespace().collect();
    let line = words.join(" ");
    match line.char_indices().nth(MAX_REASON) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anchors_at_the_ends_are_redundant() {
        for (regex, whole) in [
            ("^a+$", "a+"),
            ("a|b", "a|b"),
            (r"a\$", r"a\$"),
            (r"a\\$", r"a\\"),
            ("^$", ""),
            (r"\^a", r"\^a"),
            ("$", ""),
        ] {
            assert_eq!(without_anchors(regex), whole);
        }
    }

    #[test]
    fn options_stand_beside_the_keywords_in_their_order() {
        let schema = json!({ "z": 1, "x-guidance": { "lenient": true }, "type": "object", "a": 2 });
        let with_options = with_options(&schema, true, Some("")).unwrap();
        let keys: Vec<&String> = with_options.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["z", "type", "a", "x-guidance"]);
        let options = &with_options["x-guidance"];
        assert_eq!((&options["lenient"], &options["whitespace_flexible"]), (&json!(false), &json!(false)));
    }

    #[test]
    fn a_reason_is_one_short_line() {
        assert_eq!(one_line("a\n  b\n<non-verbose/>"), "a b");
        assert_eq!(one_line(&"é ".repeat(400)).chars().count(), MAX_REASON + 3);
    }

    #[test]
    fn braces_nest_as_deep_as_they_open() {
        assert_eq!(["", "{}{}", "{{}", "}{", "{{}{{}}}"].map(depth_of_braces), [0, 1, 2, 1, 3]);
    }
}

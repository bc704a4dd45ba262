//! What the text of an answer must be like: `response_format`, vLLM's `structured_outputs` and `guided_*`, llama.cpp's
//! `json_schema`. All come to one grammar.

use super::tools::Grammar;
use serde_json::Value;

use super::parameters::unsupported;
use crate::error::ApiError;
use crate::fields::{self, Fields};

/// Most texts of a choice.
const MAX_CHOICES: usize = 1 << 12;

/// What a text must be like.
#[derive(Debug, Clone)]
pub(crate) struct Format {
    /// The field that says so.
    pub(crate) parameter: String,
    /// What it says.
    pub(crate) grammar: Grammar,
}

/// Reads all fields that say what a text must be like.
///
/// # Errors
/// 400 for values of the wrong shape, and for more than one of them.
pub(crate) fn take(body: &mut Fields) -> Result<Option<Format>, ApiError> {
    if body.contains("grammar") {
        return Err(unsupported(
            &body.path("grammar"),
            "grammars come as `structured_outputs.grammar`, in Lark's notation",
        ));
    }
    let mut found: Option<Format> = None;
    for (name, read) in READERS {
        if !body.contains(name) {
            continue;
        }
        let parameter = body.path(name);
        let Some(grammar) = read(body)? else { continue };
        if let Some(first) = &found {
            let first = &first.parameter;
            let detail = format!("`{first}` and `{parameter}` both say what the text must be; give one of them.");
            return Err(ApiError::bad_request(detail).with_param(parameter));
        }
        found = Some(Format { parameter, grammar });
    }
    Ok(found)
}

/// Reads one of the fields.
type Reader = fn(&mut Fields) -> Result<Option<Grammar>, ApiError>;

/// The fields, each with its reader.
const READERS: [(&str, Reader); 7] = [
    ("response_format", response_format),
    ("structured_outputs", structured_outputs),
    ("guided_json", |body| {
        let whitespace = body.take_string("guided_whitespace_pattern")?;
        json(body, "guided_json", whitespace)
    }),
    ("guided_regex", |body| Ok(body.take_string("guided_regex")?.map(Grammar::Regex))),
    ("guided_choice", |body| choice(body, "guided_choice")),
    ("guided_grammar", |body| Ok(body.take_string("guided_grammar")?.map(Grammar::Lark))),
    ("json_schema", |body| json(body, "json_schema", None)),
];

fn response_format(body: &mut Fields) -> Result<Option<Grammar>, ApiError> {
    let Some(mut format) = body.take_object("response_format")? else { return Ok(None) };
    let at = format.path("type");
    let kinds = "\"text\", \"json_object\" or \"json_schema\"";
    let kind = format.take_string("type")?.ok_or_else(|| fields::missing(&at, kinds))?;
    match kind.as_str() {
        "text" => Ok(None),
        "json_object" => match format.contains("schema") {
            true => json(&mut format, "schema", None),
            false => Ok(Some(Grammar::JsonObject)),
        },
        // Some clients leave the object around the schema out.
        "json_schema" if !format.contains("json_schema") && format.contains("schema") => {
            json(&mut format, "schema", None)
        }
        "json_schema" => {
            let at = format.path("json_schema");
            let wanted = "an object with `name` and `schema`";
            let mut named = format.take_object("json_schema")?.ok_or_else(|| fields::missing(&at, wanted))?;
            named.take_string("name")?;
            let strict = named.take_flag("strict")?.unwrap_or(false);
            let at = named.path("schema");
            let schema = named.take("schema").ok_or_else(|| fields::missing(&at, "a JSON schema"))?;
            Ok(Some(Grammar::JsonSchema { schema: checked(&at, schema)?, strict, whitespace: None }))
        }
        other => Err(fields::unknown_value(&at, other, kinds)),
    }
}

/// The fields of `structured_outputs` of which there must be one.
const KINDS: [&str; 5] = ["json", "regex", "choice", "grammar", "json_object"];

fn structured_outputs(body: &mut Fields) -> Result<Option<Grammar>, ApiError> {
    let at = body.path("structured_outputs");
    let Some(mut outputs) = body.take_object("structured_outputs")? else { return Ok(None) };
    if outputs.contains("structural_tag") {
        return Err(unsupported(&outputs.path("structural_tag"), "tools come as `tools`"));
    }
    let given: Vec<&str> = KINDS.into_iter().filter(|name| outputs.contains(name)).collect();
    let [kind] = given.as_slice() else {
        let detail = match given.as_slice() {
            [] => format!("`{at}` has none of {}; give one of them.", KINDS.join(", ")),
            several => format!("`{at}` has {}; give one of them.", several.join(" and ")),
        };
        return Err(ApiError::bad_request(detail).with_param(at));
    };
    match *kind {
        "json" => {
            let whitespace = outputs.take_string("whitespace_pattern")?;
            json(&mut outputs, "json", whitespace)
        }
        "regex" => Ok(outputs.take_string("regex")?.map(Grammar::Regex)),
        "choice" => choice(&mut outputs, "choice"),
        "grammar" => Ok(outputs.take_string("grammar")?.map(Grammar::Lark)),
        _ => Ok(outputs.take_flag("json_object")?.unwrap_or(false).then_some(Grammar::JsonObject)),
    }
}

/// A schema, as JSON or as a string that holds it.
fn json(body: &mut Fields, name: &str, whitespace: Option<String>) -> Result<Option<Grammar>, ApiError> {
    let at = body.path(name);
    let Some(schema) = body.take(name) else { return Ok(None) };
    let schema = match schema {
        Value::String(text) => {
            let parsed = crate::json::parse_object(text.as_bytes());
            parsed.map(Value::Object).map_err(|error| {
                ApiError::bad_request(format!("`{at}` is a string that is no JSON schema: {}", error.detail()))
                    .with_code("invalid_json_schema")
                    .with_param(at.clone())
            })?
        }
        schema => schema,
    };
    Ok(Some(Grammar::JsonSchema { schema: checked(&at, schema)?, strict: false, whitespace }))
}

/// `schema` if it is of a schema's type at all.
fn checked(at: &str, schema: Value) -> Result<Value, ApiError> {
    match schema {
        Value::Object(_) | Value::Bool(_) => Ok(schema),
        other => {
            Err(fields::wrong_shape(at, "a JSON schema, which is an object", &other).with_code("invalid_json_schema"))
        }
    }
}

fn choice(body: &mut Fields, name: &str) -> Result<Option<Grammar>, ApiError> {
    let at = body.path(name);
    match body.take_strings(name)? {
        None => Ok(None),
        Some(texts) if texts.is_empty() || texts.len() > MAX_CHOICES => {
            Err(fields::invalid(&at, format_args!("a list of {}", texts.len()), "a list of 1 to 4096 strings"))
        }
        Some(texts) => Ok(Some(Grammar::Choice(texts))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(body: Value) -> Result<Option<Grammar>, ApiError> {
        Ok(take(&mut Fields::root(body.as_object().unwrap().clone()))?.map(|format| format.grammar))
    }

    fn schema(strict: bool, whitespace: Option<&str>) -> Grammar {
        Grammar::JsonSchema { schema: json!({ "type": "object" }), strict, whitespace: whitespace.map(str::to_owned) }
    }

    #[test]
    fn every_field_comes_to_a_grammar() {
        let object = json!({ "type": "object" });
        for (body, expected) in [
            (json!({}), None),
            (json!({ "response_format": { "type": "text" } }), None),
            (json!({ "response_format": { "type": "json_object" } }), Some(Grammar::JsonObject)),
            (json!({ "response_format": { "type": "json_object", "schema": object } }), Some(schema(false, None))),
            (json!({ "response_format": { "type": "json_schema", "schema": object } }), Some(schema(false, None))),
            (
                json!({ "response_format": { "type": "json_schema", "json_schema": { "name": "a", "schema": object, "strict": true } } }),
                Some(schema(true, None)),
            ),
            (json!({ "structured_outputs": { "json": object } }), Some(schema(false, None))),
            (
                json!({ "structured_outputs": { "json": object.to_string(), "whitespace_pattern": " " } }),
                Some(schema(false, Some(" "))),
            ),
            (json!({ "structured_outputs": { "json_object": true } }), Some(Grammar::JsonObject)),
            (json!({ "structured_outputs": { "regex": "a+" } }), Some(Grammar::Regex("a+".to_owned()))),
            (json!({ "structured_outputs": { "choice": ["a"] } }), Some(Grammar::Choice(vec!["a".to_owned()]))),
            (
                json!({ "structured_outputs": { "grammar": "start: \"a\"" } }),
                Some(Grammar::Lark("start: \"a\"".to_owned())),
            ),
            (json!({ "guided_json": object }), Some(schema(false, None))),
            (json!({ "guided_regex": "a+" }), Some(Grammar::Regex("a+".to_owned()))),
            (json!({ "guided_choice": ["a"] }), Some(Grammar::Choice(vec!["a".to_owned()]))),
            (json!({ "guided_grammar": "start: \"a\"" }), Some(Grammar::Lark("start: \"a\"".to_owned()))),
            (json!({ "json_schema": object }), Some(schema(false, None))),
        ] {
            assert_eq!(format!("{:?}", read(body.clone()).unwrap()), format!("{expected:?}"), "{body}");
        }
    }

    #[test]
    fn one_of_them_is_given() {
        let error = read(json!({ "response_format": { "type": "json_object" }, "guided_regex": "a" })).unwrap_err();
        assert_eq!(
            error.detail(),
            "`response_format` and `guided_regex` both say what the text must be; give one of them."
        );
        let error = read(json!({ "structured_outputs": { "regex": "a", "choice": ["a"] } })).unwrap_err();
        assert_eq!(error.detail(), "`structured_outputs` has regex and choice; give one of them.");
        assert!(read(json!({ "grammar": "root ::= \"a\"" })).is_err());
    }
}

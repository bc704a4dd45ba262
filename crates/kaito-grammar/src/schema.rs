//! Checks of a JSON schema before it is compiled, and the places of what is wrong with it.

use std::collections::HashSet;

use serde_json::{Map, Value};

use crate::Error;

/// How deep a schema may nest; of 11,306 published ones the deepest has 63 levels.
const MAX_DEPTH: usize = 128;
/// How many values it may have, and how many different references: one may lead to the next.
const MAX_VALUES: usize = 200_000;
const MAX_REFERENCES: usize = 2048;

/// Keywords that no grammar keeps to here.
const UNSUPPORTED: [&str; 17] = [
    "not",
    "uniqueItems",
    "contains",
    "minContains",
    "maxContains",
    "propertyNames",
    "if",
    "then",
    "else",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "unevaluatedItems",
    "unevaluatedProperties",
    "$dynamicRef",
    "$recursiveRef",
    "$recursiveAnchor",
];

/// Keywords whose value is a schema, a list of schemas, or a map of schemas.
const OF_ONE: [&str; 3] = ["items", "additionalItems", "additionalProperties"];
const OF_LIST: [&str; 5] = ["allOf", "anyOf", "oneOf", "prefixItems", "items"];
const OF_MAP: [&str; 2] = ["properties", "patternProperties"];

/// Refuses schemas that are too deep or too large, and with `strict` those with unsupported keywords.
pub(crate) fn check(schema: &Value, strict: bool) -> Result<(), Error> {
    measure(schema)?;
    let mut fault = None;
    let count = walk(schema, &mut |path, schema| {
        let found = match schema {
            Value::Bool(_) => None,
            Value::Object(map) if strict => {
                let unsupported = map.keys().find(|key| UNSUPPORTED.contains(&key.as_str()));
                unsupported.map(|key| Error::InvalidSchema {
                    path: step(path, key),
                    reason: format!("the keyword `{key}` is not supported"),
                })
            }
            Value::Object(_) => None,
            other => Some(no_schema(path, other)),
        };
        fault = found;
        fault.is_none()
    });
    if let Some(fault) = fault {
        return Err(fault);
    }
    if count > MAX_REFERENCES {
        let reason = format!("it has more than {MAX_REFERENCES} different references");
        return Err(Error::InvalidSchema { path: "#".to_owned(), reason });
    }
    Ok(())
}

/// The keywords that bound an object's number of properties.
const COUNTS: [&str; 2] = ["minProperties", "maxProperties"];
/// Keywords by which schemas are merged with the one that they stand in.
const MERGED: [&str; 4] = ["allOf", "anyOf", "oneOf", "$ref"];

/// Leaves out bounds of the number of properties where the compiler would count the wrong ones: beside properties that are listed
/// and optional it counts the others alone, so that what the schema allows could not be written.
pub(crate) fn without_wrong_counts(mut schema: Value) -> Value {
    let mut wrong = Vec::new();
    walk(&schema, &mut |path, schema| {
        if let Value::Object(map) = schema
            && COUNTS.iter().any(|key| map.contains_key(*key))
            && !counts_right(path, map)
        {
            wrong.push(path.trim_start_matches('#').to_owned());
        }
        true
    });
    for place in wrong {
        if let Some(Value::Object(map)) = schema.pointer_mut(&place) {
            map.retain(|key, _| !COUNTS.contains(&key.as_str()));
        }
    }
    schema
}

/// Whether the compiler counts the properties of the schema at `path` as the specification says.
fn counts_right(path: &str, schema: &Map<String, Value>) -> bool {
    let parent = path.rsplit('/').nth(1).unwrap_or_default();
    if MERGED.contains(&parent) || MERGED.iter().any(|key| schema.contains_key(*key)) {
        return false;
    }
    let required: HashSet<&str> =
        schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    let mut listed = schema.get("properties").and_then(Value::as_object).into_iter().flat_map(Map::keys);
    if listed.all(|name| required.contains(name.as_str())) {
        return true;
    }
    // It has all ways of choosing one of the optional properties, where there are no others.
    let beside_required =
        |key| schema.get(key).and_then(Value::as_u64).map(|count| count.saturating_sub(required.len() as u64));
    let closed =
        schema.get("additionalProperties") == Some(&Value::Bool(false)) && !schema.contains_key("patternProperties");
    closed && beside_required(COUNTS[0]).unwrap_or(0) <= 1 && beside_required(COUNTS[1]).unwrap_or(1) == 1
}

/// What is no schema.
pub(crate) fn no_schema(path: &str, found: &Value) -> Error {
    let kind = match found {
        Value::Null => "null",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Bool(_) | Value::Object(_) => "a schema",
    };
    Error::InvalidSchema { path: path.to_owned(), reason: format!("a schema is an object or a boolean, not {kind}") }
}

/// The place of the keyword that `reason`, an error of the compiler, speaks of; `#` where it says nothing of one.
pub(crate) fn place_of(schema: &Value, reason: &str) -> String {
    let mut place = None;
    walk(schema, &mut |path, schema| {
        let Value::Object(map) = schema else { return true };
        let spoken_of = map.iter().find(|(key, value)| match (key.as_str(), value) {
            ("$ref" | "pattern" | "format", Value::String(text)) => !text.is_empty() && reason.contains(text.as_str()),
            ("patternProperties", Value::Object(patterns)) => {
                patterns.keys().any(|pattern| !pattern.is_empty() && reason.contains(pattern.as_str()))
            }
            ("type" | "title" | "description", _) => false,
            (key, _) => reason.contains(&format!("{key} ")) || reason.contains(&format!("\"{key}\"")),
        });
        place = spoken_of.map(|(key, _)| step(path, key));
        place.is_none()
    });
    place.unwrap_or_else(|| "#".to_owned())
}

/// Bounds depth and number of values.
fn measure(schema: &Value) -> Result<(), Error> {
    let fault = |reason: String| Err(Error::InvalidSchema { path: "#".to_owned(), reason });
    let mut stack = vec![(schema, 1)];
    let mut values = 0;
    while let Some((value, depth)) = stack.pop() {
        values += 1;
        if depth > MAX_DEPTH {
            return fault(format!("it nests deeper than {MAX_DEPTH} levels"));
        }
        if values > MAX_VALUES {
            return fault(format!("it holds more than {MAX_VALUES} values"));
        }
        match value {
            Value::Array(items) => stack.extend(items.iter().map(|item| (item, depth + 1))),
            Value::Object(map) => stack.extend(map.values().map(|value| (value, depth + 1))),
            _ => {}
        }
    }
    Ok(())
}

/// Visits every schema that belongs to `root`, and those that are referred to, until `visit` says that it is enough. Returns the
/// number of different references.
fn walk<'a>(root: &'a Value, visit: &mut dyn FnMut(&str, &'a Value) -> bool) -> usize {
    let mut seen: HashSet<&str> = HashSet::new();
    // The last one is visited next, so parts go in from the last to the first.
    let mut stack = vec![("#".to_owned(), root)];
    while let Some((path, schema)) = stack.pop() {
        if !visit(&path, schema) {
            break;
        }
        let Value::Object(map) = schema else { continue };
        for (key, value) in map.iter().rev() {
            let path = step(&path, key);
            match value {
                Value::Array(list) if OF_LIST.contains(&key.as_str()) => {
                    stack.extend(list.iter().enumerate().rev().map(|(at, item)| (step(&path, &at.to_string()), item)));
                }
                Value::Object(parts) if OF_MAP.contains(&key.as_str()) => {
                    stack.extend(parts.iter().rev().map(|(name, part)| (step(&path, name), part)));
                }
                Value::String(reference) if key == "$ref" && seen.insert(reference) => {
                    if let Some(target) = reference.strip_prefix('#').and_then(|pointer| root.pointer(pointer)) {
                        stack.push((reference.clone(), target));
                    }
                }
                schema if OF_ONE.contains(&key.as_str()) => stack.push((path, schema)),
                _ => {}
            }
        }
    }
    seen.len()
}

/// A step further in a JSON pointer.
fn step(path: &str, key: &str) -> String {
    format!("{path}/{}", key.replace('~', "~0").replace('/', "~1"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(schema: Value) -> (String, String) {
        match check(&schema, true).unwrap_err() {
            Error::InvalidSchema { path, reason } => (path, reason),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn an_unsupported_keyword_is_named_with_its_place() {
        for (schema, place) in [
            (json!({"not": {}}), "#/not"),
            (json!({"properties": {"a/b": {"items": {"uniqueItems": true}}}}), "#/properties/a~1b/items/uniqueItems"),
            (json!({"anyOf": [{"type": "null"}, {"if": {}}]}), "#/anyOf/1/if"),
            (json!({"$ref": "#/$defs/a", "$defs": {"a": {"contains": {}}}}), "#/$defs/a/contains"),
            (json!({"additionalProperties": {"propertyNames": {}}}), "#/additionalProperties/propertyNames"),
        ] {
            let keyword = place.rsplit('/').next().unwrap();
            assert_eq!(
                refused(schema.clone()),
                (place.to_owned(), format!("the keyword `{keyword}` is not supported"))
            );
            check(&schema, false).unwrap();
        }
        // A name is no keyword, and neither is what nothing refers to.
        check(&json!({"properties": {"not": {}}, "required": ["if"], "enum": [{"not": 1}]}), true).unwrap();
        check(&json!({"$defs": {"a": {"not": {}}}}), true).unwrap();
    }

    #[test]
    fn what_is_no_schema_is_refused() {
        assert_eq!(
            refused(json!({"properties": {"a": 3}})),
            ("#/properties/a".to_owned(), "a schema is an object or a boolean, not a number".to_owned())
        );
        check(&json!(true), true).unwrap();
    }

    #[test]
    fn depth_size_and_references_are_bounded() {
        let deep = (0..MAX_DEPTH).fold(json!({}), |inner, _| json!({ "items": inner }));
        assert_eq!(refused(deep).1, "it nests deeper than 128 levels");
        let many = json!({ "enum": vec![0; MAX_VALUES] });
        assert_eq!(refused(many).1, "it holds more than 200000 values");
        let references: Vec<Value> = (0..=MAX_REFERENCES).map(|i| json!({ "$ref": format!("#/$defs/{i}") })).collect();
        assert_eq!(refused(json!({ "anyOf": references })).1, "it has more than 2048 different references");
    }

    #[test]
    fn references_that_go_round_end() {
        check(&json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#"}}}), true).unwrap();
    }
}

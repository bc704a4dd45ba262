//! What a request says about tools, checked.

use kaito_engine::ParameterError;
use kaito_grammar::Error as SchemaError;
use serde_json::{Map, Value, json};

use super::{Choice, Function, MAX_TOOLS, Tools, inline_schema};
use crate::error::ApiError;
use crate::fields::{Fields, missing};

/// Letters of the longest name of a function.
const MAX_NAME: usize = 64;
const CHOICES: &str = "\"none\", \"auto\", \"required\" or a function";

impl Tools {
    /// Takes `tools`, `tool_choice` and `parallel_tool_calls`. `None` where the request has no tools: an empty list is none, too.
    ///
    /// # Errors
    /// What is wrong with them, by name.
    pub(crate) fn parse(fields: &mut Fields) -> Result<Option<Self>, ApiError> {
        let (at, choice_at) = (fields.path("tools"), fields.path("tool_choice"));
        let list = fields.take_list("tools")?.filter(|list| !list.is_empty());
        let choice = fields.take("tool_choice");
        let parallel = fields.take_flag("parallel_tool_calls")?.unwrap_or(true);
        let Some(list) = list else {
            return match choice {
                None => Ok(None),
                Some(Value::String(choice)) if choice == "none" || choice == "auto" => Ok(None),
                Some(choice) => {
                    let allowed = format!("absent, \"none\" or \"auto\" where `{at}` is missing or empty");
                    Err(ParameterError::invalid(&choice_at, choice, allowed).into())
                }
            };
        };
        if list.len() > MAX_TOOLS {
            let count = format!("a list of {}", list.len());
            return Err(ParameterError::invalid(&at, count, format!("a list of up to {MAX_TOOLS} functions")).into());
        }
        let mut functions: Vec<Function> = Vec::with_capacity(list.len());
        for (index, tool) in list.into_iter().enumerate() {
            let function = function(&format!("{at}[{index}]"), tool)?;
            if functions.iter().any(|other| other.name == function.name) {
                let name = Value::from(function.name);
                let at = format!("{at}[{index}].function.name");
                return Err(
                    ParameterError::invalid(&at, name, "another name than those of the functions before").into()
                );
            }
            functions.push(function);
        }
        let (choice, allowed) = match choice {
            None => (Choice::Auto, None),
            Some(choice) => parse_choice(&choice_at, choice, &functions)?,
        };
        Ok(Some(Self::new(functions, choice, allowed, parallel)))
    }
}

/// One entry of `tools`.
fn function(at: &str, tool: Value) -> Result<Function, ApiError> {
    let original = tool.clone();
    let mut tool = Fields::object(at, tool)?;
    check_type(&mut tool, "function")?;
    let at = tool.path("function");
    let mut fields = tool.take_object("function")?.ok_or_else(|| missing(&at, "an object with the function's name"))?;
    let name = name(&mut fields)?;
    let description = fields.take_string("description")?;
    let strict = fields.take_flag("strict")?.unwrap_or(false);
    let parameters_at = fields.path("parameters");
    let parameters = match fields.take("parameters") {
        None => None,
        Some(Value::Object(schema)) => {
            check_schema(&parameters_at, &schema)?;
            Some(schema)
        }
        Some(other) => return Err(ParameterError::invalid(&parameters_at, other, "a JSON Schema of an object").into()),
    };
    let mut described = Map::new();
    described.insert("name".to_owned(), name.clone().into());
    described.extend(description.map(|description| ("description".to_owned(), description.into())));
    described.extend(parameters.clone().map(|schema| ("parameters".to_owned(), schema.into())));
    let schema = closed(parameters.unwrap_or_default());
    let schema = inline_schema(&schema.into(), strict).map_err(|error| {
        let reason = match error {
            SchemaError::InvalidSchema { path, reason } => format!("{reason}, at {path}"),
            other => other.to_string(),
        };
        let detail = format!("`{parameters_at}` can't be used: {reason}");
        ApiError::bad_request(detail).with_code("invalid_json_schema").with_param(&parameters_at)
    })?;
    Ok(Function { name, described, schema, original })
}

fn check_type(fields: &mut Fields, wanted: &str) -> Result<(), ApiError> {
    let at = fields.path("type");
    let allowed = format!("\"{wanted}\"");
    match fields.take_string("type")? {
        None => Err(missing(&at, &allowed)),
        Some(kind) if kind == wanted => Ok(()),
        Some(kind) => Err(ParameterError::invalid(&at, Value::from(kind), allowed).into()),
    }
}

fn name(fields: &mut Fields) -> Result<String, ApiError> {
    let at = fields.path("name");
    let allowed = format!("1 to {MAX_NAME} of the characters A-Z, a-z, 0-9, _ and -");
    let name = fields.take_string("name")?.ok_or_else(|| missing(&at, &allowed))?;
    let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(good) {
        return Err(ParameterError::invalid(&at, Value::from(name), allowed).into());
    }
    Ok(name)
}

/// Arguments are an object.
fn check_schema(at: &str, schema: &Map<String, Value>) -> Result<(), ApiError> {
    match schema.get("type") {
        None => Ok(()),
        Some(Value::String(kind)) if kind == "object" => Ok(()),
        Some(other) => Err(ParameterError::invalid(&format!("{at}.type"), other, "\"object\"").into()),
    }
}

/// The schema that arguments follow. Where it lists properties and says nothing of others, there are no others: whatever fits this
/// fits the original, and a small model invents no arguments.
fn closed(mut schema: Map<String, Value>) -> Map<String, Value> {
    const OTHERS: [&str; 13] = [
        "additionalProperties",
        "unevaluatedProperties",
        "patternProperties",
        "propertyNames",
        "minProperties",
        "dependentSchemas",
        "dependencies",
        "allOf",
        "anyOf",
        "oneOf",
        "if",
        "$ref",
        "$dynamicRef",
    ];
    if schema.is_empty() {
        schema.insert("properties".to_owned(), json!({}));
    }
    let composed =
        ["allOf", "anyOf", "oneOf", "$ref", "$dynamicRef"].iter().any(|keyword| schema.contains_key(*keyword));
    if !composed {
        schema.entry("type").or_insert_with(|| "object".into());
    }
    let properties = schema.get("properties").and_then(Value::as_object);
    let names = |keyword: &str| schema.get(keyword).and_then(Value::as_array).into_iter().flatten();
    let complete = properties.is_some_and(|properties| {
        names("required").filter_map(Value::as_str).all(|required| properties.contains_key(required))
    });
    if complete && !OTHERS.iter().any(|keyword| schema.contains_key(*keyword)) {
        schema.insert("additionalProperties".to_owned(), false.into());
    }
    schema
}

/// What to call, and the functions that may be called where these are not all.
fn parse_choice(at: &str, choice: Value, functions: &[Function]) -> Result<(Choice, Option<Vec<usize>>), ApiError> {
    let choice = match choice {
        Value::String(choice) => {
            return match choice.as_str() {
                "none" => Ok((Choice::None, None)),
                "auto" => Ok((Choice::Auto, None)),
                "required" => Ok((Choice::Required, None)),
                _ => Err(ParameterError::invalid(at, Value::from(choice), CHOICES).into()),
            };
        }
        choice @ Value::Object(_) => choice,
        other => return Err(ParameterError::invalid(at, other, CHOICES).into()),
    };
    let mut fields = Fields::object(at, choice)?;
    let kind_at = fields.path("type");
    match fields.take_string("type")?.as_deref() {
        Some("function") => Ok((Choice::Named, Some(vec![named(&mut fields, functions)?]))),
        Some("allowed_tools") => {
            let list_at = fields.path("allowed_tools");
            let mut fields = fields.take_object("allowed_tools")?.ok_or_else(|| missing(&list_at, "an object"))?;
            let mode_at = fields.path("mode");
            let choice = match fields.take_string("mode")?.as_deref() {
                Some("auto") => Choice::Auto,
                Some("required") => Choice::Required,
                Some(other) => {
                    return Err(
                        ParameterError::invalid(&mode_at, Value::from(other), "\"auto\" or \"required\"").into()
                    );
                }
                None => return Err(missing(&mode_at, "\"auto\" or \"required\"")),
            };
            let tools_at = fields.path("tools");
            let tools = fields.take_list("tools")?.unwrap_or_default();
            if tools.is_empty() {
                return Err(missing(&tools_at, "a list of functions"));
            }
            let mut allowed = Vec::new();
            for (index, tool) in tools.into_iter().enumerate() {
                let mut tool = Fields::object(&format!("{tools_at}[{index}]"), tool)?;
                check_type(&mut tool, "function")?;
                allowed.push(named(&mut tool, functions)?);
            }
            allowed.sort_unstable();
            allowed.dedup();
            Ok((choice, Some(allowed)))
        }
        Some(other) => {
            Err(ParameterError::invalid(&kind_at, Value::from(other), "\"function\" or \"allowed_tools\"").into())
        }
        None => Err(missing(&kind_at, "\"function\" or \"allowed_tools\"")),
    }
}

/// The function that `{"function": {"name"}}` names.
fn named(fields: &mut Fields, functions: &[Function]) -> Result<usize, ApiError> {
    let at = fields.path("function");
    let mut fields =
        fields.take_object("function")?.ok_or_else(|| missing(&at, "an object with the function's name"))?;
    let at = fields.path("name");
    let name = fields.take_string("name")?.ok_or_else(|| missing(&at, "the name of a function in `tools`"))?;
    let found = functions.iter().position(|function| function.name == name);
    found.ok_or_else(|| {
        let names: Vec<&str> = functions.iter().map(|function| function.name.as_str()).collect();
        let allowed = format!("the name of a function in `tools`: {}", names.join(", "));
        ParameterError::invalid(&at, Value::from(name), allowed).into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: Value) -> Result<Option<Tools>, ApiError> {
        Tools::parse(&mut Fields::root(body.as_object().unwrap().clone()))
    }

    fn tool(name: &str) -> Value {
        json!({"type": "function", "function": {"name": name}})
    }

    #[test]
    fn an_empty_list_is_no_tools() {
        for choice in [json!(null), json!("none"), json!("auto")] {
            assert!(parse(json!({"tools": [], "tool_choice": choice})).unwrap().is_none(), "{choice}");
        }
        assert!(parse(json!({"tools": [], "tool_choice": "required"})).is_err());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let function = |function: Value| json!({"tools": [tool("a"), {"type": "function", "function": function}]});
        let choice = |choice: Value| json!({"tools": [tool("a"), tool("b")], "tool_choice": choice});
        let long = "a".repeat(65);
        let many: Vec<Value> = (0..129).map(|index| tool(&format!("f{index}"))).collect();
        for (body, sentence) in [
            (json!({"tools": {}}), "`tools` is {}: it must be a list."),
            (json!({ "tools": many }), "`tools` is a list of 129: it must be a list of up to 128 functions."),
            (json!({"tools": ["a"]}), "`tools[0]` is \"a\": it must be an object."),
            (json!({"tools": [{"function": {"name": "a"}}]}), "`tools[0].type` is missing: it must be \"function\"."),
            (json!({"tools": [{"type": "custom"}]}), "`tools[0].type` is \"custom\": it must be \"function\"."),
            (
                json!({"tools": [{"type": "function", "name": "a"}]}),
                "`tools[0].function` is missing: it must be an object with the function's name.",
            ),
            (
                function(json!({})),
                "`tools[1].function.name` is missing: it must be 1 to 64 of the characters A-Z, a-z, 0-9, _ and -.",
            ),
            (
                function(json!({"name": ""})),
                "`tools[1].function.name` is \"\": it must be 1 to 64 of the characters A-Z, a-z, 0-9, _ and -.",
            ),
            (
                function(json!({"name": "get.weather"})),
                "`tools[1].function.name` is \"get.weather\": it must be 1 to 64 of the characters A-Z, a-z, 0-9, _ and -.",
            ),
            (
                function(json!({"name": "gr\u{fc}n"})),
                "`tools[1].function.name` is \"gr\u{fc}n\": it must be 1 to 64 of the characters A-Z, a-z, 0-9, _ and -.",
            ),
            (
                function(json!({ "name": long })),
                &format!(
                    "`tools[1].function.name` is \"{long}\": it must be 1 to 64 of the characters A-Z, a-z, 0-9, _ and -."
                ),
            ),
            (
                function(json!({"name": "a"})),
                "`tools[1].function.name` is \"a\": it must be another name than those of the functions before.",
            ),
            (
                function(json!({"name": "b", "description": 1})),
                "`tools[1].function.description` is 1: it must be a string.",
            ),
            (
                function(json!({"name": "b", "strict": "yes"})),
                "`tools[1].function.strict` is \"yes\": it must be true or false.",
            ),
            (
                function(json!({"name": "b", "parameters": [1]})),
                "`tools[1].function.parameters` is [1]: it must be a JSON Schema of an object.",
            ),
            (
                function(json!({"name": "b", "parameters": {"type": "string"}})),
                "`tools[1].function.parameters.type` is \"string\": it must be \"object\".",
            ),
            (
                function(json!({"name": "b", "strict": true, "parameters": {"properties": {"a": {"not": {}}}}})),
                "`tools[1].function.parameters` can't be used: the keyword `not` is not supported, at #/properties/a/not.",
            ),
            (
                function(json!({"name": "b", "parameters": {"properties": {"a": 1}}})),
                "`tools[1].function.parameters` can't be used: a schema is an object or a boolean, not a number, at #/properties/a.",
            ),
            (
                choice(json!("any")),
                "`tool_choice` is \"any\": it must be \"none\", \"auto\", \"required\" or a function.",
            ),
            (choice(json!(true)), "`tool_choice` is true: it must be \"none\", \"auto\", \"required\" or a function."),
            (choice(json!({})), "`tool_choice.type` is missing: it must be \"function\" or \"allowed_tools\"."),
            (
                choice(json!({"type": "file_search"})),
                "`tool_choice.type` is \"file_search\": it must be \"function\" or \"allowed_tools\".",
            ),
            (
                choice(json!({"type": "function"})),
                "`tool_choice.function` is missing: it must be an object with the function's name.",
            ),
            (
                choice(json!({"type": "function", "function": {"name": "c"}})),
                "`tool_choice.function.name` is \"c\": it must be the name of a function in `tools`: a, b.",
            ),
            (
                choice(json!({"type": "allowed_tools", "allowed_tools": {"mode": "none", "tools": [tool("a")]}})),
                "`tool_choice.allowed_tools.mode` is \"none\": it must be \"auto\" or \"required\".",
            ),
            (
                choice(
                    json!({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [tool("a"), tool("z")]}}),
                ),
                "`tool_choice.allowed_tools.tools[1].function.name` is \"z\": it must be the name of a function in `tools`: a, b.",
            ),
            (
                json!({"tool_choice": "required"}),
                "`tool_choice` is \"required\": it must be absent, \"none\" or \"auto\" where `tools` is missing or empty.",
            ),
            (
                json!({"tools": [tool("a")], "parallel_tool_calls": 1}),
                "`parallel_tool_calls` is 1: it must be true or false.",
            ),
        ] {
            let error = parse(body.clone()).unwrap_err();
            assert_eq!(error.detail(), sentence, "{body}");
            assert!([400, 422].contains(&error.status().as_u16()), "{body}");
        }
    }

    #[test]
    fn choices_say_what_may_be_called() {
        for (choice, parallel, expected) in [
            (Value::Null, json!(null), (Choice::Auto, "a b", true)),
            (json!("auto"), json!(true), (Choice::Auto, "a b", true)),
            (json!("none"), json!(null), (Choice::None, "a b", true)),
            (json!("required"), json!(false), (Choice::Required, "a b", false)),
            (json!({"type": "function", "function": {"name": "b"}}), json!(null), (Choice::Named, "b", true)),
            (
                json!({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [tool("b"), tool("b")]}}),
                json!(null),
                (Choice::Required, "b", true),
            ),
        ] {
            let body = json!({"tools": [tool("a"), tool("b")], "tool_choice": choice, "parallel_tool_calls": parallel});
            let tools = parse(body).unwrap().unwrap();
            let names: Vec<&str> = tools.callable().map(|(_, function)| function.name.as_str()).collect();
            assert_eq!((tools.choice, names.join(" ").as_str(), tools.parallel), expected);
        }
        for body in [json!({}), json!({"tools": null, "tool_choice": "auto"}), json!({"tool_choice": "none"})] {
            assert!(parse(body).unwrap().is_none());
        }
    }

    #[test]
    fn a_list_of_properties_is_complete_unless_the_schema_says_otherwise() {
        let none = || json!({"properties": {}, "type": "object", "additionalProperties": false});
        for (schema, expected) in [
            (json!({}), none()),
            (json!({"type": "object"}), json!({"type": "object"})),
            (json!({"properties": {}}), none()),
            (
                json!({"properties": {"a": {}}, "required": ["a"]}),
                json!({"properties": {"a": {}}, "required": ["a"], "type": "object", "additionalProperties": false}),
            ),
            // No object would fit it otherwise.
            (
                json!({"properties": {"a": {}}, "required": ["b"]}),
                json!({"properties": {"a": {}}, "required": ["b"], "type": "object"}),
            ),
            (
                json!({"properties": {"a": {}}, "additionalProperties": true}),
                json!({"properties": {"a": {}}, "additionalProperties": true, "type": "object"}),
            ),
            (
                json!({"properties": {"a": {}}, "patternProperties": {}}),
                json!({"properties": {"a": {}}, "patternProperties": {}, "type": "object"}),
            ),
            (json!({"$ref": "#/$defs/a", "$defs": {"a": {}}}), json!({"$ref": "#/$defs/a", "$defs": {"a": {}}})),
            (json!({"anyOf": [{}]}), json!({"anyOf": [{}]})),
        ] {
            assert_eq!(Value::Object(closed(schema.as_object().unwrap().clone())), expected, "{schema}");
        }
    }
}

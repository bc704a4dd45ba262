//! Tools as Anthropic's API has them.

use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::fields::{self, Fields};
use crate::openai::tools::Tools;

/// Our names of fields within tools, and Anthropic's.
const NAMES: &[(&str, &str)] = &[(".function.parameters", ".input_schema"), (".function.", ".")];
const CHOICES: &str = "\"auto\", \"any\", \"tool\" or \"none\"";

/// Reads `tools` and `tool_choice`.
///
/// # Errors
/// 400 for tools that the server would have to run, and for what is wrong with the others.
pub(super) fn take(body: &mut Fields) -> Result<Option<Tools>, ApiError> {
    let at = body.path("tools");
    // Clients that have no tools send an empty list.
    let list = body.take_list("tools")?.unwrap_or_default();
    let mut nested = Map::new();
    if let Some(choice) = body.take_object("tool_choice")? {
        take_choice(choice, &mut nested)?;
    }
    if list.is_empty() {
        return match nested.get("tool_choice").and_then(Value::as_str) {
            None if nested.contains_key("tool_choice") => Err(no_tools()),
            Some("required") => Err(no_tools()),
            _ => Ok(None),
        };
    }
    let tools: Vec<Value> =
        list.into_iter().enumerate().map(|(i, tool)| nest(&format!("{at}[{i}]"), tool)).collect::<Result<_, _>>()?;
    nested.insert("tools".to_owned(), tools.into());
    Tools::parse(&mut Fields::root(nested)).map_err(|error| error.renamed(NAMES))
}

fn no_tools() -> ApiError {
    ApiError::bad_request("`tool_choice` asks for a call, but there are no `tools`.").with_param("tool_choice")
}

fn take_choice(mut choice: Fields, nested: &mut Map<String, Value>) -> Result<(), ApiError> {
    let at = choice.path("type");
    let kind = choice.take_string("type")?.ok_or_else(|| fields::missing(&at, CHOICES))?;
    let chosen = match kind.as_str() {
        "auto" | "none" => kind.into(),
        "any" => "required".into(),
        "tool" => {
            let at = choice.path("name");
            let name =
                choice.take_string("name")?.ok_or_else(|| fields::missing(&at, "the name of a tool in `tools`"))?;
            json!({ "type": "function", "function": { "name": name } })
        }
        other => {
            return Err(fields::unknown_value(&at, other, CHOICES));
        }
    };
    nested.insert("tool_choice".to_owned(), chosen);
    if choice.take_flag("disable_parallel_tool_use")?.unwrap_or(false) {
        nested.insert("parallel_tool_calls".to_owned(), false.into());
    }
    Ok(())
}

/// A tool as chat completions have it.
fn nest(at: &str, tool: Value) -> Result<Value, ApiError> {
    let mut tool = Fields::object(at, tool)?;
    let kind_at = tool.path("type");
    if let Some(kind) = tool.take_string("type")?.filter(|kind| kind != "custom") {
        let shown: String = kind.chars().take(60).collect();
        let detail =
            format!("`{kind_at}` is \"{shown}\": this server has no tools of its own, only \"custom\" is supported.");
        return Err(ApiError::bad_request(detail).with_param(kind_at));
    }
    let schema_at = tool.path("input_schema");
    let schema = tool.take("input_schema").ok_or_else(|| fields::missing(&schema_at, "a JSON Schema of an object"))?;
    let mut function = Map::new();
    for name in ["name", "description", "strict"] {
        function.extend(tool.take(name).map(|value| (name.to_owned(), value)));
    }
    function.insert("parameters".to_owned(), schema);
    Ok(json!({ "type": "function", "function": function }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: Value) -> Result<Option<Tools>, ApiError> {
        take(&mut Fields::root(body.as_object().unwrap().clone()))
    }

    fn tool(name: &str) -> Value {
        json!({ "name": name, "description": "d", "input_schema": { "type": "object" } })
    }

    #[test]
    fn choices_have_other_names() {
        assert!(read(json!({})).unwrap().is_none());
        assert!(read(json!({ "tools": [], "tool_choice": { "type": "auto" } })).unwrap().is_none());
        for choice in [
            json!({ "type": "auto", "disable_parallel_tool_use": true }),
            json!({ "type": "any" }),
            json!({ "type": "none" }),
            json!({ "type": "tool", "name": "f" }),
        ] {
            let body = json!({ "tools": [tool("f"), tool("g")], "tool_choice": choice });
            assert!(read(body).unwrap().is_some(), "{choice}");
        }
    }

    #[test]
    fn errors_name_the_place_where_it_stands() {
        for (body, start) in [
            (json!({ "tools": [5] }), "`tools[0]` is 5"),
            (json!({ "tools": [{ "type": "bash_20250124", "name": "bash" }] }), "`tools[0].type` is \"bash_20250124\""),
            (json!({ "tools": [{ "name": "f" }] }), "`tools[0].input_schema` is missing"),
            (json!({ "tools": [{ "input_schema": {} }] }), "`tools[0].name` is missing"),
            (json!({ "tools": [tool("a b")] }), "`tools[0].name` is \"a b\""),
            (
                json!({ "tools": [{ "name": "f", "input_schema": { "type": "string" } }] }),
                "`tools[0].input_schema.type` is \"string\"",
            ),
            (json!({ "tools": [tool("f")], "tool_choice": { "type": "all" } }), "`tool_choice.type` is \"all\""),
            (
                json!({ "tools": [tool("f")], "tool_choice": { "type": "tool", "name": "g" } }),
                "`tool_choice.name` is \"g\"",
            ),
            (json!({ "tool_choice": { "type": "any" } }), "`tool_choice` asks for a call"),
        ] {
            let error = read(body.clone()).unwrap_err();
            assert!(error.detail().starts_with(start), "{body}: {}", error.detail());
        }
    }
}

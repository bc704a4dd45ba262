//! Tools as responses have them: a function is not an object of its own within a tool.

use serde_json::{Map, Value, json};

use super::super::tools::Tools;
use crate::error::ApiError;
use crate::fields::{self, Fields};

/// The tools of a request, and how its response says them again.
#[derive(Debug)]
pub(super) struct Given {
    pub(super) parsed: Option<Tools>,
    pub(super) list: Vec<Value>,
    pub(super) choice: Value,
    pub(super) parallel: bool,
}

/// Reads `tools`, `tool_choice` and `parallel_tool_calls`.
///
/// # Errors
/// 400 for tools that are no functions, and for what is wrong with those that are.
pub(super) fn take(body: &mut Fields) -> Result<Given, ApiError> {
    let parallel = body.take_flag("parallel_tool_calls")?.unwrap_or(true);
    let at = body.path("tools");
    // Clients that have no tools send an empty list.
    let list = body.take_list("tools")?.unwrap_or_default();
    let choice = body.take("tool_choice");
    let mut nested = Map::new();
    nested.insert("parallel_tool_calls".to_owned(), parallel.into());
    if !list.is_empty() {
        let tools: Vec<Value> = list
            .iter()
            .enumerate()
            .map(|(i, tool)| nest_tool(&format!("{at}[{i}]"), tool))
            .collect::<Result<_, _>>()?;
        nested.insert("tools".to_owned(), tools.into());
    }
    if let Some(choice) = &choice {
        nested.insert("tool_choice".to_owned(), nest_choice(choice));
    }
    let parsed = Tools::parse(&mut Fields::root(nested))
        .map_err(|error| error.renamed(&[(".function.", "."), ("tool_choice.allowed_tools.", "tool_choice.")]))?;
    Ok(Given { parsed, list, choice: choice.unwrap_or_else(|| "auto".into()), parallel })
}

/// A tool as chat completions have it.
fn nest_tool(at: &str, tool: &Value) -> Result<Value, ApiError> {
    let Value::Object(fields) = tool else { return Err(fields::wrong_shape(at, "an object", tool)) };
    let kind_at = format!("{at}.type");
    match fields.get("type") {
        Some(Value::String(kind)) if kind == "function" => {}
        Some(Value::String(kind)) => {
            let shown: String = kind.chars().take(60).collect();
            let detail = format!(
                "`{kind_at}` is \"{shown}\": this server has no tools of its own, only \"function\" is supported."
            );
            return Err(ApiError::bad_request(detail).with_code("unsupported_parameter").with_param(kind_at));
        }
        Some(other) => return Err(fields::wrong_shape(&kind_at, "\"function\"", other)),
        None => return Err(fields::missing(&kind_at, "\"function\"")),
    }
    let mut function = fields.clone();
    function.remove("type");
    Ok(json!({ "type": "function", "function": function }))
}

/// A choice as chat completions have it.
fn nest_choice(choice: &Value) -> Value {
    let Value::Object(fields) = choice else { return choice.clone() };
    let nest = |fields: &Map<String, Value>| {
        let mut rest = fields.clone();
        let kind = rest.remove("type");
        json!({ "type": kind, "function": rest })
    };
    match fields.get("type").and_then(Value::as_str) {
        Some("function") => nest(fields),
        Some("allowed_tools") => {
            let tools = fields.get("tools").and_then(Value::as_array);
            let tools = tools
                .map(|tools| tools.iter().map(|tool| tool.as_object().map_or_else(|| tool.clone(), nest)).collect());
            let tools: Option<Vec<Value>> = tools;
            json!({ "type": "allowed_tools", "allowed_tools": { "mode": fields.get("mode"), "tools": tools } })
        }
        _ => choice.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: Value) -> Result<Given, ApiError> {
        take(&mut Fields::root(body.as_object().unwrap().clone()))
    }

    fn function(name: &str) -> Value {
        json!({ "type": "function", "name": name, "parameters": { "type": "object" }, "strict": true })
    }

    #[test]
    fn functions_are_flat() {
        let none = read(json!({ "tools": [] })).unwrap();
        assert!(none.parsed.is_none() && none.list.is_empty() && none.choice == "auto" && none.parallel);
        for choice in [
            json!("required"),
            json!({ "type": "function", "name": "g" }),
            json!({ "type": "allowed_tools", "mode": "auto", "tools": [{ "type": "function", "name": "g" }] }),
        ] {
            let body =
                json!({ "tools": [function("f"), function("g")], "tool_choice": choice, "parallel_tool_calls": false });
            let given = read(body).unwrap();
            assert!(given.parsed.is_some(), "{choice}");
            assert_eq!((given.list.len(), given.choice, given.parallel), (2, choice, false));
        }
    }

    #[test]
    fn errors_name_the_place_where_it_stands() {
        for (body, start) in [
            (json!({ "tools": [5] }), "`tools[0]` is 5"),
            (json!({ "tools": [{ "name": "f" }] }), "`tools[0].type` is missing"),
            (json!({ "tools": [{ "type": "web_search" }] }), "`tools[0].type` is \"web_search\""),
            (json!({ "tools": [{ "type": "function" }] }), "`tools[0].name` is missing"),
            (json!({ "tools": [function("a b")] }), "`tools[0].name` is \"a b\""),
            (json!({ "tools": [function("f")], "tool_choice": "all" }), "`tool_choice` is \"all\""),
            (
                json!({ "tools": [function("f")], "tool_choice": { "type": "function", "name": "g" } }),
                "`tool_choice.name` is \"g\"",
            ),
            (json!({ "tool_choice": "required" }), "`tool_choice` is \"required\""),
        ] {
            let error = read(body.clone()).unwrap_err();
            assert!(error.detail().starts_with(start), "{body}: {}", error.detail());
        }
    }
}

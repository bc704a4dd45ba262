//! The document itself, in OpenAPI 3.2, which is the first to describe the pieces of answers that stream.

use std::sync::OnceLock;

use schemars::generate::{SchemaGenerator, SchemaSettings};
use serde_json::{Map, Value, json};

use super::operations::{Body, Event, OPERATIONS, Operation, Pieces, Stream};
use super::types::{AnthropicError, KaitoError, OllamaError, OpenAiError};
use crate::routes::{Access, Family, ROUTES, Route, Verb};

/// The ways in which a request may show a key.
const KEYS: [(&str, &str); 2] = [("x-api-key", "xApiKey"), ("api-key", "apiKey")];

/// The document of a server, which asks for a key or not.
pub(super) fn text(asks_for_key: bool) -> &'static str {
    static TEXTS: [OnceLock<String>; 2] = [OnceLock::new(), OnceLock::new()];
    let [open, closed] = &TEXTS;
    let text = if asks_for_key { closed } else { open };
    text.get_or_init(|| document(asks_for_key).to_string())
}

fn document(asks_for_key: bool) -> Value {
    let mut generator = SchemaSettings::draft2020_12()
        .with(|settings| {
            settings.definitions_path = "/components/schemas".into();
            settings.meta_schema = None;
        })
        .into_generator();
    let mut paths = Map::new();
    for route in ROUTES {
        let Some((operation, alias)) = find(route) else { continue };
        let written = write(route, operation, alias, asks_for_key, &mut generator);
        let (path, _) = template(route.path);
        let entry = paths.entry(path).or_insert_with(|| json!({}));
        if let Value::Object(verbs) = entry {
            verbs.insert(verb(route.verb).to_owned(), written);
        }
    }
    let mut schemes = Map::new();
    schemes.insert("bearer".to_owned(), json!({ "type": "http", "scheme": "bearer" }));
    for (header, name) in KEYS {
        schemes.insert(name.to_owned(), json!({ "type": "apiKey", "in": "header", "name": header }));
    }
    let mut tags: Vec<&str> = Vec::new();
    for operation in OPERATIONS {
        if !tags.contains(&operation.tag) {
            tags.push(operation.tag);
        }
    }
    let schemas: Map<String, Value> = generator.take_definitions(true).into_iter().collect();
    json!({
        "openapi": "3.2.0",
        "info": {
            "title": "Kaito",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "A model over HTTP: the OpenAI API, the Messages API of Anthropic, Ollama's, and Kaito's own.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "tags": tags.into_iter().map(|name| json!({ "name": name })).collect::<Vec<_>>(),
        "paths": paths,
        "components": { "schemas": schemas, "securitySchemes": schemes },
    })
}

/// What a route does, and whether it is another name of a route.
fn find(route: &Route) -> Option<(&'static Operation, usize)> {
    OPERATIONS.iter().filter(|operation| operation.verb == route.verb).find_map(|operation| {
        let alias = operation.paths.iter().position(|path| *path == route.path)?;
        Some((operation, alias))
    })
}

fn verb(verb: Verb) -> &'static str {
    match verb {
        Verb::Get => "get",
        Verb::Post => "post",
    }
}

/// A path as OpenAPI writes it, and its parameter.
fn template(path: &str) -> (String, Option<&str>) {
    let parameter = path.split_once('{').and_then(|(_, rest)| rest.split_once('}'));
    (path.replace("{*", "{"), parameter.map(|(name, _)| name.trim_start_matches('*')))
}

fn write(
    route: &Route,
    operation: &Operation,
    alias: usize,
    asks_for_key: bool,
    generator: &mut SchemaGenerator,
) -> Value {
    let id = if alias == 0 { operation.id.to_owned() } else { format!("{}Alias{alias}", operation.id) };
    let mut written = json!({
        "operationId": id,
        "summary": operation.summary,
        "tags": [operation.tag],
        "responses": responses(route.family, operation, generator),
    });
    let Value::Object(fields) = &mut written else { return written };
    if alias > 0 {
        let first = operation.paths.first().copied().unwrap_or_default();
        fields.insert("description".to_owned(), format!("Another name of `{first}`.").into());
    }
    if let (_, Some(name)) = template(route.path) {
        let parameter = json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } });
        fields.insert("parameters".to_owned(), json!([parameter]));
    }
    if let Some(body) = operation.request {
        let schema = body(generator);
        let content = json!({ "application/json": { "schema": schema } });
        fields.insert("requestBody".to_owned(), json!({ "required": true, "content": content }));
    }
    let security = if asks_for_key && route.access != Access::Open {
        let names = ["bearer"].into_iter().chain(KEYS.map(|(_, name)| name));
        names.map(|name| json!({ name: [] })).collect()
    } else {
        Vec::new()
    };
    fields.insert("security".to_owned(), security.into());
    written
}

fn responses(family: Family, operation: &Operation, generator: &mut SchemaGenerator) -> Value {
    let mut content = Map::new();
    match operation.answer {
        Body::Json(schema) => {
            content.insert("application/json".to_owned(), json!({ "schema": schema(generator) }));
        }
        Body::Text(types) => {
            for kind in types {
                content.insert((*kind).to_owned(), json!({ "schema": { "type": "string" } }));
            }
        }
        Body::Empty => {}
    }
    if let Some(Stream { about, pieces }) = operation.stream {
        let (kind, mut piece) = match pieces {
            Pieces::Events(kinds) => {
                let kinds: Vec<Value> = kinds.iter().map(|kind| event(*kind, generator)).collect();
                ("text/event-stream", json!({ "anyOf": kinds }))
            }
            Pieces::Lines(line) => {
                let kinds = [line(generator), generator.subschema_for::<OllamaError>()];
                ("application/x-ndjson", json!({ "anyOf": kinds }))
            }
        };
        piece["description"] = about.into();
        content.insert(kind.to_owned(), json!({ "itemSchema": piece }));
    }
    let mut success = json!({ "description": "Done." });
    if let (false, Value::Object(fields)) = (content.is_empty(), &mut success) {
        fields.insert("content".to_owned(), content.into());
    }
    let error = match (&operation.answer, family) {
        // Probes read the status alone; that there is no such method is said all the same.
        (Body::Empty, _) => json!({ "description": "Not fit to answer." }),
        (_, Family::Kaito) => failure(generator.subschema_for::<KaitoError>()),
        (_, Family::OpenAi) => failure(generator.subschema_for::<OpenAiError>()),
        (_, Family::Anthropic) => failure(generator.subschema_for::<AnthropicError>()),
        (_, Family::Ollama) => failure(generator.subschema_for::<OllamaError>()),
    };
    json!({ "200": success, "4XX": error, "5XX": error })
}

/// A server-sent event as OpenAPI has it: an object of its fields, all of which are strings.
fn event(event: Event, generator: &mut SchemaGenerator) -> Value {
    let (name, data) = match event {
        Event::Json(name, schema) => {
            let schema = schema(generator);
            let data = json!({ "type": "string", "contentMediaType": "application/json", "contentSchema": schema });
            (name, data)
        }
        Event::Last(text) => (None, json!({ "const": text })),
    };
    match name {
        Some(name) => json!({
            "type": "object",
            "required": ["event", "data"],
            "properties": { "event": { "const": name }, "data": data },
        }),
        None => json!({ "type": "object", "required": ["data"], "properties": { "data": data } }),
    }
}

fn failure(schema: schemars::Schema) -> Value {
    json!({
        "description": "Refused or failed: one sentence says why.",
        "content": { "application/json": { "schema": schema } },
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_route_is_described_once() {
        for route in ROUTES {
            assert!(find(route).is_some(), "{:?} {} has no entry in operations.rs", route.verb, route.path);
        }
        let document = document(true);
        let mut ids = BTreeSet::new();
        for (path, verbs) in document["paths"].as_object().unwrap() {
            for (verb, operation) in verbs.as_object().unwrap() {
                assert!(ids.insert(operation["operationId"].as_str().unwrap().to_owned()), "{verb} {path}");
            }
        }
        assert_eq!(ids.len(), ROUTES.len());
    }

    #[test]
    fn references_lead_somewhere() {
        fn references<'a>(value: &'a Value, found: &mut BTreeSet<&'a str>) {
            match value {
                Value::Object(fields) => {
                    found.extend(fields.get("$ref").and_then(Value::as_str));
                    fields.values().for_each(|value| references(value, found));
                }
                Value::Array(items) => items.iter().for_each(|item| references(item, found)),
                _ => {}
            }
        }
        let document = document(false);
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        assert!(found.len() > 5, "{found:?}");
        for reference in found {
            let pointer = reference.strip_prefix('#').unwrap_or_else(|| panic!("{reference} leads outside"));
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
    }

    #[test]
    fn a_key_is_asked_for_where_it_is() {
        let asked = |asks_for_key: bool, path: &str, verb: &str| {
            let document = document(asks_for_key);
            document["paths"][path][verb]["security"].as_array().unwrap().len()
        };
        assert_eq!((asked(true, "/chat", "post"), asked(false, "/chat", "post")), (3, 0));
        for open in ["/", "/health", "/healthz", "/ping", "/version", "/metrics"] {
            assert_eq!(asked(true, open, "get"), 0, "{open}");
        }
    }
}

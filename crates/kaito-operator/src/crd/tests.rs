use kube_cel::{ErrorKind, Validator, compile_schema, estimate_rule_cost};
use serde_json::{Value, json};

use super::*;
use crate::{workspace::strict, yaml};

fn schema() -> Value {
    let definition = serde_json::to_value(custom_resource_definition()).unwrap();
    definition["spec"]["versions"][1]["schema"]["openAPIV3Schema"].clone()
}

/// Every schema in a schema, with its path.
fn walk<'a>(path: &str, schema: &'a Value, visit: &mut dyn FnMut(&str, &'a Value)) {
    visit(path, schema);
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        walk(&format!("{path}.{name}"), field, visit);
    }
    for (name, suffix) in [("items", "[]"), ("additionalProperties", "{}")] {
        if let Some(inner) = schema.get(name) {
            walk(&format!("{path}{suffix}"), inner, visit);
        }
    }
}

/// The API server's conditions for a structural schema: https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema
#[test]
fn the_schema_is_structural() {
    let schema = schema();
    walk("", &schema, &mut |path, schema| {
        let type_ = schema["type"].as_str().unwrap_or_else(|| panic!("{path} has no type"));
        assert!(["object", "array", "string", "integer"].contains(&type_), "{path}: {type_}");
        assert_eq!(schema.get("items").is_some(), type_ == "array", "{path}");
        assert!(
            schema.get("properties").is_none() || schema.get("additionalProperties").is_none(),
            "{path} has both properties and additionalProperties"
        );
        for forbidden in [
            "$ref",
            "definitions",
            "dependencies",
            "deprecated",
            "discriminator",
            "id",
            "patternProperties",
            "readOnly",
            "writeOnly",
            "xml",
            "uniqueItems",
            "anyOf",
            "allOf",
            "oneOf",
            "not",
        ] {
            assert!(schema.get(forbidden).is_none(), "{path} has {forbidden}");
        }
        for required in schema["required"].as_array().into_iter().flatten() {
            assert!(schema["properties"].get(required.as_str().unwrap()).is_some(), "{path} requires {required}");
        }
    });
    assert_eq!(schema["properties"]["metadata"], json!({"type": "object", "properties": {"name": {"type": "string"}}}));
}

#[test]
fn every_field_is_described_in_sentences() {
    let schema = schema();
    walk("", &schema, &mut |path, schema| {
        if !path.starts_with(".metadata") {
            let text = schema["description"].as_str().unwrap_or_else(|| panic!("{path} has no description"));
            assert!(text.ends_with('.') || text.ends_with(')'), "{path}: {text}");
            assert!(text.starts_with(char::is_alphanumeric) && !text.contains("  "), "{path}: {text}");
        }
    });
}

/// A value for a schema, with every field.
fn whole(path: &str, schema: &Value) -> Value {
    match schema["type"].as_str().unwrap() {
        // What the API server leaves open is filled in as the types know it.
        "object" if path.ends_with("volumeSource") => json!({"emptyDir": {}}),
        "object" => {
            let mut object = serde_json::Map::new();
            for (name, field) in schema["properties"].as_object().into_iter().flatten() {
                object.insert(name.clone(), whole(&format!("{path}.{name}"), field));
            }
            if let Some(values) = schema.get("additionalProperties") {
                object.insert("key".to_owned(), whole(path, values));
            }
            Value::Object(object)
        }
        "array" => json!([whole(path, &schema["items"])]),
        "integer" => json!(1),
        _ if path == ".apiVersion" => json!("kaito.sh/v1beta1"),
        _ if path == ".kind" => json!("Workspace"),
        _ if path == ".status.state" => json!("Ready"),
        _ if schema["format"] == "date-time" => json!("2026-01-01T00:00:00Z"),
        _ => schema["enum"][0].as_str().map_or_else(|| json!("1"), |value| json!(value)),
    }
}

#[test]
fn the_types_and_the_schema_have_the_same_fields() {
    let schema = schema();
    let value = whole("", &schema);
    let read = strict::read(&value).unwrap();
    assert_eq!(read.unknown_fields, [""; 0], "in the schema, not in the types");
    // Whatever the types did not read, they cannot write.
    let mut written = serde_json::to_value(read.object).unwrap();
    written["metadata"] = value["metadata"].clone();
    assert_eq!(written, value, "in the types, not in the schema");
}

#[test]
fn a_fifth_of_the_size_that_kubectl_can_apply() {
    // Client-side apply keeps the object in an annotation, and annotations end at 256 KiB.
    let size = serde_json::to_vec(&custom_resource_definition()).unwrap().len();
    assert!(size < 256 * 1024 / 5, "{size} bytes");
}

#[test]
fn the_definition_is_the_printed_one() {
    insta::assert_snapshot!(yaml::to_string(&custom_resource_definition()).unwrap());
}

#[test]
fn every_rule_compiles_and_its_cost_is_bounded() {
    let mut rules = 0;
    let schema = schema();
    walk("", &schema, &mut |path, at| {
        for rule in at["x-kubernetes-validations"].as_array().into_iter().flatten() {
            let compiled = compile_schema(at);
            assert!(compiled.compilation_errors().is_empty(), "{path}: {:?}", compiled.compilation_errors());
            let warnings = estimate_rule_cost(rule["rule"].as_str().unwrap(), &compiled);
            assert!(warnings.is_empty(), "{path}: {warnings:?}");
            rules += 1;
        }
    });
    assert_eq!(rules, 14);
}

/// Rules over an optional `oldSelf` are left to the API server: the evaluator gives them another value for it.
fn without_optional_old_self(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            if let Some(rules) = fields.get_mut("x-kubernetes-validations").and_then(Value::as_array_mut) {
                rules.retain(|rule| rule["optionalOldSelf"] != true);
            }
            fields.values_mut().for_each(without_optional_old_self);
        }
        Value::Array(items) => items.iter_mut().for_each(without_optional_old_self),
        _ => {}
    }
}

fn violations(new: &Value, old: Option<&Value>) -> Vec<String> {
    let mut schema = schema();
    without_optional_old_self(&mut schema);
    match Validator::new().validate_with_defaults(&schema, new, old) {
        Ok(()) => Vec::new(),
        Err(errors) => errors
            .iter()
            .map(|error| {
                assert_eq!(error.kind, ErrorKind::ValidationFailure, "{error:?}");
                error.to_string()
            })
            .collect(),
    }
}

fn llama() -> Value {
    json!({
        "metadata": {"name": "llama"},
        "resource": {"count": 1, "instanceType": "A", "labelSelector": {"matchLabels": {"apps": "llama"}}},
        "inference": {
            "preset": {
                "name": "llama-2-7b",
                "accessMode": "private",
                "presetOptions": {"image": "registry.example/llama:1", "imagePullSecrets": ["pull"]}
            },
            "adapters": [{"source": {"name": "style", "image": "registry.example/style:1"}, "strength": "0.5"}]
        }
    })
}

fn with(pointer: &str, value: Value) -> Value {
    let mut object = llama();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = object.pointer_mut(parent).unwrap();
    match value {
        Value::Null => {
            parent.as_object_mut().unwrap().remove(key).unwrap();
        }
        value => parent[key] = value,
    }
    object
}

#[test]
fn rules_at_creation() {
    let adapters = |names: &[&str]| -> Value { names.iter().map(|name| json!({"source": {"name": name}})).collect() };
    let preset = json!({"preset": {"name": "falcon-7b"}});
    let template = json!({"template": {"spec": {"containers": [{"name": "a"}]}}});
    let both = json!({"preset": preset["preset"], "template": template["template"]});
    let one_of = "inference: exactly one of preset and template must be given";
    let private = "inference.preset.presetOptions.image: accessMode private needs the image that you built, as \
                   registry.example/llama-2-7b:1, or a weightsImage, or a modelAccessSecret to download the weights with";
    for (pointer, value, expected) in [
        ("/resource/count", json!(3), None),
        ("/inference", preset, None),
        ("/inference", template, None),
        ("/inference", both, Some(one_of)),
        ("/inference", json!({}), Some(one_of)),
        ("/inference/preset/presetOptions", json!(null), Some(private)),
        ("/inference/preset/presetOptions/image", json!(null), Some(private)),
        ("/inference/preset/presetOptions/image", json!(""), Some(private)),
        ("/inference/preset/presetOptions", json!({"weightsImage": "registry.example/weights:1"}), None),
        ("/inference/preset/presetOptions", json!({"weightsImage": ""}), Some(private)),
        ("/inference/preset/presetOptions", json!({"modelAccessSecret": "hub-token"}), None),
        ("/inference/preset/presetOptions", json!({"modelAccessSecret": ""}), Some(private)),
        ("/inference/preset/presetOptions", json!({"weightsClaim": "models"}), None),
        ("/inference/preset/presetOptions", json!({"weightsClaim": ""}), Some(private)),
        ("/inference/preset/accessMode", json!("public"), None),
        ("/inference/adapters", adapters(&["a", "b", "c"]), None),
        (
            "/inference/adapters",
            adapters(&["a", "b", "a"]),
            Some("inference.adapters: names of adapters must be unique: each names a folder"),
        ),
        ("/inference/adapters/0/strength", json!("0"), None),
        ("/inference/adapters/0/strength", json!("1"), None),
        ("/inference/adapters/0/strength", json!("1.0"), None),
        ("/inference/adapters/0/strength", json!(".5"), None),
        ("/inference/adapters/0/strength", json!("5e-1"), None),
        ("/inference/adapters/0/strength", json!(""), None),
    ] {
        assert_eq!(violations(&with(pointer, value.clone()), None), expected.as_slice(), "{pointer} {value}");
    }
}

#[test]
fn strengths_names_and_images_that_are_refused() {
    for strength in ["1.5", "-0.5", "half", "0,5", "1e", "NaN", "inf", "0x1", " 1", "1 ", "."] {
        let expected =
            format!("inference.adapters[0].strength: a number from 0 to 1 is needed, as \"0.5\", not \"{strength}\"");
        assert_eq!(violations(&with("/inference/adapters/0/strength", json!(strength)), None), [expected]);
    }
    for name in ["Style", "-style", "style-", "my.style", "my_style", "a b"] {
        let found = violations(&with("/inference/adapters/0/source/name", json!(name)), None);
        assert_eq!(found.len(), 1, "{name}");
        assert!(
            found[0].starts_with("inference.adapters[0].source.name: the name of an adapter is a DNS label"),
            "{found:?}"
        );
    }
    let digest = format!("registry.example/style@sha256:{}", "0a".repeat(32));
    for (image, taken) in [
        ("style:1", true),
        ("registry.example:5000/team/style:v1.2_3-x", true),
        (&digest, true),
        ("", true),
        ("style", false),
        ("registry.example:5000/style", false),
        ("registry.example/style:", false),
        (":1", false),
        ("registry.example/:1", false),
        ("style:-1", false),
        ("style@sha256:0a", false),
        ("my style:1", false),
    ] {
        let found = violations(&with("/inference/adapters/0/source/image", json!(image)), None);
        let expected = "inference.adapters[0].source.image: an image is needed with its tag or digest, as \
                        registry.example/adapter:1";
        assert_eq!(found, if taken { vec![] } else { vec![expected.to_owned()] }, "{image:?}");
    }
}

#[test]
fn rules_at_update() {
    let anew = "delete the workspace and create it anew";
    let preset = format!("inference.preset: field is immutable: to serve another model, {anew}");
    for (pointer, value, expected) in [
        ("/metadata/labels", json!({"a": "b"}), vec![]),
        ("/resource/preferredNodes", json!(["node-1"]), vec![]),
        ("/inference/adapters", json!(null), vec![]),
        ("/inference/config", json!("flags"), vec![]),
        (
            "/resource/count",
            json!(2),
            vec![format!("resource.count: field is immutable: to run on another number of nodes, {anew}")],
        ),
        (
            "/resource/instanceType",
            json!("B"),
            vec![format!("resource.instanceType: field is immutable: it is \"A\" and cannot become \"B\"; {anew}")],
        ),
        (
            "/resource/instanceType",
            json!(null),
            vec![format!("resource.instanceType: field is immutable: it is \"A\" and cannot become \"\"; {anew}")],
        ),
        (
            "/resource/labelSelector/matchLabels/apps",
            json!("falcon"),
            vec![format!("resource.labelSelector: field is immutable: to move a model to other nodes, {anew}")],
        ),
        ("/inference/preset/name", json!("llama-2-13b"), vec![preset.clone()]),
        ("/inference/preset/accessMode", json!("public"), vec![preset.clone()]),
        ("/inference/preset/presetOptions/image", json!("registry.example/llama:2"), vec![preset.clone()]),
        ("/inference/preset/presetOptions/weightsImage", json!("registry.example/weights:1"), vec![preset.clone()]),
        ("/inference/preset/presetOptions/weightsImage", json!(""), vec![]),
        ("/inference/preset/presetOptions/modelAccessSecret", json!("hub-token"), vec![preset.clone()]),
        ("/inference/preset/presetOptions/modelAccessSecret", json!(""), vec![]),
        ("/inference/preset/presetOptions/weightsClaim", json!("models"), vec![preset.clone()]),
        ("/inference/preset/presetOptions/weightsClaim", json!(""), vec![]),
        ("/inference/preset/presetOptions/imagePullSecrets", json!(null), vec![preset]),
        (
            "/inference",
            json!({"template": {"spec": {"containers": [{"name": "a"}]}}}),
            vec![
                format!("inference.preset: field is immutable: a preset may not be set or unset; {anew}"),
                format!(
                    "inference.template: field is immutable: a template may change, but not be set or unset; {anew}"
                ),
            ],
        ),
    ] {
        assert_eq!(violations(&with(pointer, value.clone()), Some(&llama())), expected, "{pointer} {value}");
    }
    let template = |image: &str| json!({"template": {"spec": {"containers": [{"name": "a", "image": image}]}}});
    let (old, new) = (with("/inference", template("a:1")), with("/inference", template("a:2")));
    assert_eq!(violations(&new, Some(&old)), [""; 0]);
    let untyped = with("/resource/instanceType", json!(null));
    assert_eq!(violations(&with("/resource/instanceType", json!("")), Some(&untyped)), [""; 0]);
}

//! Every JSON value that a schema describes is accepted, token by token.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::common::{FOLDERS, Model, strict};

/// A schema with a value of it, whose keys stand in the schema's order.
pub fn pair() -> impl Strategy<Value = (Value, Value)> {
    let text = "[a-zA-Z0-9 \"\\\\/{}:,<>äß€😀\n\t\u{1}]{0,8}";
    let leaf = prop_oneof![
        any::<bool>().prop_map(|b| (json!({ "type": "boolean" }), json!(b))),
        Just((json!({ "type": "null" }), Value::Null)),
        (-1000i64..1000, 0i64..50)
            .prop_map(|(n, more)| (json!({ "type": "integer", "minimum": n, "maximum": n + 50 }), json!(n + more))),
        any::<i32>().prop_map(|n| (json!({ "type": "integer" }), json!(n))),
        (-1e6f64..1e6).prop_map(|n| (json!({ "type": "number", "minimum": -1e6, "maximum": 1e6 }), json!(n))),
        text.prop_map(|text| (json!({ "type": "string", "maxLength": 8 }), json!(text))),
        (proptest::collection::vec(text, 1..4), any::<prop::sample::Index>())
            .prop_map(|(texts, at)| (json!({ "enum": texts }), json!(at.get(&texts)))),
        text.prop_map(|text| (json!({ "const": text }), json!(text))),
        "[a-c]{1,3}[0-9]{2}"
            .prop_map(|text| (json!({ "type": "string", "pattern": "^[a-c]{1,3}[0-9]{2}$" }), json!(text))),
    ];
    leaf.prop_recursive(3, 24, 4, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 1..4).prop_map(|pairs| {
                let (schemas, values): (Vec<Value>, Vec<Value>) = pairs.into_iter().unzip();
                let length = values.len();
                let schema = json!({
                    "type": "array", "prefixItems": schemas, "items": false, "minItems": length, "maxItems": length,
                });
                (schema, Value::Array(values))
            }),
            proptest::collection::btree_map(text, (inner.clone(), any::<bool>(), any::<bool>()), 0..4).prop_map(object),
            (inner.clone(), inner).prop_map(|((one, value), (other, _))| (json!({ "anyOf": [other, one] }), value)),
        ]
    })
}

/// An object's fields by name: each with whether it is required, and if not, whether it is there.
fn object(fields: std::collections::BTreeMap<String, ((Value, Value), bool, bool)>) -> (Value, Value) {
    let (mut properties, mut required, mut value) = (Map::new(), Vec::new(), Map::new());
    for (name, ((schema, field), is_required, is_there)) in fields {
        if is_required {
            required.push(name.clone());
        }
        if is_required || is_there {
            value.insert(name.clone(), field);
        }
        properties.insert(name, schema);
    }
    let schema =
        json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false });
    (schema, Value::Object(value))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_value_of_the_schema_is_accepted_token_by_token((schema, value) in pair(), folder in 0..FOLDERS.len()) {
        prop_assert!(jsonschema::is_valid(&schema, &value), "the test's own pair: {schema} {value}");
        let model = Model::open(FOLDERS[folder]);
        for text in [value.to_string(), serde_json::to_string_pretty(&value).unwrap()] {
            let mut constraint = model.constraint(&strict(schema.clone()));
            for token in model.tokens(&text) {
                prop_assert!(!constraint.is_finished(), "{schema} {text}");
                prop_assert!(constraint.accept(token), "{schema} {text}: token {token}");
            }
            prop_assert!(constraint.may_end(), "{schema} {text}");
        }
    }
}

#[test]
fn a_finished_text_ends_by_itself() {
    let model = Model::demo();
    let schema = strict(json!({ "type": "object", "properties": {}, "additionalProperties": false }));
    let mut constraint = model.constraint(&schema);
    assert_eq!(model.follow(&mut *constraint, "{}"), (2, 2, true));
    assert!(constraint.is_finished() && constraint.may_end());
    // A number may go on or end.
    let mut number = model.constraint(&strict(json!({ "type": "integer" })));
    assert!(model.follow(&mut *number, "12").2);
    assert!(!number.is_finished() && number.may_end());
}

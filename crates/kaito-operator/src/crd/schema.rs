//! Builds structural schemas, for example: `object("…", [("name", string("…").max_length(63))]).require(["name"])`.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSON, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool, ValidationRule,
};
use serde_json::Value;

/// The schema of one field.
#[derive(Debug, Clone)]
pub struct Schema(JSONSchemaProps);

/// A text.
pub fn string(description: &str) -> Schema {
    typed("string", description)
}

/// A whole number of 32 bits.
pub fn int32(description: &str) -> Schema {
    formatted("integer", "int32", description)
}

/// A whole number of 64 bits.
pub fn int64(description: &str) -> Schema {
    formatted("integer", "int64", description)
}

/// A date and time.
pub fn date_time(description: &str) -> Schema {
    formatted("string", "date-time", description)
}

/// A list with items of one schema.
pub fn list(description: &str, items: Schema) -> Schema {
    let mut schema = typed("array", description);
    schema.0.items = Some(JSONSchemaPropsOrArray::Schema(Box::new(items.0)));
    schema
}

/// A map: values by keys of the user's choice.
pub fn map(description: &str, values: Schema) -> Schema {
    let mut schema = typed("object", description);
    schema.0.additional_properties = Some(JSONSchemaPropsOrBool::Schema(Box::new(values.0)));
    schema
}

/// The metadata of an object. The API server describes it itself; only the name may be mentioned.
pub fn metadata() -> Schema {
    let undescribed = |type_: &str| JSONSchemaProps { type_: Some(type_.to_owned()), ..JSONSchemaProps::default() };
    let properties = Some([("name".to_owned(), undescribed("string"))].into());
    Schema(JSONSchemaProps { properties, ..undescribed("object") })
}

/// An object with fixed fields.
pub fn object<const N: usize>(description: &str, fields: [(&str, Schema); N]) -> Schema {
    let mut schema = typed("object", description);
    if N > 0 {
        schema.0.properties = Some(fields.map(|(name, field)| (name.to_owned(), field.0)).into());
    }
    schema
}

fn typed(type_: &str, description: &str) -> Schema {
    Schema(JSONSchemaProps {
        type_: Some(type_.to_owned()),
        description: Some(description.to_owned()),
        ..JSONSchemaProps::default()
    })
}

fn formatted(type_: &str, format: &str, description: &str) -> Schema {
    let mut schema = typed(type_, description);
    schema.0.format = Some(format.to_owned());
    schema
}

impl Schema {
    pub fn require<const N: usize>(mut self, fields: [&str; N]) -> Self {
        self.0.required = Some(fields.map(String::from).into());
        self
    }

    pub fn default(mut self, value: impl Into<Value>) -> Self {
        self.0.default = Some(JSON(value.into()));
        self
    }

    pub fn one_of<const N: usize>(mut self, values: [&str; N]) -> Self {
        self.0.enum_ = Some(values.map(|value| JSON(value.into())).into());
        self
    }

    pub fn minimum(mut self, minimum: i32) -> Self {
        self.0.minimum = Some(minimum.into());
        self
    }

    pub fn maximum(mut self, maximum: i32) -> Self {
        self.0.maximum = Some(maximum.into());
        self
    }

    pub fn length(mut self, least: i64, most: i64) -> Self {
        self.0.min_length = (least > 0).then_some(least);
        self.0.max_length = Some(most);
        self
    }

    pub fn max_length(self, most: i64) -> Self {
        self.length(0, most)
    }

    pub fn pattern(mut self, pattern: &str) -> Self {
        self.0.pattern = Some(pattern.to_owned());
        self
    }

    pub fn min_items(mut self, least: i64) -> Self {
        self.0.min_items = Some(least);
        self
    }

    pub fn max_items(mut self, most: i64) -> Self {
        self.0.max_items = Some(most);
        self
    }

    pub fn max_properties(mut self, most: i64) -> Self {
        self.0.max_properties = Some(most);
        self
    }

    /// Unknown fields are kept.
    pub fn open(mut self) -> Self {
        self.0.x_kubernetes_preserve_unknown_fields = Some(true);
        self
    }

    /// An atomic list: the manager that applies it owns all of it.
    pub fn atomic_list(mut self) -> Self {
        self.0.x_kubernetes_list_type = Some("atomic".to_owned());
        self
    }

    /// An atomic object: the manager that applies it owns all of it.
    pub fn atomic_object(mut self) -> Self {
        self.0.x_kubernetes_map_type = Some("atomic".to_owned());
        self
    }

    /// A list whose items are identified by one of their fields.
    pub fn keyed_by(mut self, field: &str) -> Self {
        self.0.x_kubernetes_list_type = Some("map".to_owned());
        self.0.x_kubernetes_list_map_keys = Some(vec![field.to_owned()]);
        self
    }

    pub fn rules<const N: usize>(mut self, rules: [Rule; N]) -> Self {
        self.0.x_kubernetes_validations = Some(rules.map(|rule| rule.0).into());
        self
    }

    pub fn build(self) -> JSONSchemaProps {
        self.0
    }
}

/// A rule in the Common Expression Language that the API server checks.
#[derive(Debug, Clone)]
pub struct Rule(ValidationRule);

impl Rule {
    /// `message` is what the user reads where `rule` does not hold. Written over several lines, the rule is kept as one.
    pub fn new(rule: &str, message: &str) -> Self {
        Self(ValidationRule { rule: one_line(rule), message: Some(message.to_owned()), ..ValidationRule::default() })
    }

    /// The field that the message is about, if it is not the one with the rule.
    pub fn at(mut self, path: &str) -> Self {
        self.0.field_path = Some(path.to_owned());
        self
    }

    /// An expression that makes a message with the values in it.
    pub fn explained_by(mut self, expression: &str) -> Self {
        self.0.message_expression = Some(one_line(expression));
        self
    }

    /// `oldSelf` becomes an optional value, empty when the object is created.
    pub fn also_on_create(mut self) -> Self {
        self.0.optional_old_self = Some(true);
        self
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

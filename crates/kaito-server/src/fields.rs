//! Reads a JSON object field by field, with errors that name the field and what was found in it.

use kaito_engine::ParameterError;
use serde_json::{Map, Value};

use crate::error::ApiError;

/// The fields of one JSON object, taken out one at a time; those left keep their order. `null` is the same as absent.
#[derive(Debug, Default)]
pub(crate) struct Fields {
    /// Where the object stands in the body, as a prefix of its fields' names: "" or "input_data.".
    prefix: String,
    values: Map<String, Value>,
}

impl Fields {
    /// The fields of the body itself.
    pub(crate) fn root(values: Map<String, Value>) -> Self {
        Self { prefix: String::new(), values }
    }

    /// The fields of the object `value`, which stands at `at` in the body.
    pub(crate) fn object(at: &str, value: Value) -> Result<Self, ApiError> {
        match value {
            Value::Object(values) => Ok(Self { prefix: format!("{at}."), values }),
            other => Err(wrong_shape(at, "an object", &other)),
        }
    }

    /// With the keys of all objects in order, so that which fault is named first, and how a value is shown, does not depend
    /// on the order in which a client writes them.
    pub(crate) fn sorted(mut self) -> Self {
        self.values.values_mut().for_each(Value::sort_all_objects);
        self.values.sort_keys();
        self
    }

    /// The full name of a field: "input_data.parameters".
    pub(crate) fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.values.get(name).is_some_and(|value| !value.is_null())
    }

    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.values.shift_remove(name).filter(|value| !value.is_null())
    }

    pub(crate) fn take_object(&mut self, name: &str) -> Result<Option<Self>, ApiError> {
        self.take(name).map(|value| Self::object(&self.path(name), value)).transpose()
    }

    pub(crate) fn take_list(&mut self, name: &str) -> Result<Option<Vec<Value>>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(other) => Err(wrong_shape(&self.path(name), "a list", &other)),
        }
    }

    pub(crate) fn take_string(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        self.take(name).map(|value| string(&self.path(name), value)).transpose()
    }

    pub(crate) fn take_flag(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        self.parameter(name, "true or false", Value::as_bool)
    }

    /// A flag for which `null` means something else than its absence: the flag, if it is given at all.
    pub(crate) fn take_nullable_flag(&mut self, name: &str) -> Result<Option<Option<bool>>, ApiError> {
        if self.values.get(name).is_some_and(Value::is_null) {
            self.values.shift_remove(name);
            return Ok(Some(None));
        }
        Ok(self.take_flag(name)?.map(Some))
    }

    pub(crate) fn take_number(&mut self, name: &str) -> Result<Option<f64>, ApiError> {
        self.parameter(name, "a number", Value::as_f64)
    }

    /// A whole number from 0 on; 128.0 counts as one.
    pub(crate) fn take_count(&mut self, name: &str) -> Result<Option<u64>, ApiError> {
        let whole = |f: f64| (f.fract() == 0.0 && (0.0..=9_007_199_254_740_992.0).contains(&f)).then_some(f as u64);
        self.parameter(name, "an integer of at least 0", |value| {
            value.as_u64().or_else(|| value.as_f64().and_then(whole))
        })
    }

    /// A whole number; 128.0 counts as one.
    pub(crate) fn take_integer(&mut self, name: &str) -> Result<Option<i64>, ApiError> {
        let whole = |f: f64| (f.fract() == 0.0 && f.abs() <= 9_007_199_254_740_992.0).then_some(f as i64);
        self.parameter(name, "an integer", |value| value.as_i64().or_else(|| value.as_f64().and_then(whole)))
    }

    /// A list of strings.
    pub(crate) fn take_strings(&mut self, name: &str) -> Result<Option<Vec<String>>, ApiError> {
        let Some(list) = self.take_list(name)? else { return Ok(None) };
        let at = self.path(name);
        list.into_iter()
            .enumerate()
            .map(|(i, value)| string(&format!("{at}[{i}]"), value))
            .collect::<Result<_, _>>()
            .map(Some)
    }

    /// A list of token ids.
    pub(crate) fn take_token_ids(&mut self, name: &str) -> Result<Option<Vec<u32>>, ApiError> {
        let Some(list) = self.take_list(name)? else { return Ok(None) };
        let at = self.path(name);
        list.iter()
            .enumerate()
            .map(|(i, value)| token_id(&format!("{at}[{i}]"), value))
            .collect::<Result<_, _>>()
            .map(Some)
    }

    fn parameter<T>(
        &mut self,
        name: &str,
        allowed: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match read(&value) {
            Some(read) => Ok(Some(read)),
            None => Err(invalid(&self.path(name), &value, allowed)),
        }
    }

    /// Moves all fields of `inner`, which stands within this object, to this level, all in the order of their names.
    ///
    /// # Errors
    /// 400 when a field stands at both levels.
    pub(crate) fn absorb(&mut self, inner: Self) -> Result<(), ApiError> {
        for (name, value) in inner.values {
            let (outer_path, inner_path) = (self.path(&name), format!("{}{name}", inner.prefix));
            if self.values.insert(name, value).is_some() {
                return Err(ApiError::bad_request(format!(
                    "`{outer_path}` also stands as `{inner_path}`; give it once."
                )));
            }
        }
        self.values.sort_keys();
        Ok(())
    }

    /// Ends the reading: what is left is unknown.
    ///
    /// # Errors
    /// 400 that names the first field left, and the nearest of the `known` ones.
    pub(crate) fn deny_rest(self, known: &[&str]) -> Result<(), ApiError> {
        match self.values.keys().next() {
            None => Ok(()),
            Some(name) => Err(unknown(&self.prefix, name, known.iter().copied())),
        }
    }

    /// What has not been taken.
    pub(crate) fn into_rest(self) -> Map<String, Value> {
        self.values
    }
}

/// 400 for an unknown field, with the nearest of the known ones.
pub(crate) fn unknown<'a>(prefix: &str, name: &str, known: impl Iterator<Item = &'a str>) -> ApiError {
    match ParameterError::unknown(name, known) {
        ParameterError::Unknown { name, nearest } => {
            ParameterError::Unknown { name: format!("{prefix}{name}"), nearest }.into()
        }
        other => other.into(),
    }
}

/// 400 for a value of a parameter, which stands at `at`.
pub(crate) fn invalid(at: &str, value: impl std::fmt::Display, allowed: &str) -> ApiError {
    ApiError::from(ParameterError::invalid(at, value, allowed)).with_param(at)
}

/// 400 for the text `value` of a parameter, which stands at `at` and is none of those `allowed`.
pub(crate) fn unknown_value(at: &str, value: &str, allowed: &str) -> ApiError {
    let shown: String = value.chars().take(60).collect();
    invalid(at, format_args!("\"{shown}\""), allowed)
}

/// The token id that `value`, which stands at `at`, is.
pub(crate) fn token_id(at: &str, value: &Value) -> Result<u32, ApiError> {
    value
        .as_u64()
        .and_then(|id| u32::try_from(id).ok())
        .ok_or_else(|| invalid(at, value, "a token id, an integer of at least 0"))
}

/// The text of `value`, which stands at `at`.
pub(crate) fn string(at: &str, value: Value) -> Result<String, ApiError> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(wrong_shape(at, "a string", &other)),
    }
}

/// 422 for a value of the wrong type.
pub(crate) fn wrong_shape(at: &str, wanted: &str, found: &Value) -> ApiError {
    ApiError::wrong_shape(ParameterError::invalid(at, found, wanted).to_string()).with_param(at)
}

/// 422 for a field that must be there.
pub(crate) fn missing(at: &str, wanted: &str) -> ApiError {
    ApiError::wrong_shape(format!("`{at}` is missing: it must be {wanted}")).with_param(at)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(value: Value) -> Fields {
        Fields::object("at", value).unwrap()
    }

    #[test]
    fn null_is_absent() {
        assert_eq!(fields(json!({"a": null})).take_string("a"), Ok(None));
        assert!(!fields(json!({"a": null})).contains("a"));
    }

    #[test]
    fn a_flag_may_tell_null_from_its_absence() {
        for (given, read) in [
            (json!({}), None),
            (json!({"a": null}), Some(None)),
            (json!({"a": true}), Some(Some(true))),
            (json!({"a": false}), Some(Some(false))),
        ] {
            let mut given = fields(given);
            assert_eq!(given.take_nullable_flag("a"), Ok(read));
            assert_eq!(given.deny_rest(&[]), Ok(()));
        }
    }

    #[test]
    fn a_count_may_be_written_with_a_point() {
        assert_eq!(fields(json!({"a": 128.0})).take_count("a"), Ok(Some(128)));
        for wrong in [json!(-1), json!(1.5), json!(1e300), json!("1"), json!(true)] {
            let error = fields(json!({ "a": wrong.clone() })).take_count("a").unwrap_err();
            assert_eq!(error.detail(), format!("`at.a` is {wrong}: it must be an integer of at least 0."));
        }
    }

    #[test]
    fn the_nearest_name_is_offered_only_when_near() {
        let detail = |name: &str| unknown("at.", name, ["temperature", "top_p"].into_iter()).detail().to_owned();
        assert_eq!(detail("temprature"), "Unknown parameter `at.temprature`; did you mean `temperature`?");
        assert_eq!(detail("something"), "Unknown parameter `at.something`.");
    }
}

//! Reading untrusted JSON: bounded in depth and number of values, and without repeated keys.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::error::ApiError;

/// How deep lists and objects may nest; the deepest well-formed request of the Kaito dialects needs 5.
const MAX_DEPTH: usize = 32;
/// How many values a body may hold: a value takes some 32 bytes of memory and as little as two of the body.
const MAX_VALUES: usize = 1 << 18;

/// Reads a body that must be one JSON object.
///
/// # Errors
/// 422 with the place of the first fault: no UTF-8, no JSON, too deep, too many values, a key that occurs twice in an
/// object, or a value that is no object.
pub(crate) fn parse_object(body: &[u8]) -> Result<Map<String, Value>, ApiError> {
    parse_object_within(body, MAX_DEPTH)
}

/// [`parse_object`], where lists and objects may nest so deep.
///
/// # Errors
/// As [`parse_object`].
pub(crate) fn parse_object_within(body: &[u8], depth: usize) -> Result<Map<String, Value>, ApiError> {
    let text = std::str::from_utf8(body).map_err(|e| {
        let at = e.valid_up_to();
        let byte = body.get(at).copied().unwrap_or_default();
        ApiError::wrong_shape(format!("The body is not UTF-8: byte 0x{byte:02X} at offset {at}."))
    })?;
    // Some clients put a byte order mark before the text.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.trim_ascii().is_empty() {
        return Err(ApiError::wrong_shape("The body is empty; send a JSON object."));
    }
    let values = Cell::new(0);
    let mut deserializer = serde_json::Deserializer::from_str(text);
    // The reader has its own.
    deserializer.disable_recursion_limit();
    let value = Reader { left: depth, most: depth, values: &values }
        .deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value))
        .map_err(|e| ApiError::wrong_shape(format!("The body is not valid JSON: {e}")))?;
    match value {
        Value::Object(map) => Ok(map),
        other => Err(ApiError::wrong_shape(format!("The body must be a JSON object, but is {}", kind(&other)))),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[derive(Clone, Copy)]
struct Reader<'a> {
    /// How many levels more there may be, of how many.
    left: usize,
    most: usize,
    values: &'a Cell<usize>,
}

impl Reader<'_> {
    fn inside<E: serde::de::Error>(self) -> Result<Self, E> {
        match self.left.checked_sub(1) {
            Some(left) => Ok(Self { left, ..self }),
            None => Err(E::custom(format!("lists and objects nest deeper than {} levels", self.most))),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Reader<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.values.set(self.values.get() + 1);
        if self.values.get() > MAX_VALUES {
            return Err(D::Error::custom(format!("it holds more than {MAX_VALUES} values")));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Reader<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let reader = self.inside()?;
        let mut list = Vec::new();
        while let Some(value) = items.next_element_seed(reader)? {
            list.push(value);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let reader = self.inside()?;
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let value = entries.next_value_seed(reader)?;
            if map.contains_key(&key) {
                let shown: String = key.chars().take(60).collect();
                return Err(A::Error::custom(format!("the key {shown:?} occurs twice in one object")));
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_the_first_fault() {
        let deep = format!(r#"{{"a":{}1{}}}"#, "[".repeat(40), "]".repeat(40));
        let deepest = format!(r#"{{"a":{}1{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        let many = format!(r#"{{"a":[{}0]}}"#, "0,".repeat(MAX_VALUES));
        for (body, detail) in [
            (&b""[..], "The body is empty; send a JSON object."),
            (b" \n", "The body is empty; send a JSON object."),
            (b"{\"a\":\"\xff\"}", "The body is not UTF-8: byte 0xFF at offset 6."),
            (b"[1]", "The body must be a JSON object, but is a list."),
            (b"{\"a\":1", "The body is not valid JSON: EOF while parsing an object at line 1 column 6."),
            (b"{\"a\":1} x", "The body is not valid JSON: trailing characters at line 1 column 9."),
            (b"{\"a\":NaN}", "The body is not valid JSON: expected value at line 1 column 6."),
            (b"{\"a\":1e999}", "The body is not valid JSON: number out of range at line 1 column 10."),
            (b"{\"a\":\"\\ud800\"}", "The body is not valid JSON: unexpected end of hex escape at line 1 column 13."),
            (
                b"{\"a\":1,\"a\":2}",
                "The body is not valid JSON: the key \"a\" occurs twice in one object at line 1 column 13.",
            ),
            (
                deep.as_bytes(),
                "The body is not valid JSON: lists and objects nest deeper than 32 levels at line 1 column 37.",
            ),
            (
                deepest.as_bytes(),
                "The body is not valid JSON: lists and objects nest deeper than 32 levels at line 1 column 37.",
            ),
            (many.as_bytes(), "The body is not valid JSON: it holds more than 262144 values at line 1 column 524290."),
        ] {
            let error = parse_object(body).unwrap_err();
            assert_eq!(error.detail(), detail);
            assert_eq!(error.status(), 422);
        }
    }

    #[test]
    fn levels_are_counted_exactly() {
        for most in [MAX_DEPTH, crate::openai::body::DEPTH, 1000] {
            // The object is a level.
            let nested = |levels: usize| format!(r#"{{"a":{}{}}}"#, "[".repeat(levels - 1), "]".repeat(levels - 1));
            assert!(parse_object_within(nested(most).as_bytes(), most).is_ok(), "{most}");
            let error = parse_object_within(nested(most + 1).as_bytes(), most).unwrap_err();
            assert!(error.detail().contains(&format!("deeper than {most} levels")), "{}", error.detail());
        }
    }

    #[test]
    fn a_byte_order_mark_is_skipped() {
        assert_eq!(parse_object("\u{feff}{\"a\":1}".as_bytes()).unwrap()["a"], 1);
    }

    proptest! {
        #[test]
        fn reads_what_serde_json_reads(text in r#"\{"a":(-?[0-9]{1,25}(\.[0-9]{1,5})?(e[0-9])?|"[a-zé\\\\"]{0,5}"|\[(true|null|\{\}|,){0,4}\])\}"#) {
            let theirs = serde_json::from_str::<Value>(&text).ok();
            let ours = parse_object(text.as_bytes()).ok().map(Value::Object);
            prop_assert_eq!(ours, theirs);
        }

        #[test]
        fn survives_any_bytes(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_object(&body);
        }
    }
}

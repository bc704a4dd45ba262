//! JSON as Python's `json` writes it: a model's files may hold `NaN`, `Infinity` and `-Infinity`, which JSON has not.
//!
//! Each becomes an object with one key of its own. So a field that nobody asks for does no harm, and one that counts has a
//! wrong type where it is read.
#![forbid(unsafe_code)]

use std::borrow::Cow;

use serde_json::{Map, Value};

/// The only key of an object that stands for such a number.
const KEY: &str = "not a finite number";
const WORDS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];

/// Reads the file's `text`, which must be an object.
///
/// # Errors
/// For what is no JSON but for these numbers, and for JSON of another type.
pub fn parse_object(text: &[u8]) -> serde_json::Result<Map<String, Value>> {
    serde_json::from_slice(&standard(text))
}

/// `text` in standard JSON.
pub fn standard(text: &[u8]) -> Cow<'_, [u8]> {
    let mut made = Vec::new();
    let (mut copied, mut at, mut in_string) = (0, 0, false);
    while let Some(&byte) = text.get(at) {
        let rest = &text[at..];
        at += match byte {
            b'\\' if in_string => 2,
            b'"' => {
                in_string = !in_string;
                1
            }
            b'-' | b'I' | b'N' if !in_string => match WORDS.iter().find(|word| rest.starts_with(word.as_bytes())) {
                Some(word) => {
                    made.extend_from_slice(&text[copied..at]);
                    made.extend_from_slice(format!("{{\"{KEY}\":\"{word}\"}}").as_bytes());
                    copied = at + word.len();
                    word.len()
                }
                None => 1,
            },
            _ => 1,
        };
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    made.extend_from_slice(&text[copied..]);
    Cow::Owned(made)
}

/// `NaN`, `Infinity` or `-Infinity`, if `value` stands for it.
pub fn non_finite(value: &Value) -> Option<&str> {
    let map = value.as_object().filter(|map| map.len() == 1)?;
    map.get(KEY)?.as_str()
}

/// `value` as its file has it.
pub fn describe(value: &Value) -> String {
    non_finite(value).map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_that_json_has_not_are_told_apart_from_text() {
        let text = br#"{"a":NaN,"b":[ -Infinity ,Infinity],"NaN":"Infinity \" NaN \\","c":-1.5,"d":{"e":"\\\\"},"f":Infinity}"#;
        let value = parse_object(text).unwrap();
        assert_eq!(non_finite(&value["a"]), Some("NaN"));
        assert_eq!([0, 1].map(|i| non_finite(&value["b"][i])), [Some("-Infinity"), Some("Infinity")]);
        assert_eq!(value["NaN"], "Infinity \" NaN \\");
        assert_eq!((&value["c"], &value["d"]["e"]), (&json!(-1.5), &json!("\\\\")));
        assert_eq!(describe(&value["f"]), "Infinity");
        assert_eq!(
            describe(&value["b"]),
            r#"[{"not a finite number":"-Infinity"},{"not a finite number":"Infinity"}]"#
        );
    }

    #[test]
    fn other_text_is_left_alone_and_what_is_no_json_stays_none() {
        for text in [&b"{}"[..], b"{\"NaN\": \"Infinity\"}", b"[-1, \"-Infinity\"]", b"\"open NaN", b"", b"\"\\"] {
            assert!(matches!(standard(text), Cow::Borrowed(same) if same == text));
        }
        for bad in ["NaNs", "infinity", "+Infinity", "{NaN: 1}", "--Infinity", "1NaN", "-", "I", "-Inf", "Na"] {
            let text = format!("{{\"a\": {bad}}}");
            assert!(parse_object(text.as_bytes()).is_err(), "{text}");
        }
    }
}

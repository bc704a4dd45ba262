//! Whether a tokenizer.json puts a space before every text.

use serde_json::{Map, Value};

/// What the file does, if that can be seen in it: a word mark (U+2581) before the text, or a space in byte-level form.
pub(super) fn of_tokenizer_json(json: &Map<String, Value>) -> Option<bool> {
    let parts = |name: &str, list: &str| match json.get(name) {
        None | Some(Value::Null) => Vec::new(),
        Some(part) => match part.get(list).and_then(Value::as_array) {
            Some(parts) => parts.iter().collect(),
            None => vec![part],
        },
    };
    let mut found = None;
    for part in parts("normalizer", "normalizers").into_iter().chain(parts("pre_tokenizer", "pretokenizers")) {
        let text = |name: &str| part.get(name).and_then(Value::as_str);
        let does = match text("type") {
            Some("Prepend") => Some(true),
            // Word marks in place of spaces: without another part that prepends one, none is.
            Some("Replace") if text("content") == Some("\u{2581}") => Some(false),
            Some("Metaspace") => Some(match text("prepend_scheme") {
                Some(scheme) => scheme != "never",
                None => part.get("add_prefix_space").and_then(Value::as_bool).unwrap_or(true),
            }),
            Some("ByteLevel") => part.get("add_prefix_space").and_then(Value::as_bool),
            _ => None,
        };
        found = match (found, does) {
            (Some(true), _) | (_, Some(true)) => Some(true),
            (found, does) => does.or(found),
        };
    }
    found
}

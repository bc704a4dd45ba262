//! What servers say about errors.

use serde_json::Value;

/// What an error's body says, in any of the usual shapes.
pub fn message(body: &Value) -> String {
    let error = &body["error"];
    [&body["detail"], &error["message"], error, &body["message"]]
        .into_iter()
        .find_map(Value::as_str)
        .map_or_else(|| brief(&body.to_string()), brief)
}

/// The beginning of a text, on one line.
pub fn brief(text: &str) -> String {
    const CHARACTERS: usize = 200;
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= CHARACTERS { line } else { line.chars().take(CHARACTERS).chain(['…']).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_errors_in_their_usual_shapes() {
        for (body, expected) in [
            (r#"{"detail":"a"}"#, "a"),
            (r#"{"error":{"message":"b"}}"#, "b"),
            (r#"{"error":"c"}"#, "c"),
            (r#"{"message":"d\n e"}"#, "d e"),
            (r#"{"other":1}"#, r#"{"other":1}"#),
        ] {
            assert_eq!(message(&serde_json::from_str(body).unwrap()), expected);
        }
        assert_eq!(brief(&"é".repeat(300)).chars().count(), 201);
    }
}

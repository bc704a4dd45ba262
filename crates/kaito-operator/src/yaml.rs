//! The one place that knows which crate reads and writes YAML.

use serde::Serialize;
use serde_json::Value;

use crate::Error;

/// Writes one document, as `kubectl get --output yaml` would: lists not indented. Long lines are not folded, since that would
/// break the expressions of the CRD in the middle of regular expressions.
///
/// # Errors
///
/// [`Error::WriteYaml`] where `value` holds what YAML cannot.
pub fn to_string(value: &impl Serialize) -> Result<String, Error> {
    let options =
        serde_saphyr::ser_options! { compact_list_indent: true, no_lang_directive: true, prefer_block_scalars: false };
    serde_saphyr::to_string_with_options(value, options).map_err(|error| Error::WriteYaml(error.to_string()))
}

/// Reads the documents of a file, separated by `---`; empty ones are left out. JSON is YAML.
///
/// # Errors
///
/// [`Error::ReadYaml`] with the line that is wrong.
pub fn documents(text: &str) -> Result<Vec<Value>, Error> {
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(text).map_err(|error| Error::ReadYaml(for_authors(&error.to_string())))?;
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}

/// Without advice that only programmers can follow.
fn for_authors(message: &str) -> String {
    message.replace(", set DuplicateKeyPolicy in Options if acceptable", "")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn documents_are_separated_and_empty_ones_left_out() {
        for (text, expected) in [
            ("", vec![]),
            ("# nothing\n", vec![]),
            ("---\na: 1\n---\n# nothing\n---\nb: [x, 'y']\n", vec![json!({"a": 1}), json!({"b": ["x", "y"]})]),
            ("{\"a\": \"1\"}", vec![json!({"a": "1"})]),
            (
                "a: 0.5\nb: \"0.5\"\nc: true\nd: 'True'\ne: ~\nf: 1e3\n",
                vec![json!({"a": 0.5, "b": "0.5", "c": true, "d": "True", "e": null, "f": 1000.0})],
            ),
            ("a: |\n  x\n  y\nb: >-\n  x\n  y\n", vec![json!({"a": "x\ny\n", "b": "x y"})]),
            ("a: &x {b: 1}\nc: *x\n", vec![json!({"a": {"b": 1}, "c": {"b": 1}})]),
        ] {
            assert_eq!(documents(text).unwrap(), expected, "{text:?}");
        }
    }

    #[test]
    fn what_is_no_yaml_is_refused_with_its_line() {
        for (text, line) in [("a: 1\na: 2\n", "line 2"), ("a: [1\nb: 2\n", "line 2"), ("a:\n  b: 1\n c: 2\n", "line 3")]
        {
            let message = documents(text).unwrap_err().to_string();
            assert!(message.contains(line) && !message.contains("Policy"), "{message}");
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        let value = json!({
            "empty": {}, "none": [], "text": "", "number": "1", "truth": "true", "yes": "yes", "null": "null", "~": "~",
            "octal": "0755", "float": "1e3", "date": "2026-01-01", "colon": "a: b", "hash": "a #b", "dash": "- a",
            "lines": "a\nb\n", "long": "word ".repeat(60).trim_end(), "quote": "'\"", "spaces": "  a  ", "tab": "a\tb",
            "rule": "self.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')", "list": [{"a": [1, 2.5, null, true]}, []],
            "trailing": "a\n\n", "unicode": "ü—\u{7f}\u{2028}", "percent": "%a", "at": "@a", "star": "*a", "and": "&a"
        });
        assert_eq!(documents(&to_string(&value).unwrap()).unwrap(), [value]);
    }

    proptest::proptest! {
        #[test]
        fn any_text_reads_back(text in "\\PC*", key in "[a-z~*&!:#-]{1,8}", lines in "[a-z \n\t:#'\"-]*") {
            let value = json!({key: [text], "lines": lines});
            proptest::prop_assert_eq!(documents(&to_string(&value).unwrap()).unwrap(), [value]);
        }

        #[test]
        fn no_text_breaks_the_reader(text in "[-a-z0-9:\\[\\]{}&*!|>'\"%@` \n\t~#?,]*") {
            let _ = documents(&text);
        }
    }
}

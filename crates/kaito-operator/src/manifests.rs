//! `kaito validate`: checks files of several objects, of which some are workspaces, as the admission webhook would; without a
//! cluster.

use kaito_presets::InstanceTypes;
use serde::Serialize;
use serde_json::Value;

use crate::{
    admission::{FieldError, validate_create},
    workspace::{GROUP, KIND, strict},
    yaml,
};

/// Largest file that is read.
const MOST_BYTES: usize = 16 << 20;

/// One object of a file, or a document that is no object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// Number of the document in the file, from 1.
    pub document: usize,
    /// The line on which the document begins.
    pub line: usize,
    /// What kind of object it is; empty where that cannot be told.
    pub kind: String,
    /// The object's name; empty where it has none.
    pub name: String,
    /// The result.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// The result of checking an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "lowercase")]
pub enum Outcome {
    /// A workspace that would be admitted.
    Valid {
        /// Warnings for its author.
        warnings: Vec<String>,
    },
    /// A workspace that would be refused, or no object at all.
    Refused {
        /// Why.
        errors: Vec<FieldError>,
        /// Warnings for its author.
        warnings: Vec<String>,
    },
    /// An object of another kind.
    Skipped,
}

/// Checks every object of a file in YAML or JSON.
pub fn check(text: &str, instance_types: &InstanceTypes) -> Vec<Checked> {
    if text.len() > MOST_BYTES {
        let message = format!("the file has {} bytes, more than {MOST_BYTES}", text.len());
        return vec![unreadable(1, 1, message)];
    }
    let mut checked = Vec::new();
    for (index, (line, source)) in documents(text).into_iter().enumerate() {
        let document = index + 1;
        // Empty lines before it, so that a parser's message names the line of the file.
        let source = format!("{}{source}", "\n".repeat(line - 1));
        match yaml::documents(&source) {
            Ok(values) => {
                for value in values {
                    check_object(&value, document, line, instance_types, &mut checked);
                }
            }
            Err(error) => checked.push(unreadable(document, line, error.to_string())),
        }
    }
    checked
}

fn unreadable(document: usize, line: usize, message: String) -> Checked {
    let errors = vec![FieldError { path: String::new(), message }];
    let outcome = Outcome::Refused { errors, warnings: Vec::new() };
    Checked { document, line, kind: String::new(), name: String::new(), outcome }
}

/// A list's objects, each; any other object itself.
fn check_object(
    value: &Value,
    document: usize,
    line: usize,
    instance_types: &InstanceTypes,
    checked: &mut Vec<Checked>,
) {
    let text = |field: &Value| field.as_str().unwrap_or_default().to_owned();
    let kind = text(&value["kind"]);
    if let (true, Some(items)) = (kind == "List" || kind == "WorkspaceList", value["items"].as_array()) {
        for item in items {
            check_object(item, document, line, instance_types, checked);
        }
        return;
    }
    let group = value["apiVersion"].as_str().map(|version| version.split('/').next().unwrap_or_default());
    let outcome = match group {
        _ if !value.is_object() => refused("", "is no object with fields, as manifests are"),
        _ if kind.is_empty() => refused("kind", "is missing; a workspace has kind: Workspace"),
        None => refused("apiVersion", "is missing; a workspace has apiVersion: kaito.sh/v1beta1"),
        Some(group) if group == GROUP && kind == KIND => check_workspace(value, instance_types),
        Some(_) => Outcome::Skipped,
    };
    checked.push(Checked { document, line, kind, name: text(&value["metadata"]["name"]), outcome });
}

fn refused(path: &str, message: &str) -> Outcome {
    let errors = vec![FieldError { path: path.to_owned(), message: message.to_owned() }];
    Outcome::Refused { errors, warnings: Vec::new() }
}

fn check_workspace(value: &Value, instance_types: &InstanceTypes) -> Outcome {
    let read = match strict::read(value) {
        Ok(read) => read,
        Err(error) => return refused(&error.path, &error.message),
    };
    let unknown = read.unknown_fields.into_iter().map(|path| FieldError {
        path,
        message: "unknown field: `kubectl explain workspace` shows those there are".to_owned(),
    });
    let verdict = validate_create(&read.object, instance_types);
    let errors: Vec<FieldError> = unknown.chain(verdict.errors).collect();
    if errors.is_empty() {
        Outcome::Valid { warnings: verdict.warnings }
    } else {
        Outcome::Refused { errors, warnings: verdict.warnings }
    }
}

/// The documents of a stream, each with the number of its first line. In YAML, a line that begins with `---` always starts a
/// document.
fn documents(text: &str) -> Vec<(usize, String)> {
    let mut documents = Vec::new();
    let mut current = (1, String::new());
    for (index, line) in text.lines().enumerate() {
        let marker = line.strip_prefix("---").filter(|rest| rest.is_empty() || rest.starts_with([' ', '\t']));
        if let Some(rest) = marker {
            documents.push(std::mem::replace(&mut current, (index + 2, String::new())));
            // What follows the marker on its line belongs to the document.
            if !rest.trim().is_empty() && !rest.trim_start().starts_with('#') {
                current = (index + 1, format!("{rest}\n"));
            }
        } else {
            current.1.push_str(line);
            current.1.push('\n');
        }
    }
    documents.push(current);
    let is_something = |text: &str| text.lines().any(|line| !line.trim().is_empty() && !line.trim().starts_with('#'));
    documents
        .into_iter()
        .filter(|(_, text)| is_something(text))
        .map(|(line, text)| (first_line(line, &text), trimmed(&text)))
        .collect()
}

/// The line of a document's first word, after comments and empty lines.
fn first_line(line: usize, text: &str) -> usize {
    line + text.lines().take_while(|line| is_idle(line)).count()
}

fn trimmed(text: &str) -> String {
    text.lines().skip_while(|line| is_idle(line)).flat_map(|line| [line, "\n"]).collect()
}

fn is_idle(line: &str) -> bool {
    line.trim().is_empty() || line.trim_start().starts_with('#') || line.starts_with("%YAML")
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "apiVersion: kaito.sh/v1alpha1\nkind: Workspace\nmetadata: {name: good}\nresource:\n  instanceType: \
                        Standard_NC12s_v3\n  labelSelector: {matchLabels: {apps: a}}\ninference: {preset: {name: \
                        falcon-7b}}\n";

    fn outcomes(text: &str) -> Vec<(usize, usize, String, Outcome)> {
        let checked = check(text, &InstanceTypes::built_in());
        checked
            .into_iter()
            .map(|one| (one.document, one.line, format!("{} {}", one.kind, one.name), one.outcome))
            .collect()
    }

    fn valid() -> Outcome {
        Outcome::Valid { warnings: Vec::new() }
    }

    #[test]
    fn documents_have_numbers_and_lines() {
        let text = format!(
            "# of the team\n\n{GOOD}---\n# a service\napiVersion: v1\nkind: Service\nmetadata: {{name: s}}\n--- # next\n\n{GOOD}---\n---\n"
        );
        let good = || ("Workspace good".to_owned(), valid());
        assert_eq!(
            outcomes(&text),
            [
                (1, 3, good().0, good().1),
                (2, 12, "Service s".to_owned(), Outcome::Skipped),
                (3, 17, good().0, good().1)
            ]
        );
        for nothing in ["", "\n", "---\n", "# nothing\n---\n"] {
            assert_eq!(outcomes(nothing), [], "{nothing:?}");
        }
    }

    #[test]
    fn lists_are_looked_into() {
        let item = serde_saphyr::from_str::<Value>(GOOD).unwrap();
        let list = serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": [item, { "apiVersion": "v1", "kind": "Pod" }] });
        let kinds: Vec<String> = outcomes(&list.to_string()).into_iter().map(|(_, _, name, _)| name).collect();
        assert_eq!(kinds, ["Workspace good", "Pod "]);
    }

    #[test]
    fn everything_wrong_is_told() {
        let only = |text: &str| {
            let mut all = outcomes(text);
            assert_eq!(all.len(), 1, "{text}");
            match all.remove(0).3 {
                Outcome::Refused { errors, .. } => errors.iter().map(ToString::to_string).collect::<Vec<_>>(),
                other => panic!("{other:?}"),
            }
        };
        for (text, expected) in [
            (
                GOOD.replace("falcon-7b", "falcon-8b").replace("labelSelector", "colour: red\n  labelSelector"),
                &[
                    "resource.colour: unknown field: `kubectl explain workspace` shows those there are",
                    "inference.preset.name: Unsupported inference preset name falcon-8b; did you mean falcon-7b?",
                ][..],
            ),
            (GOOD.replace("kind: Workspace\n", ""), &["kind: is missing; a workspace has kind: Workspace"]),
            (
                GOOD.replace("apiVersion: kaito.sh/v1alpha1\n", ""),
                &["apiVersion: is missing; a workspace has apiVersion: kaito.sh/v1beta1"],
            ),
            ("just text\n".to_owned(), &["is no object with fields, as manifests are"]),
        ] {
            assert_eq!(only(&text), expected, "{text}");
        }
        for (text, parts) in [
            (GOOD.replace("resource:\n", "resource:\n  count: two\n"), &["resource.count", "two"][..]),
            (GOOD.replace("v1alpha1", "v2"), &["apiVersion", "kaito.sh/v2", "kaito.sh/v1beta1"]),
            (
                format!("a: 1\n---\n{GOOD}").replace("a: 1\n---\n", "# x\n").replace("{name: good}", "{name: good"),
                &["line"],
            ),
            (format!("{GOOD}kind: Workspace\n"), &["kind", "line 8"]),
        ] {
            let errors = only(&text);
            for part in parts {
                assert!(errors[0].contains(part), "{part}: {errors:?}");
            }
        }
    }

    #[test]
    fn a_broken_document_does_not_hide_the_next() {
        let all = outcomes(&format!("a: [1\n---\n{GOOD}"));
        assert_eq!(all.len(), 2);
        assert!(matches!(&all[0].3, Outcome::Refused { .. }));
        assert_eq!((all[1].0, all[1].1, &all[1].3), (2, 3, &valid()));
    }

    proptest::proptest! {
        #[test]
        fn any_text_gets_an_answer(text in "(.|\n|--- ){0,300}") {
            let _ = check(&text, &InstanceTypes::built_in());
        }
    }
}

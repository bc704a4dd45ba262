//! Reads a workspace that a person wrote, and names every unknown field.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Workspace;

/// What was read, and what was not.
#[derive(Debug, Clone, PartialEq)]
pub struct Read<T> {
    /// The object.
    pub object: T,
    /// Paths of unknown fields, like `inference.preset.accesMode` or `inference.adapters[0].weight`.
    pub unknown_fields: Vec<String>,
}

/// A field whose value has the wrong type, or that is missing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{message}", if path.is_empty() { String::new() } else { format!("{path}: ") })]
pub struct ReadError {
    /// Path of the field, or of the object that lacks it; empty for the object as a whole.
    pub path: String,
    /// What is wrong with it.
    pub message: String,
}

/// Reads a workspace.
///
/// # Errors
///
/// The first field that cannot be read.
pub fn read(value: &Value) -> Result<Read<Workspace>, ReadError> {
    if !value.is_object() {
        return Err(ReadError { path: String::new(), message: "a workspace is an object, with fields".to_owned() });
    }
    read_as(value)
}

/// Reads any object.
pub(crate) fn read_as<T: DeserializeOwned>(value: &Value) -> Result<Read<T>, ReadError> {
    // Which fault is named first does not depend on the order in which the author wrote the fields.
    let mut value = value.clone();
    value.sort_all_objects();
    let mut unknown_fields = Vec::new();
    let mut track = serde_path_to_error::Track::new();
    let deserializer = serde_path_to_error::Deserializer::new(&value, &mut track);
    let object = serde_ignored::deserialize(deserializer, |path| unknown_fields.push(field_path(&path)));
    match object {
        Ok(object) => Ok(Read { object, unknown_fields }),
        Err(error) => {
            let path = track.path().to_string();
            Err(in_words(if path == "." { String::new() } else { path }, &error.to_string()))
        }
    }
}

/// The JSON reader's message, rewritten to be about the field.
fn in_words(path: String, message: &str) -> ReadError {
    let Some((what, expected)) = message.split_once(", expected ") else {
        let missing = message.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`'));
        return match missing {
            Some(field) if path.is_empty() => ReadError { path: field.to_owned(), message: "is missing".to_owned() },
            Some(field) => ReadError { path: format!("{path}.{field}"), message: "is missing".to_owned() },
            None => ReadError { path, message: message.to_owned() },
        };
    };
    let expected = match expected {
        "i32" => "a whole number of 32 bits",
        "i64" => "a whole number of 64 bits",
        "a sequence" => "a list",
        "a map" => "a mapping",
        other => other,
    };
    let is = ["invalid type: ", "invalid value: ", "unknown variant "].iter().find_map(|kind| what.strip_prefix(kind));
    let message = is.map_or_else(|| message.to_owned(), |is| format!("is {is}, but must be {expected}"));
    ReadError { path, message }
}

fn field_path(path: &serde_ignored::Path<'_>) -> String {
    use serde_ignored::Path;
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => format!("{}[{index}]", field_path(parent)),
        Path::Map { parent, key } => match field_path(parent) {
            parent if parent.is_empty() => key.clone(),
            parent => format!("{parent}.{key}"),
        },
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => field_path(parent),
    }
}

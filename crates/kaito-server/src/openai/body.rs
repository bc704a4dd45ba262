//! Bodies under `/v1`: JSON that may nest deeper than elsewhere, since schemas do.

use crate::error::ApiError;
use crate::fields::Fields;
use crate::json;

/// How deep lists and objects may nest. Of published schemas the deepest has 63 levels.
pub(crate) const DEPTH: usize = 128;

/// The fields of a body.
///
/// # Errors
/// 422 for anything but one JSON object.
pub(crate) fn parse(bytes: &[u8]) -> Result<Fields, ApiError> {
    json::parse_object_within(bytes, DEPTH).map(Fields::root)
}

/// `value` as JSON.
pub(crate) fn write(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|error| {
        // Only a type that writes keys that are no strings can fail, and there is none.
        tracing::error!(%error, "an answer could not be written");
        "null".to_owned()
    })
}

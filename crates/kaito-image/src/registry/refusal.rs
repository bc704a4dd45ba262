//! The refusals of registries, and what they mean.
//!
//! Registries use the same status and often the same code for different things; what tells them apart is what they write
//! for people.

use oci_spec::distribution::ErrorResponse;

const MAX_TEXT: usize = 500;

/// What registries write, in lower case, where the place that they have for images is used up.
const OVER_QUOTA: [&str; 7] = [
    "quota",
    "exceed the configured upper limit",
    "insufficient storage",
    "insufficient_storage",
    "storage limit",
    "storage capacity",
    "no space left",
];
/// What they write where a tag may not be moved.
const IMMUTABLE: [&str; 9] = [
    "immutab",
    "overwrit",
    "overrid",
    "already exists",
    "already been pushed",
    "does not allow updating",
    "protected tag",
    "is locked",
    // Azure's registries, of a tag that is locked.
    "operation is disallowed on this registry, repository or image",
];
/// What they write where a request has more bytes than they take.
const TOO_LARGE: [&str; 6] =
    ["too large", "too big", "exceeds the maximum", "maximum permissible", "maximum allowed", "exceeds the limit"];

/// What a registry says when it refuses.
#[derive(Debug, Default)]
pub(super) struct Refusal {
    pub(super) status: u16,
    /// Codes of the specification, and others.
    pub(super) codes: Vec<String>,
    /// For people, after a colon; empty if there is nothing.
    pub(super) message: String,
}

impl Refusal {
    /// From the body of an answer.
    pub(super) fn read(status: u16, body: &[u8]) -> Self {
        let mut refusal = Self { status, ..Self::default() };
        // The codes of the specification are an enum in oci-spec, but registries have codes of their own.
        let errors = match serde_json::from_slice::<ErrorResponse>(body) {
            Ok(response) => response
                .detail()
                .iter()
                .map(|error| (error.code().to_string(), error.message().clone().unwrap_or_default()))
                .collect(),
            Err(_) => own_errors(body),
        };
        let mut texts = Vec::new();
        for (code, message) in errors {
            texts.push(if message.is_empty() { code.clone() } else { format!("{code}: {message}") });
            refusal.codes.push(code);
        }
        let text = if texts.is_empty() { String::from_utf8_lossy(body).trim().to_owned() } else { texts.join("; ") };
        let printable = text.chars().map(|char| if char.is_control() { ' ' } else { char });
        let text: String = printable.take(MAX_TEXT).collect();
        refusal.message = if text.is_empty() { text } else { format!(": {text}") };
        refusal
    }

    pub(super) fn has(&self, code: &str) -> bool {
        self.codes.iter().any(|found| found == code)
    }

    fn says(&self, texts: &[&str]) -> bool {
        let message = self.message.to_lowercase();
        texts.iter().any(|text| message.contains(text))
    }

    /// The registry has no place for more.
    pub(super) fn is_over_quota(&self) -> bool {
        self.status == 507 || (400..500).contains(&self.status) && self.says(&OVER_QUOTA)
    }

    /// The tag is not to be moved.
    pub(super) fn is_immutable_tag(&self) -> bool {
        match self.status {
            _ if self.is_over_quota() || self.is_invalid_manifest() && !self.says(&["immutab"]) => false,
            // A conflict, a precondition that failed, a lock: of a tag that exists there is nothing else to say.
            409 | 412 | 423 if self.message.is_empty() => true,
            400 | 401 | 403 | 405 | 409 | 412 | 422 | 423 => self.says(&IMMUTABLE),
            _ => false,
        }
    }

    /// The registry does not take such a manifest, under whatever tag.
    pub(super) fn is_invalid_manifest(&self) -> bool {
        self.has("MANIFEST_INVALID") || self.has("MANIFEST_UNVERIFIED")
    }

    /// The registry does not have, or not yet, what the manifest names.
    pub(super) fn lacks_blob(&self) -> bool {
        self.has("MANIFEST_BLOB_UNKNOWN") || self.has("BLOB_UNKNOWN")
    }

    /// Fewer bytes at once would be taken.
    pub(super) fn is_too_large(&self) -> bool {
        match self.status {
            413 => !self.is_over_quota(),
            400 | 416 | 422 => self.says(&TOO_LARGE) && !self.is_over_quota(),
            _ => false,
        }
    }

    /// The registry does not know the upload, or not any more.
    pub(super) fn is_unknown_upload(&self) -> bool {
        self.has("BLOB_UPLOAD_UNKNOWN") || self.has("BLOB_UPLOAD_INVALID")
    }
}

/// Errors in the shape of the specification, with codes that it does not know.
fn own_errors(body: &[u8]) -> Vec<(String, String)> {
    let Ok(serde_json::Value::Object(body)) = serde_json::from_slice(body) else { return Vec::new() };
    let errors = body.get("errors").and_then(serde_json::Value::as_array).cloned().unwrap_or_default();
    let text =
        |error: &serde_json::Value, key| error.get(key).and_then(|value| value.as_str()).unwrap_or("").to_owned();
    errors.iter().map(|error| (text(error, "code"), text(error, "message"))).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn registries_have_error_codes_of_their_own() {
        let body = br#"{"errors": [{"code": "TAG_INVALID", "message": "immutable"}, {"message": 5}, 7]}"#;
        let none = (String::new(), String::new());
        assert_eq!(own_errors(body), [("TAG_INVALID".to_owned(), "immutable".to_owned()), none.clone(), none]);
        assert_eq!(own_errors(b"<html>"), []);
    }

    /// What registries answer, as their users report it.
    #[test]
    fn a_full_quota_an_immutable_tag_and_a_manifest_that_is_not_taken_are_told_apart() {
        const QUOTA: &str = "quota";
        const TAG: &str = "tag";
        const MANIFEST: &str = "manifest";
        const SIZE: &str = "size";
        const OTHER: &str = "other";
        for (status, code, message, meaning) in [
            // Harbor
            (
                403,
                "DENIED",
                "adding 1.5 GiB of storage resource, which when updated to current usage of 0 Byte will exceed the \
                 configured upper limit of 1 GiB.",
                QUOTA,
            ),
            (412, "PRECONDITION", "Failed to process request due to 'a:1' configured as immutable.", TAG),
            (412, "PROJECTPOLICYVIOLATION", "The image is not signed.", OTHER),
            // Amazon ECR
            (
                400,
                "TAG_INVALID",
                "The image tag '1' already exists in the 'a' repository and cannot be overwritten because the tag is \
                 immutable.",
                TAG,
            ),
            (400, "TAG_INVALID", "manifest tag did not match URI", OTHER),
            // Azure Container Registry
            (405, "UNSUPPORTED", "The operation is disallowed on this registry, repository or image.", TAG),
            (403, "DENIED", "The storage quota of the registry is exceeded.", QUOTA),
            // Nexus, Google, GitLab, Docker Hub
            (400, "UNKNOWN", "Repository does not allow updating assets: models", TAG),
            (400, "", "cannot update tag 1. The repository has enabled tag immutability", TAG),
            (403, "DENIED", "access to protected tag denied", TAG),
            (403, "DENIED", "requested access to the resource is denied", OTHER),
            (400, "MANIFEST_INVALID", "manifest invalid: layer mediaType not accepted", MANIFEST),
            (400, "MANIFEST_INVALID", "config already exists with another media type", MANIFEST),
            (422, "MANIFEST_UNVERIFIED", "", MANIFEST),
            (405, "UNSUPPORTED", "The operation is unsupported.", OTHER),
            (507, "", "", QUOTA),
            (413, "", "Request Entity Too Large", SIZE),
            (413, "DENIED", "namespace storage quota exceeded", QUOTA),
            (
                416,
                "REQUESTED_RANGE_NOT_SATISFIABLE",
                "the request body is too large and exceeds the maximum permissible limit of 4.00MiB",
                SIZE,
            ),
            (416, "RANGE_INVALID", "invalid content range", OTHER),
            (409, "", "", TAG),
            (423, "", "", TAG),
            (409, "", "another push is under way", OTHER),
        ] {
            let body = serde_json::json!({ "errors": [{ "code": code, "message": message }] }).to_string();
            let body = if code.is_empty() { message.to_owned() } else { body };
            let refusal = Refusal::read(status, body.as_bytes());
            let found: Vec<_> = [
                (QUOTA, refusal.is_over_quota()),
                (TAG, refusal.is_immutable_tag()),
                (MANIFEST, refusal.is_invalid_manifest()),
                (SIZE, refusal.is_too_large()),
            ]
            .into_iter()
            .filter_map(|(kind, found)| found.then_some(kind))
            .collect();
            let expected: Vec<_> = Some(meaning).filter(|meaning| *meaning != OTHER).into_iter().collect();
            assert_eq!(found, expected, "{status} {body}");
        }
    }

    proptest! {
        #[test]
        fn any_error_body_is_read(body in ".{0,200}", status in 400_u16..600) {
            let refusal = Refusal::read(status, body.as_bytes());
            prop_assert!(refusal.message.chars().count() <= MAX_TEXT + 2);
        }
    }
}

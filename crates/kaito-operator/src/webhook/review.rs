//! Answers an AdmissionReview: a pure function from the bytes of a request to those of its answer.

use k8s_openapi::ByteString;
use kaito_presets::InstanceTypes;
use kube::core::{
    DynamicObject, Status,
    admission::{AdmissionRequest, AdmissionResponse, AdmissionReview, Operation},
    response::{StatusCause, StatusDetails},
};
use serde_json::Value;

use crate::{
    admission::{self, FieldError},
    workspace::{GROUP, KIND, Workspace, strict},
};

/// The two webhooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Webhook {
    /// Sets defaults.
    Mutate,
    /// Applies the rules.
    Validate,
}

impl Webhook {
    /// The webhook at a path of the server.
    pub fn at(path: &str) -> Option<Self> {
        match path {
            "/mutate" => Some(Self::Mutate),
            "/validate" => Some(Self::Validate),
            _ => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Mutate => "mutate",
            Self::Validate => "validate",
        }
    }
}

/// An answer, and what metrics count of it.
#[derive(Debug)]
pub struct Answer {
    pub body: Vec<u8>,
    pub operation: &'static str,
    pub is_allowed: bool,
}

/// Answers the review in `body`.
///
/// # Errors
///
/// Where the body is no review; the text is for the log of the API server.
pub fn review(webhook: Webhook, body: &[u8], instance_types: &InstanceTypes) -> Result<Answer, String> {
    let review: AdmissionReview<DynamicObject> =
        serde_json::from_slice(body).map_err(|error| format!("the body is no AdmissionReview: {error}"))?;
    let api_version = review.types.api_version.clone();
    if api_version != "admission.k8s.io/v1" {
        return Err(format!("the review is of version {api_version:?}; this webhook speaks admission.k8s.io/v1"));
    }
    let request: AdmissionRequest<DynamicObject> =
        review.try_into().map_err(|_| "the AdmissionReview has no request".to_owned())?;
    if (request.kind.group.as_str(), request.kind.kind.as_str()) != (GROUP, KIND) {
        return Err(format!(
            "the review is of a {} of the group {:?}; this webhook knows a {KIND} of {GROUP:?} alone",
            request.kind.kind, request.kind.group
        ));
    }
    let operation = match request.operation {
        Operation::Create => "create",
        Operation::Update => "update",
        Operation::Delete => "delete",
        Operation::Connect => "connect",
    };
    let response = AdmissionResponse::from(&request);
    let mut response = match subject(&request) {
        None => response,
        Some(subject) => match webhook {
            Webhook::Mutate => mutate(response, &subject)?,
            Webhook::Validate => validate(response, &subject, instance_types),
        },
    };
    if let Some(details) = &mut response.result.details {
        details.name = request.name;
    }
    let is_allowed = response.allowed;
    let body = encode(response).map_err(|error| error.to_string())?;
    Ok(Answer { body, operation, is_allowed })
}

fn encode(mut response: AdmissionResponse) -> serde_json::Result<Vec<u8>> {
    let patch = response.patch.take();
    let mut review = serde_json::to_value(response.into_review())?;
    if let Some(patch) = patch {
        // In base64, as the specification says; the type alone would write a list of numbers.
        review["response"]["patch"] = serde_json::to_value(ByteString(patch))?;
    }
    review.sort_all_objects();
    serde_json::to_vec(&review)
}

/// The objects to review.
struct Subject {
    new: Value,
    old: Option<Value>,
    on_unknown_fields: OnUnknownFields,
}

/// What the client asks for about unknown fields: its `fieldValidation`, by the API server's rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OnUnknownFields {
    Ignore,
    Warn,
    Refuse,
}

/// `None` where nothing is checked: a workspace that is being deleted must be able to lose its finalizers, and only the
/// controller writes the status.
fn subject(request: &AdmissionRequest<DynamicObject>) -> Option<Subject> {
    if !matches!(request.operation, Operation::Create | Operation::Update)
        || request.sub_resource.as_ref().is_some_and(|name| !name.is_empty())
    {
        return None;
    }
    let object = request.object.as_ref()?;
    if object.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let on_unknown_fields = match request.options.as_ref().and_then(|options| options.0["fieldValidation"].as_str()) {
        Some("Strict") => OnUnknownFields::Refuse,
        Some("Ignore") => OnUnknownFields::Ignore,
        _ => OnUnknownFields::Warn,
    };
    let value = |object: &DynamicObject| serde_json::to_value(object).ok();
    Some(Subject { new: value(object)?, old: request.old_object.as_ref().and_then(value), on_unknown_fields })
}

fn validate(mut response: AdmissionResponse, subject: &Subject, instance_types: &InstanceTypes) -> AdmissionResponse {
    let new = match strict::read(&subject.new) {
        Ok(read) => read,
        Err(error) => return refuse(response, &[FieldError { path: error.path, message: error.message }]),
    };
    let old = subject.old.as_ref().map(strict::read);
    let verdict = match &old {
        Some(Ok(old)) => admission::validate_update(&old.object, &new.object),
        // An old object that cannot be read was stored by another release. The new one is then checked as a whole.
        None | Some(Err(_)) => admission::validate_create(&new.object, instance_types),
    };
    let (mut errors, mut warnings) = (verdict.errors, verdict.warnings);
    let known_before = old.and_then(Result::ok).map(|old| old.unknown_fields).unwrap_or_default();
    for path in new.unknown_fields {
        if is_of_the_api_server(&path) || known_before.contains(&path) {
            continue;
        }
        match subject.on_unknown_fields {
            OnUnknownFields::Ignore => {}
            OnUnknownFields::Warn => warnings.push(format!("{path}: unknown field; it has no effect")),
            OnUnknownFields::Refuse => errors.push(FieldError {
                path,
                message: "unknown field; it would have no effect (kubectl's --validate=warn lets it pass)".to_owned(),
            }),
        }
    }
    if !warnings.is_empty() {
        response.warnings = Some(warnings);
    }
    if errors.is_empty() { response } else { refuse(response, &errors) }
}

/// Fields of objects that the API server validates itself.
fn is_of_the_api_server(path: &str) -> bool {
    ["metadata", "status"].iter().any(|field| path.strip_prefix(field).is_some_and(|rest| rest.starts_with('.')))
}

/// Refuses with every reason at once.
fn refuse(mut response: AdmissionResponse, errors: &[FieldError]) -> AdmissionResponse {
    let message = match errors {
        [error] => error.to_string(),
        errors => errors
            .iter()
            .fold(format!("{} fields are wrong:", errors.len()), |text, error| format!("{text}\n- {error}")),
    };
    let causes = errors
        .iter()
        .map(|error| StatusCause {
            reason: "FieldValueInvalid".to_owned(),
            message: error.message.clone(),
            field: error.path.clone(),
        })
        .collect();
    response.allowed = false;
    response.result = Status::failure(&message, "Invalid").with_code(422).with_details(StatusDetails {
        group: GROUP.to_owned(),
        kind: KIND.to_owned(),
        causes,
        name: String::new(),
        uid: String::new(),
        retry_after_seconds: 0,
    });
    response
}

fn mutate(response: AdmissionResponse, subject: &Subject) -> Result<AdmissionResponse, String> {
    // An object that cannot be read gets no defaults; the validating webhook and the API server say what is wrong with it.
    let Ok(read) = strict::read(&subject.new) else { return Ok(response) };
    let patch = difference(&read.object, &admission::defaults(&read.object)).map_err(|error| error.to_string())?;
    if patch.0.is_empty() { Ok(response) } else { response.with_patch(patch).map_err(|error| error.to_string()) }
}

/// The difference of the defaults alone: both sides are serialised by the same types.
fn difference(before: &Workspace, after: &Workspace) -> serde_json::Result<json_patch::Patch> {
    // In the order of the fields' names, in which the patch then has its operations.
    let [mut before, mut after] = [serde_json::to_value(before)?, serde_json::to_value(after)?];
    before.sort_all_objects();
    after.sort_all_objects();
    Ok(json_patch::diff(&before, &after))
}

#[cfg(test)]
mod tests;

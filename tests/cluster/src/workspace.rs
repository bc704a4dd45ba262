//! Workspaces as a user sees them: untyped objects of the API, read without the crate under test.

use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, GroupVersionKind},
};
use serde_json::Value;

/// The kind, in its storage version.
pub fn workspaces() -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("kaito.sh", "v1beta1", "Workspace"), "workspaces")
}

/// The workspaces of a namespace.
pub fn api(client: &Client, namespace: &str) -> Api<DynamicObject> {
    Api::namespaced_with(client.clone(), namespace, &workspaces())
}

/// A condition of an object's status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// The cause, for programs.
    pub reason: String,
    /// The cause, for people.
    pub message: String,
    /// The generation of the object that it is about.
    pub observed_generation: Option<i64>,
}

/// The condition of a type, if there is one.
pub fn condition(object: &DynamicObject, kind: &str) -> Option<Condition> {
    let conditions = object.data["status"]["conditions"].as_array()?;
    let found = conditions.iter().find(|condition| condition["type"] == kind)?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Some(Condition {
        status: text(&found["status"]),
        reason: text(&found["reason"]),
        message: text(&found["message"]),
        observed_generation: found["observedGeneration"].as_i64(),
    })
}

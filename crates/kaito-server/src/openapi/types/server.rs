//! What the routes around the work answer.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde_json::Value;

/// An empty object.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(in super::super) struct Nothing {}

/// Any object.
#[derive(JsonSchema)]
#[schemars(transparent)]
pub(in super::super) struct Anything(BTreeMap<String, Value>);

/// The model is loaded and makes progress.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(in super::super) struct Health {
    /// `Healthy`
    status: String,
}

/// The version of the server.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(in super::super) struct Version {
    version: String,
}

/// The server runs.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(in super::super) struct Running {
    message: String,
}

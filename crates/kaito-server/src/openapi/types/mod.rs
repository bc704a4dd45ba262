//! The bodies of requests and answers as types. Nothing is made of them but their schemas: requests are read field by field, so
//! that each error names its field, and answers are written by their dialects. Tests compare both with these schemas.
#![allow(dead_code, reason = "only their schemas are used")]

pub(super) mod anthropic;
pub(super) mod kaito;
pub(super) mod ollama;
pub(super) mod openai;
pub(super) mod responses;
pub(super) mod server;
pub(super) mod streams;
pub(super) mod tgi;
pub(super) mod tokens;

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator};

/// A field that is always there, and may be null. (An `Option` may be left out.)
struct OrNull<T>(Option<T>);

impl<T: JsonSchema> JsonSchema for OrNull<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        Option::<T>::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        Option::<T>::json_schema(generator)
    }
}

/// An error of Kaito's own routes.
#[derive(JsonSchema)]
#[schemars(rename = "KaitoErrorResponse", deny_unknown_fields)]
pub(super) struct KaitoError {
    /// One sentence: the parameter, its value, and what is allowed.
    detail: String,
}

/// An error of the OpenAI API.
#[derive(JsonSchema)]
#[schemars(rename = "ErrorResponse", deny_unknown_fields)]
pub(super) struct OpenAiError {
    error: OpenAiErrorBody,
}

/// What is wrong.
#[derive(JsonSchema)]
#[schemars(rename = "Error", deny_unknown_fields)]
pub(super) struct OpenAiErrorBody {
    /// One sentence: the parameter, its value, and what is allowed.
    message: String,
    r#type: OpenAiErrorType,
    /// The field that is to blame, as a path such as `messages[1].content`.
    param: OrNull<String>,
    /// What programs tell errors apart by.
    code: OrNull<String>,
}

#[derive(JsonSchema)]
#[schemars(inline)]
enum OpenAiErrorType {
    #[serde(rename = "invalid_request_error")]
    InvalidRequest,
    #[serde(rename = "authentication_error")]
    Authentication,
    #[serde(rename = "rate_limit_error")]
    RateLimit,
    #[serde(rename = "server_error")]
    Server,
}

/// An error of Ollama's API.
#[derive(JsonSchema)]
#[schemars(rename = "OllamaErrorResponse", deny_unknown_fields)]
pub(super) struct OllamaError {
    /// One sentence: the parameter, its value, and what is allowed.
    error: String,
}

/// An error of the Messages API.
#[derive(JsonSchema)]
#[schemars(rename = "MessagesErrorResponse")]
pub(super) struct AnthropicError {
    r#type: ErrorTag,
    error: AnthropicErrorBody,
}

#[derive(JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
enum ErrorTag {
    Error,
}

/// What is wrong.
#[derive(JsonSchema)]
#[schemars(rename = "MessagesError", deny_unknown_fields)]
pub(super) struct AnthropicErrorBody {
    /// `invalid_request_error`, `authentication_error`, `permission_error`, `not_found_error`, `request_too_large`,
    /// `rate_limit_error`, `overloaded_error` or `api_error`.
    r#type: String,
    /// One sentence.
    message: String,
}

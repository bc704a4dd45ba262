//! The API of text-generation-inference.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde_json::Value;

/// A text to continue.
#[derive(JsonSchema)]
#[schemars(rename = "TgiGenerateRequest")]
pub(in super::super) struct GenerateRequest {
    inputs: String,
    parameters: Option<Parameters>,
    /// Answer by server-sent events.
    stream: Option<bool>,
}

/// How it is continued.
#[derive(JsonSchema)]
#[schemars(rename = "TgiParameters")]
pub(in super::super) struct Parameters {
    /// Most tokens of the answer; 100 unless set.
    max_new_tokens: Option<u64>,
    do_sample: Option<bool>,
    temperature: Option<f64>,
    top_k: Option<i64>,
    top_p: Option<f64>,
    typical_p: Option<f64>,
    repetition_penalty: Option<f64>,
    frequency_penalty: Option<f64>,
    seed: Option<u64>,
    /// The text ends with the first of these that occurs.
    stop: Option<Vec<String>>,
    /// Put the prompt before the answer.
    return_full_text: Option<bool>,
    /// Add the tokens with their log-probabilities.
    details: Option<bool>,
    /// Add those of the prompt.
    decoder_input_details: Option<bool>,
    /// For each token, so many likeliest ones.
    top_n_tokens: Option<u64>,
}

/// What continues it.
#[derive(JsonSchema)]
#[schemars(rename = "TgiGenerated")]
pub(in super::super) struct Generated {
    generated_text: String,
    details: Option<BTreeMap<String, Value>>,
}

//! The API of text-generation-inference: `inputs` to `/generate`, `/generate_stream` and `/`, and `/info`.
//!
//! At `/generate`, [`is_ours`] tells its bodies from Kaito's own.

mod answer;
mod request;

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::json;

pub(crate) use self::request::{is_ours, parse_generate, parse_root, parse_stream};
use crate::error::ApiError;
use crate::openai::names;
use crate::state::App;

/// What is served, and its limits.
///
/// # Errors
/// 503 while the model loads.
pub(crate) async fn info(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let model = app.model().ok_or_else(|| app.still_loading())?;
    let info = model.info();
    let body = json!({
        "model_id": names::canonical(&app.options),
        "model_sha": null,
        "model_dtype": info.precision(),
        "model_pipeline_tag": "text-generation",
        "max_concurrent_requests": info.max_batch_size,
        "max_best_of": info.max_batch_size,
        "max_stop_sequences": request::MAX_STOPS,
        "max_input_tokens": info.max_seq_len.saturating_sub(1),
        "max_total_tokens": info.max_seq_len,
        "router": "kaito",
        "version": env!("CARGO_PKG_VERSION"),
    });
    Ok(Json(body).into_response())
}

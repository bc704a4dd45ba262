//! The models that are served: `GET /v1/models` and `GET /v1/models/{id}`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::json;

use super::head::seconds;
use super::names;
use crate::error::ApiError;
use crate::state::App;

/// A model or an adapter as it is listed.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Model<'a> {
    id: &'a str,
    object: &'static str,
    /// When the server started, in seconds since 1970.
    created: u64,
    owned_by: &'static str,
    /// What the model is published as; an adapter's folder.
    root: &'a str,
    /// The model that an adapter changes.
    parent: Option<&'a str>,
    max_model_len: usize,
    /// Clients of old read it; there is nothing in it.
    permission: [(); 0],
}

impl<'a> Model<'a> {
    /// The model by this name.
    fn own(id: &'a str, app: &'a App, max_model_len: usize) -> Self {
        Self {
            id,
            object: "model",
            created: seconds(app.started),
            owned_by: "kaito",
            root: app.options.repository.as_deref().unwrap_or(&app.options.model_name),
            parent: None,
            max_model_len,
            permission: [],
        }
    }

    /// An adapter of it.
    fn adapter(id: &'a str, root: &'a str, app: &'a App, max_model_len: usize) -> Self {
        Self { root, parent: Some(names::canonical(&app.options)), ..Self::own(id, app, max_model_len) }
    }
}

/// All of them; none while the model loads.
pub(crate) async fn list(State(app): State<Arc<App>>) -> Response {
    let Some(model) = app.model() else { return Json(json!({ "object": "list", "data": [] })).into_response() };
    let longest = model.info().max_seq_len;
    let (alone, adapters) = (model.names(&app.options).alone(), model.adapters().list());
    let own = names::served(&app.options).iter().map(|name| Model::own(name, &app, longest));
    let alone = alone.iter().map(|name| Model::own(name, &app, longest));
    let folders: Vec<_> = adapters.iter().map(|adapter| adapter.directory.display().to_string()).collect();
    let adapters =
        adapters.iter().zip(&folders).map(|(adapter, folder)| Model::adapter(&adapter.name, folder, &app, longest));
    let models: Vec<_> = own.chain(alone).chain(adapters).collect();
    Json(json!({ "object": "list", "data": models })).into_response()
}

/// One of them, by any of its names.
///
/// # Errors
/// 404 for a name that it does not have, 503 while it loads.
pub(crate) async fn retrieve(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Response, ApiError> {
    let model = app.model().ok_or_else(|| app.still_loading())?;
    let longest = model.info().max_seq_len;
    if let Some(adapter) = model.adapters().list().into_iter().find(|adapter| adapter.name == id) {
        let folder = adapter.directory.display().to_string();
        return Ok(Json(Model::adapter(&id, &folder, &app, longest)).into_response());
    }
    let names = model.names(&app.options);
    if !app.options.any_model_name && names.find(&id).is_none() {
        return Err(names.unknown(&id));
    }
    Ok(Json(Model::own(&id, &app, longest)).into_response())
}

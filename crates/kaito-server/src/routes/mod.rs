//! The routes and what answers them.

mod table;
mod work;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Extension, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router, middleware};
use kaito_metrics::Format;
use serde_json::json;
use tower_http::catch_panic::CatchPanicLayer;

use self::table::Answer;
pub(crate) use self::table::{Access, Family, ROUTES, Route, Verb, family, is_work, label, parser};
use crate::error::{self, ApiError};
use crate::record::{self, Record};
use crate::state::App;
use crate::{auth, cross_origin, framing, health, host, page};

/// The address of the client.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// All routes.
pub(crate) fn router(app: Arc<App>) -> Router {
    let mut router = Router::new();
    for route in ROUTES {
        let methods = match route.answer {
            Answer::Handler(handler) => handler(),
            Answer::Work(parse) => {
                post(move |State(app): State<Arc<App>>, Extension(record): Extension<Arc<Record>>, request: Request| {
                    work::answer(app, record, parse, request)
                })
            }
        };
        let methods = match route.access {
            Access::Key => methods.route_layer(middleware::from_fn_with_state(Arc::clone(&app), auth::require_key)),
            Access::Open | Access::Own => methods,
        };
        router = router.route(route.path, methods);
    }
    let router = router
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(CatchPanicLayer::custom(record::panicked));
    let hosts = Arc::new(host::Hosts::of(&app.options));
    let router = match cross_origin::layer(&app.options.allowed_origins) {
        Some(layer) => router.layer(layer),
        None => router,
    };
    router
        .layer(Extension(Arc::clone(&hosts)))
        .layer(middleware::from_fn_with_state(hosts, host::check))
        .layer(middleware::from_fn(framing::guard))
        .layer(middleware::from_fn(error::shape))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), record::keep))
        .with_state(app)
}

async fn home(State(app): State<Arc<App>>, headers: HeaderMap) -> Response {
    let browser = headers
        .get_all(header::ACCEPT)
        .iter()
        .any(|value| value.to_str().is_ok_and(|value| value.to_ascii_lowercase().contains("text/html")));
    let mut response =
        if browser { page::respond(&app) } else { Json(json!({ "message": "Server is running" })).into_response() };
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("accept"));
    response
}

async fn healthz(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    health::check(&app).await?;
    Ok(Json(json!({ "status": "Healthy" })).into_response())
}

/// For the probes of vLLM's and SageMaker's users, who read the status alone.
async fn probe(State(app): State<Arc<App>>) -> Response {
    let status = health::check(&app).await.err().map(IntoResponse::into_response);
    let Some(unfit) = status else { return StatusCode::OK.into_response() };
    let (mut parts, _) = unfit.into_parts();
    parts.headers.remove(header::CONTENT_TYPE);
    parts.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(parts, Body::empty())
}

async fn version() -> Response {
    Json(json!({ "version": env!("CARGO_PKG_VERSION") })).into_response()
}

async fn show_metrics(State(app): State<Arc<App>>, headers: HeaderMap) -> Result<Response, ApiError> {
    let format = Format::negotiate(headers.get_all(header::ACCEPT).iter().map(HeaderValue::as_bytes));
    let of_engine = match app.model() {
        Some(model) => model.engine_metrics().await,
        None => None,
    };
    let text = app
        .metrics
        .encode(format, of_engine.as_deref())
        .map_err(|_| ApiError::internal("The metrics could not be written."))?;
    let headers = [(header::CONTENT_TYPE, format.content_type()), (header::VARY, "accept")];
    Ok((headers, text).into_response())
}

async fn shut_down(
    State(app): State<Arc<App>>,
    Extension(Peer(peer)): Extension<Peer>,
    Extension(hosts): Extension<Arc<host::Hosts>>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    auth::check_shutdown(&app.options.api_keys, &hosts, peer, &uri, &headers)?;
    tracing::info!(%peer, "shutdown requested");
    app.ask_for_end();
    Ok(Json(json!({})).into_response())
}

async fn no_route(uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(100).collect();
    let others = table::paths(table::family(uri.path())).collect::<Vec<_>>().join(", ").replace("{*", "{");
    ApiError::new(StatusCode::NOT_FOUND, format!("There is no route {path}; there are {others}."))
}

async fn no_method(method: Method, uri: Uri) -> Response {
    let path = uri.path();
    let verbs = |verb| table::at(path).any(|route| route.verb == verb);
    let (allowed, text) = match (verbs(Verb::Get), verbs(Verb::Post)) {
        (true, true) => ("GET,HEAD,POST", "GET and POST"),
        (false, true) => ("POST", "POST"),
        _ => ("GET,HEAD", "GET"),
    };
    let error = ApiError::new(StatusCode::METHOD_NOT_ALLOWED, format!("{path} takes {text}, not {method}."));
    ([(HeaderName::from_static("allow"), allowed)], error).into_response()
}

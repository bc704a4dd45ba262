//! The routes and what answers them.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{Extension, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use kaito_engine::Cancel;
use kaito_metrics::Format;
use serde_json::json;
use tokio::time::Instant;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::dialect::{self, Endpoint};
use crate::error::ApiError;
use crate::job::Job;
use crate::keeping::Keeping;
use crate::record::{self, Record};
use crate::state::{App, Phase};
use crate::{auth, body, framing, health, host, limits, page, stream};

const ROUTES: [&str; 6] = ["/", "/healthz", "/metrics", "/generate", "/chat", "/shutdown"];

/// The route as metrics and logs name it. Clients may ask for any path, and metrics must have few labels.
pub(crate) fn label(path: &str) -> &'static str {
    ROUTES.into_iter().find(|route| *route == path).unwrap_or("other")
}

/// Whether a route generates text.
pub(crate) fn is_work(route: &str) -> bool {
    ["/generate", "/chat"].contains(&route)
}

/// The address of the client.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// All routes.
pub(crate) fn router(app: Arc<App>) -> Router {
    let router = Router::new()
        .route("/", get(home))
        .route("/healthz", get(healthz))
        .route("/metrics", get(show_metrics))
        .route("/shutdown", post(shut_down))
        .route("/generate", post(generate))
        .route("/chat", post(chat))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(CatchPanicLayer::custom(record::panicked));
    let hosts = Arc::new(host::Hosts::of(&app.options));
    let router = match cross_origin(&app.options.allowed_origins) {
        Some(layer) => router.layer(layer),
        None => router,
    };
    router
        .layer(Extension(Arc::clone(&hosts)))
        .layer(middleware::from_fn_with_state(hosts, host::check))
        .layer(middleware::from_fn(framing::guard))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), record::keep))
        .with_state(app)
}

fn cross_origin(origins: &[HeaderValue]) -> Option<CorsLayer> {
    let origin = match origins {
        [] => return None,
        list if list.contains(&HeaderValue::from_static("*")) => AllowOrigin::any(),
        list => AllowOrigin::list(list.iter().cloned()),
    };
    Some(
        CorsLayer::new()
            .allow_origin(origin)
            .allow_methods([Method::GET, Method::POST])
            .allow_headers([header::AUTHORIZATION, header::CONTENT_TYPE]),
    )
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

async fn show_metrics(State(app): State<Arc<App>>, headers: HeaderMap) -> Result<Response, ApiError> {
    let format = Format::negotiate(headers.get_all(header::ACCEPT).iter().map(HeaderValue::as_bytes));
    let text = app.metrics.encode(format).map_err(|_| ApiError::internal("The metrics could not be written."))?;
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
    app.advance_to(Phase::Draining);
    Ok(Json(json!({})).into_response())
}

async fn generate(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Arc<Record>>,
    request: Request,
) -> Result<Response, ApiError> {
    work(app, record, Endpoint::Generate, request).await
}

async fn chat(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Arc<Record>>,
    request: Request,
) -> Result<Response, ApiError> {
    work(app, record, Endpoint::Chat, request).await
}

async fn work(app: Arc<App>, record: Arc<Record>, endpoint: Endpoint, request: Request) -> Result<Response, ApiError> {
    let timeout = app.options.request_timeout;
    let deadline = Instant::from_std(record.started) + timeout;
    let (parts, body) = request.into_parts();
    auth::check_key(&app.options.api_keys, &parts.headers)?;
    app.check_open()?;
    limits::check_content_type(&parts.headers)?;
    let body = body::read(&app, &parts.headers, body, deadline).await?;
    let admission = app.admit()?;
    let mut admitted = admission.clone();

    let cancel = CancelOnDrop(Cancel::at(Some(deadline.into_std())));
    let prepare = async {
        let turn = app.turns.take(body.bytes.len()).await;
        let (span, app, cancel) = (tracing::Span::current(), Arc::clone(&app), cancel.0.clone());
        let prepared = tokio::task::spawn_blocking(move || {
            let (_turn, _entered) = (turn, span.enter());
            let body::Whole { bytes, held: _held } = body;
            cancel.check()?;
            let request = dialect::parse(endpoint, &bytes)?;
            drop(bytes);
            cancel.check()?;
            let job = Job::start(app, record, admission, deadline, request.work, &cancel)?;
            Ok::<_, ApiError>((request.stream, job))
        });
        prepared.await.unwrap_or_else(|_| Err(ApiError::internal("The server failed on this request.")))
    };
    let (stream, job) = tokio::select! {
        prepared = tokio::time::timeout_at(deadline, prepare) => match prepared {
            Ok(Err(_)) | Err(_) if cancel.0.is_cancelled() => Err(limits::timed_out(timeout)),
            Ok(prepared) => prepared,
            Err(_) => Err(limits::timed_out(timeout)),
        },
        () = admitted.revoked() => Err(App::shutting_down()),
    }?;
    let response = if stream {
        stream::respond(job)
    } else {
        ([(header::CONTENT_TYPE, "application/json")], job.answer().await?).into_response()
    };
    // The request is over when its answer was sent.
    Ok(response.map(|body| Keeping::wrap(body, admitted)))
}

/// Tells the thread that prepares a request when nobody waits for it any more.
struct CancelOnDrop(Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

async fn no_route(uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(100).collect();
    ApiError::new(StatusCode::NOT_FOUND, format!("There is no route {path}; there are {}.", ROUTES.join(", ")))
}

async fn no_method(method: Method, uri: Uri) -> Response {
    let path = uri.path();
    let (allowed, text) = if is_work(path) || path == "/shutdown" { ("POST", "POST") } else { ("GET,HEAD", "GET") };
    let error = ApiError::new(StatusCode::METHOD_NOT_ALLOWED, format!("{path} takes {text}, not {method}."));
    ([(HeaderName::from_static("allow"), allowed)], error).into_response()
}

//! The way of a request that generates: from its head to its answer, every stage bounded in time and memory.

use std::sync::Arc;

use axum::extract::Request;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use kaito_engine::Cancel;
use tokio::time::Instant;

use super::table;
use crate::dialect::Parse;
use crate::error::ApiError;
use crate::job::{Job, Start};
use crate::keeping::Keeping;
use crate::record::Record;
use crate::state::App;
use crate::{body, limits, stream};

/// Answers a request whose body `parse` reads.
pub(super) async fn answer(
    app: Arc<App>,
    record: Arc<Record>,
    parse: Parse,
    request: Request,
) -> Result<Response, ApiError> {
    let timeout = app.options.request_timeout;
    let deadline = Instant::from_std(record.started) + timeout;
    let (parts, body) = request.into_parts();
    app.check_open()?;
    limits::check_content_type(&parts.headers, table::family(parts.uri.path()))?;
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
            let request = parse(&bytes)?;
            drop(bytes);
            cancel.check()?;
            let start = Job::start(app, record, admission, deadline, request.work, &cancel)?;
            Ok::<_, ApiError>((request.stream, start))
        });
        prepared.await.unwrap_or_else(|_| Err(ApiError::internal("The server failed on this request.")))
    };
    let (stream, start) = tokio::select! {
        prepared = tokio::time::timeout_at(deadline, prepare) => match prepared {
            Ok(Err(_)) | Err(_) if cancel.0.is_cancelled() => Err(limits::timed_out(timeout)),
            Ok(prepared) => prepared,
            Err(_) => Err(limits::timed_out(timeout)),
        },
        () = admitted.revoked() => Err(App::shutting_down()),
    }?;
    let json = |body: String| ([(header::CONTENT_TYPE, "application/json")], body).into_response();
    let response = match start {
        Start::Job(job) if stream => stream::respond(*job),
        Start::Job(job) => json(job.answer().await?),
        Start::Known(body) => json(body),
        Start::Text(body) => body.into_response(),
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

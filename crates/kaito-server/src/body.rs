//! Reading a request's body.

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use futures_util::StreamExt;
use tokio::time::Instant;

use crate::body_pool::Held;
use crate::error::ApiError;
use crate::limits;
use crate::state::App;

/// The memory that the first piece of a body gets at least, if the body announces as much.
const FIRST: usize = 4 << 10;

/// A whole body, and the memory that it holds as long as it is prepared.
pub(crate) struct Whole {
    pub(crate) bytes: Vec<u8>,
    pub(crate) held: Held,
}

/// Reads the whole body, as far as the limits allow.
///
/// # Errors
/// 413 over the limit, 408 at the deadline or where others need the memory of a body that hardly moves, 400 when the
/// client breaks off, 503 when there is no memory, or when the server is to end.
pub(crate) async fn read(app: &App, headers: &HeaderMap, body: Body, deadline: Instant) -> Result<Whole, ApiError> {
    let limit = app.options.body_limit;
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit as u64) {
        return Err(too_large(announced, limit));
    }
    let held = app.bodies.begin();
    let whole = async {
        let mut bytes = Vec::new();
        let ceiling = announced.and_then(|length| usize::try_from(length).ok()).unwrap_or(limit);
        let mut chunks = body.into_data_stream();
        grow(app, &held, Held::OVERHEAD).await?;
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| ApiError::bad_request(format!("The body broke off: {error}.")))?;
            let needed = bytes.len() + chunk.len();
            if needed > limit {
                return Err(too_large(None, limit));
            }
            let has = bytes.capacity();
            if needed > has {
                let gets = (2 * has).max(FIRST).min(ceiling).max(needed);
                grow(app, &held, gets - has).await?;
                bytes.reserve_exact(gets - bytes.len());
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    };
    let bytes = tokio::select! {
        biased;
        () = app.drains() => Err(App::shutting_down()),
        () = held.gives_way() => Err(ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            "The body came so slowly that it gave way to others; send it again.",
        )),
        whole = tokio::time::timeout_at(deadline, whole) => {
            whole.unwrap_or_else(|_| Err(limits::timed_out(app.options.request_timeout)))
        }
    }?;
    held.complete();
    Ok(Whole { bytes, held })
}

async fn grow(app: &App, held: &Held, more: usize) -> Result<(), ApiError> {
    if held.grow(more).await {
        return Ok(());
    }
    Err(ApiError::unavailable(format!(
        "Bodies of other requests fill the {} bytes that are there for them; try again later.",
        app.bodies.capacity()
    )))
}

fn too_large(announced: Option<u64>, limit: usize) -> ApiError {
    let detail = match announced {
        Some(length) => format!("The body has {length} bytes; the limit is {limit}."),
        None => format!("The body is over the limit of {limit} bytes."),
    };
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, detail)
}

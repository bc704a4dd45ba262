//! Whether the server is fit to answer.

use std::time::Duration;

use kaito_engine::EngineStats;

use crate::error::ApiError;
use crate::state::{App, Phase};

/// `Ok` when the model is loaded and the engine makes progress.
///
/// # Errors
/// 503 with the reason.
pub(crate) fn check(app: &App) -> Result<(), ApiError> {
    if *app.phase().borrow() != Phase::Serving {
        return Err(ApiError::unavailable("The server is shutting down."));
    }
    let model = app.model().ok_or_else(|| app.still_loading())?;
    check_progress(&model.stats(), app.options.stall_limit)
}

fn check_progress(stats: &EngineStats, limit: Duration) -> Result<(), ApiError> {
    match stats.since_progress {
        Some(since) if since > limit => Err(ApiError::unavailable(format!(
            "The engine is stuck: no progress for {} s, with {} sequences running and {} waiting.",
            since.as_secs(),
            stats.running,
            stats.waiting,
        ))),
        _ => Ok(()),
    }
}

//! `/healthz`: whether the server can answer requests.

use std::time::Duration;

use kaito_engine::EngineStats;

use crate::error::ApiError;
use crate::model::SharedModel;
use crate::state::App;

/// `Ok` when the model is loaded, its files are what was loaded, and the engine makes progress.
///
/// # Errors
/// 503 with the reason.
pub(crate) async fn check(app: &App) -> Result<(), ApiError> {
    let model = app.check_open()?;
    if let Some(trouble) = model.trouble() {
        return Err(ApiError::unavailable(trouble));
    }
    check_progress(&model.stats(), app.options.stall_limit, || model.cause())?;
    check_files(app, model.clone()).await
}

/// Weights are read where they lie in the mapped files, so a change to the files changes the model.
async fn check_files(app: &App, model: SharedModel) -> Result<(), ApiError> {
    if app.changed_files.get().is_none() {
        // A disk, or a file system of a network, may take its time.
        let changed = tokio::task::spawn_blocking(move || model.changed_files()).await;
        let changes: Vec<String> = changed.iter().flatten().map(ToString::to_string).collect();
        if !changes.is_empty() && app.changed_files.set(changes.join("; ")).is_ok() {
            for change in changes {
                tracing::error!(change, "a file of the model was changed in place: its answers mean nothing any more");
            }
        }
    }
    match app.changed_files.get() {
        None => Ok(()),
        Some(change) => Err(ApiError::unavailable(format!(
            "The weights are not those that were loaded: {change}; restart the server, and next time write a new file and \
             rename it into place."
        ))),
    }
}

fn check_progress(stats: &EngineStats, limit: Duration, cause: impl Fn() -> Option<String>) -> Result<(), ApiError> {
    if let Some(error) = &stats.device_lost {
        return Err(ApiError::unavailable(format!("The device is lost ({error}); restart the server.")));
    }
    if stats.stopped {
        return Err(ApiError::unavailable("The engine has stopped; restart the server."));
    }
    match stats.since_progress {
        Some(since) if since > limit => Err(ApiError::unavailable(format!(
            "The engine is stuck: no progress for {} s, with {} sequences running and {} requests waiting.{}",
            since.as_secs(),
            stats.running,
            stats.waiting,
            cause().map(|cause| format!(" {cause}")).unwrap_or_default(),
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use kaito_engine::{DeviceError, DeviceErrorKind};

    use super::*;

    #[test]
    fn an_engine_that_has_work_and_makes_no_progress_is_stuck() {
        let limit = Duration::from_secs(60);
        let stats = |since: Option<u64>| EngineStats {
            running: 3,
            waiting: 2,
            since_progress: since.map(Duration::from_secs),
            ..EngineStats::default()
        };
        for fit in [None, Some(0), Some(60)] {
            assert_eq!(check_progress(&stats(fit), limit, || None), Ok(()));
        }
        let stopped = EngineStats { stopped: true, ..EngineStats::default() };
        let error = check_progress(&stopped, limit, || None).unwrap_err();
        assert_eq!((error.status().as_u16(), error.detail()), (503, "The engine has stopped; restart the server."));
        let lost = DeviceError::new(DeviceErrorKind::Lost, "gpu:0", "it fell off the bus");
        let error =
            check_progress(&EngineStats { device_lost: Some(lost), ..stats(None) }, limit, || None).unwrap_err();
        assert_eq!(
            (error.status().as_u16(), error.detail()),
            (503, "The device is lost (gpu:0: it fell off the bus); restart the server.")
        );
        let error = check_progress(&stats(Some(75)), limit, || None).unwrap_err();
        assert_eq!(error.status(), 503);
        assert_eq!(
            error.detail(),
            "The engine is stuck: no progress for 75 s, with 3 sequences running and 2 requests waiting."
        );
        let cause = || Some("Stopped processes: 7 (worker) of rank 1.".to_owned());
        let error = check_progress(&stats(Some(75)), limit, cause).unwrap_err();
        assert!(error.detail().ends_with("2 requests waiting. Stopped processes: 7 (worker) of rank 1."), "{error:?}");
    }
}

//! What all requests share.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use kaito_engine::LanguageModel;
use tokio::sync::{Semaphore, watch};

use crate::error::ApiError;
use crate::metrics::Metrics;
use crate::options::ServerOptions;

/// The life of a server. It only goes forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Requests are taken, as soon as the model is loaded.
    Serving,
    /// No new requests; running ones go on.
    Draining,
    /// Running requests are broken off.
    Ended,
}

/// A request's permission to run. While it lives, draining waits for it.
pub(crate) struct Admission {
    pub(crate) model: LanguageModel,
    phase: watch::Receiver<Phase>,
}

impl Admission {
    /// Returns when running requests are to be broken off.
    pub(crate) async fn revoked(&mut self) {
        // An error means that the server is gone altogether.
        let _ = self.phase.wait_for(|phase| *phase == Phase::Ended).await;
    }
}

/// What all requests share.
pub(crate) struct App {
    pub(crate) options: ServerOptions,
    pub(crate) metrics: Metrics,
    /// Bounds the requests that are parsed and tokenised at one time, so that these leave the processors to the engine.
    pub(crate) preparing: Arc<Semaphore>,
    /// What was found to have changed of the model's files; it is not forgotten, whatever becomes of them.
    pub(crate) changed_files: OnceLock<String>,
    phase: watch::Sender<Phase>,
    model: Arc<OnceLock<LanguageModel>>,
    /// The loaded fraction of the model, as the bits of an f32.
    loaded: AtomicU32,
    requests: AtomicU64,
}

impl App {
    pub(crate) fn new(options: ServerOptions) -> Self {
        let model = Arc::new(OnceLock::new());
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            metrics: Metrics::new(&options.model_name, Arc::clone(&model), Arc::clone(&options.dropped_log_lines)),
            changed_files: OnceLock::new(),
            preparing: Arc::new(Semaphore::new(processors)),
            phase: watch::Sender::new(Phase::Serving),
            model,
            loaded: AtomicU32::new(0),
            requests: AtomicU64::new(0),
            options,
        }
    }

    pub(crate) fn set_progress(&self, fraction: f32) {
        self.loaded.store(fraction.to_bits(), Ordering::Relaxed);
    }

    pub(crate) fn set_model(&self, model: LanguageModel) {
        // A server loads one model in its life.
        let _ = self.model.set(model);
    }

    /// The model, once it is loaded.
    pub(crate) fn model(&self) -> Option<&LanguageModel> {
        self.model.get()
    }

    pub(crate) fn phase(&self) -> &watch::Sender<Phase> {
        &self.phase
    }

    /// Goes forward to `phase`; a later one stays.
    pub(crate) fn advance_to(&self, phase: Phase) {
        self.phase.send_if_modified(|current| {
            let forward = *current < phase;
            *current = phase.max(*current);
            forward
        });
    }

    /// A number for the next request.
    pub(crate) fn next_request(&self) -> u64 {
        self.requests.fetch_add(1, Ordering::Relaxed)
    }

    /// Lets a request in.
    ///
    /// # Errors
    /// 503 while the model loads and once the server is to end.
    pub(crate) fn admit(&self) -> Result<Admission, ApiError> {
        // Subscribed first: whoever is let in before draining begins is waited for.
        let phase = self.phase.subscribe();
        if *phase.borrow() != Phase::Serving {
            return Err(ApiError::unavailable("The server is shutting down."));
        }
        let model = self.model().cloned().ok_or_else(|| self.still_loading())?;
        Ok(Admission { model, phase })
    }

    /// 503 with the percentage that is loaded.
    pub(crate) fn still_loading(&self) -> ApiError {
        let fraction = f32::from_bits(self.loaded.load(Ordering::Relaxed));
        // 100 % is for models that answer.
        ApiError::unavailable(format!("The model is loading: {} %.", ((fraction * 100.0) as u32).min(99)))
    }
}

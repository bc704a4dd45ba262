//! The state that all requests share.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

use kaito_engine::Throttle;
use kaito_grammar::Grammars;
use tokio::sync::watch;

use crate::body_pool::BodyPool;
use crate::error::ApiError;
use crate::metrics::Metrics;
use crate::model::{Model, SharedModel};
use crate::options::ServerOptions;
use crate::turns::Turns;

/// How many bodies of the largest size have room at one time: several, so that no slow one keeps all others waiting.
const BODIES: usize = 6;
/// The least room for bodies, where the largest size is small.
const BODIES_AT_LEAST: usize = 8 << 20;

/// The life of a server. It only goes forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Requests are taken, as soon as the model is loaded.
    Serving,
    /// No new requests; admitted ones go on.
    Draining,
    /// Admitted requests are broken off.
    Ended,
}

/// A request's permission to run, given once its body has arrived. Draining waits until it and all its clones are dropped.
#[derive(Clone)]
pub(crate) struct Admission {
    pub(crate) model: SharedModel,
    /// What compiles grammars for it.
    pub(crate) grammars: Grammars,
    phase: watch::Receiver<Phase>,
    _admitted: watch::Receiver<()>,
}

impl Admission {
    /// Returns when admitted requests are to be broken off.
    pub(crate) async fn revoked(&mut self) {
        // An error means that the server is gone altogether.
        let _ = self.phase.wait_for(|phase| *phase == Phase::Ended).await;
    }
}

/// What compiles grammars for `model`.
fn grammars(model: &dyn Model) -> Grammars {
    let context = model.context();
    Grammars::new(context.tokenizer.clone(), context.vocab_size, context.end_tokens.clone())
}

/// What all requests share.
pub(crate) struct App {
    pub(crate) options: ServerOptions,
    pub(crate) metrics: Metrics,
    /// Which of the model's files were found to have changed; kept even if the files are put back.
    pub(crate) changed_files: OnceLock<String>,
    /// The memory of bodies until their requests are prepared.
    pub(crate) bodies: Arc<BodyPool>,
    /// The queue of requests that are to be prepared.
    pub(crate) turns: Arc<Turns>,
    /// Limits log messages about a model that is loaded and can't answer.
    pub(crate) unfit: Throttle,
    /// When the server started.
    pub(crate) started: SystemTime,
    phase: watch::Sender<Phase>,
    /// Whether a client asked for the end.
    end_was_asked_for: AtomicBool,
    /// Every admission holds a receiver.
    admitted: watch::Sender<()>,
    model: Arc<OnceLock<SharedModel>>,
    /// What compiles grammars for the model.
    grammars: OnceLock<Grammars>,
    /// The loaded fraction of the model, as the bits of an f32.
    loaded: AtomicU32,
    /// What loading waits for.
    waits_for: Mutex<Option<String>>,
    requests: AtomicU64,
}

impl App {
    pub(crate) fn new(options: ServerOptions) -> Self {
        let options = options.bounded();
        let model = Arc::new(OnceLock::new());
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            metrics: Metrics::new(&options, Arc::clone(&model)),
            changed_files: OnceLock::new(),
            bodies: BodyPool::new(options.body_limit.saturating_mul(BODIES).max(BODIES_AT_LEAST)),
            turns: Turns::new(processors),
            unfit: Throttle::default(),
            started: SystemTime::now(),
            phase: watch::Sender::new(Phase::Serving),
            end_was_asked_for: AtomicBool::new(false),
            admitted: watch::Sender::new(()),
            model,
            grammars: OnceLock::new(),
            loaded: AtomicU32::new(0),
            waits_for: Mutex::default(),
            requests: AtomicU64::new(0),
            options,
        }
    }

    pub(crate) fn set_progress(&self, fraction: f32) {
        self.loaded.store(fraction.to_bits(), Ordering::Relaxed);
    }

    /// Says what loading waits for, as a part of a sentence.
    pub(crate) fn waits_for(&self, what: String) {
        *self.waits_for.lock().unwrap_or_else(PoisonError::into_inner) = Some(what);
    }

    pub(crate) fn set_model(&self, model: SharedModel) {
        // A server loads one model in its life.
        let _ = self.model.set(model);
    }

    /// The model, once it is loaded.
    pub(crate) fn model(&self) -> Option<&SharedModel> {
        self.model.get()
    }

    pub(crate) fn phase(&self) -> &watch::Sender<Phase> {
        &self.phase
    }

    /// Begins the end that a client asks for.
    pub(crate) fn ask_for_end(&self) {
        self.end_was_asked_for.store(true, Ordering::Relaxed);
        self.advance_to(Phase::Draining);
    }

    /// Whether a client asked for the end, and not whoever runs this process.
    pub(crate) fn end_was_asked_for(&self) -> bool {
        self.end_was_asked_for.load(Ordering::Relaxed)
    }

    /// Goes forward to `phase`, unless a later one has begun.
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

    /// Returns when the server is to end.
    pub(crate) async fn drains(&self) {
        // An error means that the sender is gone, which `self` rules out.
        let _ = self.phase.subscribe().wait_for(|phase| *phase >= Phase::Draining).await;
    }

    /// How many requests are admitted.
    pub(crate) fn admitted(&self) -> usize {
        self.admitted.receiver_count()
    }

    /// Returns when no request is admitted.
    pub(crate) async fn idle(&self) {
        self.admitted.closed().await;
    }

    /// The model, if requests are taken.
    ///
    /// # Errors
    /// 503 while the model loads and once the server is to end.
    pub(crate) fn check_open(&self) -> Result<&SharedModel, ApiError> {
        if *self.phase.borrow() != Phase::Serving {
            return Err(Self::shutting_down());
        }
        self.model().ok_or_else(|| self.still_loading())
    }

    /// Admits a request whose body has arrived.
    ///
    /// # Errors
    /// As [`App::check_open`].
    pub(crate) fn admit(&self) -> Result<Admission, ApiError> {
        // Counted first, so that draining waits for every request that is admitted before it begins.
        let (admitted, phase) = (self.admitted.subscribe(), self.phase.subscribe());
        let model = Arc::clone(self.check_open()?);
        let grammars = self.grammars.get_or_init(|| grammars(&*model)).clone();
        Ok(Admission { model, grammars, phase, _admitted: admitted })
    }

    /// 503 for requests that come while the server shuts down.
    pub(crate) fn shutting_down() -> ApiError {
        ApiError::unavailable("The server is shutting down.").with_code("shutting_down")
    }

    /// 503 with what loading waits for, or with the percentage that is loaded.
    pub(crate) fn still_loading(&self) -> ApiError {
        if let Some(what) = &*self.waits_for.lock().unwrap_or_else(PoisonError::into_inner) {
            return ApiError::unavailable(format!("The model is loading: {what}.")).with_code("loading");
        }
        let fraction = f32::from_bits(self.loaded.load(Ordering::Relaxed));
        // 100 % would mean that it answers.
        let percent = ((fraction * 100.0) as u32).min(99);
        ApiError::unavailable(format!("The model is loading: {percent} %.")).with_code("loading")
    }
}

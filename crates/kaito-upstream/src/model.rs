//! The model that the server sees.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use kaito_client::Http;
use kaito_engine::{
    Adapters, EngineStats, FileChange, ModelFiles, ModelInfo, Prepared, RequestContext, Stream,
    remote::{GenerationRequest, GenerationStream},
};
use kaito_server::Model;
use tokio::{runtime::Handle, time};

use crate::{
    Error,
    engine::{self, Engine, Served},
    failure::Failure,
    generation::{self, Queue},
    plan::Plan,
    supervisor::{self, Supervisor},
};

/// How often an engine that does not answer yet is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// How an engine elsewhere is used.
#[derive(Debug, Clone)]
pub struct UpstreamOptions {
    /// Where it is, as `http://127.0.0.1:8000`; with `/v1` at its end or without.
    pub url: String,
    /// The key that it asks for.
    pub api_key: Option<String>,
    /// The name by which it knows the model; its first model where this is `None`.
    pub model: Option<String>,
    /// How long a request waits for an engine that is away.
    pub wait: Duration,
    /// The supervisor of its rank 0, as `http://127.0.0.1:5001`: what it knows of an engine that is not fit is told with the rest.
    pub supervisor: Option<String>,
    /// A file with a chat template, in place of the model's own.
    pub chat_template: Option<PathBuf>,
    /// Longest sequence, in tokens; the shorter one of the model's and the engine's where it is `None`.
    pub max_seq_len: Option<usize>,
    /// Most sequences that it is asked for at the same time.
    pub max_batch_size: usize,
    /// Most requests that wait.
    pub max_waiting: usize,
}

/// A model whose tokens an engine elsewhere computes; cheap to clone.
#[derive(Clone)]
pub struct Upstream(Arc<Inner>);

struct Inner {
    engine: Arc<Engine>,
    queue: Queue,
    files: ModelFiles,
    /// Those that the engine had for the model when it was first asked.
    adapters: Adapters,
    closed: AtomicBool,
    runtime: Handle,
}

impl Upstream {
    /// Reads the model's files in `directory`, but for its weights, and waits until the engine answers; `note` hears for what.
    ///
    /// # Errors
    /// Files that are missing or of a kind that isn't supported, an engine that is none or serves another model.
    pub async fn connect(
        directory: &Path,
        options: UpstreamOptions,
        note: impl Fn(String) + Send,
    ) -> Result<Self, Error> {
        let url = engine::base(&options.url);
        let template = options.chat_template.as_deref();
        let mut files = ModelFiles::read(directory, template, options.max_batch_size, &url)?;
        let longest = files.info.max_seq_len;
        if let Some(asked) = options.max_seq_len.filter(|asked| !(1..=longest).contains(asked)) {
            let sentence =
                format!("max_seq_len is {asked}, but must be from 1 to {longest}, the length the model was made for");
            return Err(kaito_engine::Error::Load(sentence).into());
        }
        let http = Http::new(options.api_key.as_deref())?;
        let supervisor = options.supervisor.as_deref().map(|url| Supervisor::new(http.clone(), url));
        let served = answer(&http, &url, options.model.as_deref(), supervisor.as_ref(), note).await?;
        if let (Some(asked), Some(most)) = (options.max_seq_len, served.max_seq_len)
            && asked > most
        {
            let fault = format!("takes sequences of {most} tokens at most, but max_seq_len is {asked}");
            return Err(Error::Engine { engine: url, fault });
        }
        files.limit(options.max_seq_len.unwrap_or(longest));
        files.limit(served.max_seq_len.unwrap_or(longest));
        let sizes = (files.info.vocab_size, files.info.max_seq_len);
        let engine = Arc::new(Engine::new(http, url, &served, options.model, options.wait, sizes, supervisor));
        tokio::spawn(engine::watch(Arc::downgrade(&engine)));
        tracing::info!(
            engine = engine.url(),
            model = served.model,
            family = files.info.family,
            max_seq_len = files.info.max_seq_len,
            "the engine answers"
        );
        let queue = Queue::new(options.max_batch_size, options.max_waiting);
        Ok(Self(Arc::new(Inner {
            engine,
            queue,
            files,
            adapters: Adapters::elsewhere(served.adapters),
            closed: AtomicBool::new(false),
            runtime: Handle::current(),
        })))
    }

    /// The name by which the engine knows the model.
    pub fn engine_model(&self) -> String {
        self.0.engine.model().to_string()
    }

    fn submit(&self, request: GenerationRequest, first: bool) -> Result<GenerationStream, kaito_engine::Error> {
        let Inner { engine, queue, files, adapters, closed, runtime } = &*self.0;
        if closed.load(Relaxed) {
            return Err(kaito_engine::Error::ShuttingDown);
        }
        let adapter = request.params.adapter.as_ref().and_then(|adapter| adapters.name_of(adapter));
        let plan = Plan::new(request, adapter, &files.context)?;
        generation::start(runtime, engine.clone(), queue, plan, !first)
    }
}

/// Waits until the engine says what it serves.
async fn answer(
    http: &Http,
    url: &str,
    model: Option<&str>,
    supervisor: Option<&Supervisor>,
    note: impl Fn(String),
) -> Result<Served, Error> {
    let mut last = String::new();
    loop {
        match engine::served(http, url, model).await {
            Ok(served) => return Ok(served),
            Err(Failure::Final(error)) => return Err(error.into()),
            Err(Failure::Lost { cause, .. }) => {
                let what = format!("the engine at {url} is away, or still loading: {cause}");
                let known = match supervisor {
                    None => None,
                    Some(supervisor) => supervisor.cause().await,
                };
                let what = supervisor::joined(what, known.as_deref());
                if what != last {
                    tracing::info!(engine = url, cause, "waiting for the engine");
                    note(what.clone());
                    last = what;
                }
            }
        }
        time::sleep(ASK_AGAIN).await;
    }
}

impl Model for Upstream {
    fn context(&self) -> &RequestContext {
        &self.0.files.context
    }

    fn start(&self, prompts: Vec<Prepared>) -> Result<Stream, kaito_engine::Error> {
        Stream::start(prompts, |request, first| self.submit(request, first))
    }

    fn info(&self) -> &ModelInfo {
        &self.0.files.info
    }

    fn stats(&self) -> EngineStats {
        let Inner { engine, queue, .. } = &*self.0;
        let counters = &engine.counters;
        EngineStats {
            waiting: queue.waiting(),
            running: counters.running.load(Relaxed),
            prompt_tokens_total: counters.prompt_tokens.load(Relaxed),
            prompt_tokens_reused_total: counters.cached_tokens.load(Relaxed),
            generated_tokens_total: counters.generated_tokens.load(Relaxed),
            since_progress: engine.since_progress(),
            ..EngineStats::default()
        }
    }

    fn changed_files(&self) -> Vec<FileChange> {
        // No weights are read.
        Vec::new()
    }

    fn adapters(&self) -> &Adapters {
        &self.0.adapters
    }

    fn load_adapter(&self, name: &str, _: &Path, _: bool) -> Result<(), kaito_engine::Error> {
        let engine = self.0.engine.url();
        Err(kaito_engine::Error::InvalidRequest(format!(
            "adapter {name:?}: the engine at {engine} loads its own adapters"
        )))
    }

    fn stop_accepting(&self) {
        self.0.closed.store(true, Relaxed);
    }

    fn trouble(&self) -> Option<String> {
        let engine = &self.0.engine;
        engine.trouble().map(|trouble| supervisor::joined(trouble, engine.cause().as_deref()))
    }

    fn cause(&self) -> Option<String> {
        self.0.engine.cause()
    }

    fn end_engine(&self) -> BoxFuture<'_, ()> {
        self.0.engine.shut_down().boxed()
    }

    fn engine_metrics(&self) -> BoxFuture<'_, Option<String>> {
        self.0.engine.metrics().boxed()
    }
}

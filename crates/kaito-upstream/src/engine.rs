//! The engine elsewhere: where it is, what it serves, and whether it is fit.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use kaito_client::Http;
use serde::Deserialize;
use tokio::{
    sync::Notify,
    time::{self, Instant},
};

use crate::{failure::Failure, supervisor::Supervisor};

/// How often it is looked at, and how often while something is wrong.
const LOOK: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// How long it may take to say how it is, and what it measured.
const ANSWER: Duration = Duration::from_secs(5);
const METRICS: Duration = Duration::from_secs(2);

/// The engine elsewhere.
#[derive(Debug)]
pub(crate) struct Engine {
    /// Without a slash at its end.
    url: String,
    http: Http,
    /// How long a request waits for it.
    wait: Duration,
    vocab_size: usize,
    /// The longest sequence that requests are promised.
    longest: usize,
    /// The name by which it knows the model, as it was asked for and as it is.
    asked_model: Option<String>,
    model: Mutex<Arc<str>>,
    trouble: Mutex<Option<String>>,
    supervisor: Option<Supervisor>,
    /// What its supervisor knows of it.
    cause: Mutex<Option<String>>,
    look: Notify,
    progress: Mutex<Instant>,
    pub(crate) counters: Counters,
}

/// What is counted of it.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) running: AtomicUsize,
    pub(crate) prompt_tokens: AtomicU64,
    pub(crate) cached_tokens: AtomicU64,
    pub(crate) generated_tokens: AtomicU64,
}

/// What it says that it serves.
#[derive(Debug, PartialEq)]
pub(crate) struct Served {
    pub(crate) model: String,
    pub(crate) max_seq_len: Option<usize>,
    /// Adapters of that model, each with its folder there.
    pub(crate) adapters: Vec<(String, PathBuf)>,
}

#[derive(Deserialize)]
struct Models {
    data: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    id: String,
    max_model_len: Option<usize>,
    /// The model that an adapter is for.
    parent: Option<String>,
    /// The folder that it was read from.
    root: Option<String>,
}

/// A sequence that runs, until it is dropped.
pub(crate) struct Running<'a>(&'a AtomicUsize);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The base of its routes: users know it with `/v1` at its end, too.
pub(crate) fn base(url: &str) -> String {
    let url = url.trim_end_matches('/');
    url.strip_suffix("/v1").unwrap_or(url).trim_end_matches('/').to_owned()
}

/// What the engine at `url` serves; the model `asked`, if one is asked for.
pub(crate) async fn served(http: &Http, url: &str, asked: Option<&str>) -> Result<Served, Failure> {
    let answer = time::timeout(ANSWER, http.get(&format!("{url}/v1/models"))).await;
    let late = |_| Failure::Lost { cause: format!("no answer within {} s", ANSWER.as_secs()), taken: false };
    let body = answer.map_err(late)?.map_err(|failure| Failure::of(url, failure))?;
    read_served(&body, asked).map_err(|fault| Failure::fault(url, fault))
}

fn read_served(body: &str, asked: Option<&str>) -> Result<Served, String> {
    let models: Models = serde_json::from_str(body)
        .map_err(|error| format!("answers /v1/models with what is no list of models: {error}"))?;
    let names = || models.data.iter().map(|model| model.id.as_str()).collect::<Vec<_>>().join(", ");
    let found = models.data.iter().find(|model| match asked {
        Some(asked) => model.id == asked,
        None => model.parent.is_none(),
    });
    match (found, asked) {
        (Some(model), _) => {
            let adapters = models.data.iter().filter(|other| other.parent.as_ref() == Some(&model.id));
            let named = |adapter: &Model| (adapter.id.clone(), adapter.root.clone().unwrap_or_default().into());
            let adapters = adapters.map(named).collect();
            Ok(Served { model: model.id.clone(), max_seq_len: model.max_model_len, adapters })
        }
        (None, Some(asked)) => {
            Err(format!("does not serve the model {asked}; it serves {}", kaito_client::brief(&names())))
        }
        (None, None) => Err("serves no model".to_owned()),
    }
}

impl Engine {
    /// The engine at `url`, which serves `served`.
    pub(crate) fn new(
        http: Http,
        url: String,
        served: &Served,
        asked_model: Option<String>,
        wait: Duration,
        (vocab_size, longest): (usize, usize),
        supervisor: Option<Supervisor>,
    ) -> Self {
        Self {
            url,
            http,
            wait,
            vocab_size,
            longest,
            asked_model,
            model: Mutex::new(served.model.as_str().into()),
            trouble: Mutex::default(),
            supervisor,
            cause: Mutex::default(),
            look: Notify::new(),
            progress: Mutex::new(Instant::now()),
            counters: Counters::default(),
        }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn route(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    pub(crate) fn http(&self) -> &Http {
        &self.http
    }

    pub(crate) fn wait(&self) -> Duration {
        self.wait
    }

    pub(crate) fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The name by which it knows the model.
    pub(crate) fn model(&self) -> Arc<str> {
        lock(&self.model).clone()
    }

    /// Counts a sequence that runs.
    pub(crate) fn running(&self) -> Running<'_> {
        let running = &self.counters.running;
        if running.fetch_add(1, Relaxed) == 0 {
            self.progressed();
        }
        Running(running)
    }

    pub(crate) fn count_prompt(&self, tokens: usize) {
        self.counters.prompt_tokens.fetch_add(tokens as u64, Relaxed);
    }

    pub(crate) fn count_cached(&self, tokens: usize) {
        self.counters.cached_tokens.fetch_add(tokens as u64, Relaxed);
    }

    pub(crate) fn count_tokens(&self, tokens: usize) {
        self.counters.generated_tokens.fetch_add(tokens as u64, Relaxed);
        self.progressed();
    }

    fn progressed(&self) {
        *lock(&self.progress) = Instant::now();
    }

    /// For how long it owes a token; `None` where it owes none.
    pub(crate) fn since_progress(&self) -> Option<Duration> {
        (self.counters.running.load(Relaxed) > 0).then(|| lock(&self.progress).elapsed())
    }

    /// Why it is not fit, as a sentence.
    pub(crate) fn trouble(&self) -> Option<String> {
        lock(&self.trouble).clone()
    }

    /// What its supervisor knows of it, in sentences; `None` where all is well, and where there is none.
    pub(crate) fn cause(&self) -> Option<String> {
        lock(&self.cause).clone()
    }

    /// Asks its supervisor, if it has one.
    async fn ask_supervisor(&self) {
        if let Some(supervisor) = &self.supervisor {
            let cause = supervisor.cause().await;
            *lock(&self.cause) = cause;
        }
    }

    /// Has its supervisor end it, if it has one.
    pub(crate) async fn shut_down(&self) {
        if let Some(supervisor) = &self.supervisor {
            supervisor.shut_down().await;
        }
    }

    /// Has it looked at soon: something went wrong.
    pub(crate) fn look(&self) {
        self.look.notify_one();
    }

    /// What it measured, in Prometheus' text format.
    pub(crate) async fn metrics(&self) -> Option<String> {
        time::timeout(METRICS, self.http.get(&self.route("/metrics"))).await.ok()?.ok()
    }

    fn note(&self, found: Option<String>) {
        let mut trouble = lock(&self.trouble);
        match (&*trouble, &found) {
            (None, Some(found)) => tracing::warn!(trouble = found, "requests wait for the engine"),
            (Some(_), None) => {
                // While it was away it owed nothing.
                self.progressed();
                tracing::info!(engine = self.url, "the engine is well again");
            }
            _ => {}
        }
        *trouble = found;
    }

    async fn check(&self) -> Result<(), String> {
        let at = &self.url;
        match time::timeout(ANSWER, self.http.get(&self.route("/health"))).await {
            Err(_) => {
                return Err(format!("The engine at {at} does not say within {} s that it is well.", ANSWER.as_secs()));
            }
            Ok(Err(kaito_client::Failure::Status { status, message })) if status >= 500 => {
                return Err(format!("The engine at {at} is not well: status {status}: {message}."));
            }
            // An engine that knows no such route answers all the same.
            Ok(Ok(_) | Err(kaito_client::Failure::Status { .. })) => {}
            Ok(Err(failure)) => return Err(format!("The engine at {at} is away, or still loading: {failure}.")),
        }
        // It was well, and there was nothing wrong: it is the same as before.
        if lock(&self.trouble).is_none() {
            return Ok(());
        }
        match served(&self.http, at, self.asked_model.as_deref()).await {
            Ok(Served { max_seq_len: Some(shorter), .. }) if shorter < self.longest => Err(format!(
                "The engine at {at} takes sequences of {shorter} tokens now, and this server promises {}: restart one of them.",
                self.longest
            )),
            Ok(Served { model, .. }) => {
                *lock(&self.model) = model.into();
                Ok(())
            }
            Err(Failure::Lost { cause, .. }) => {
                Err(format!("The engine at {at} does not say what it serves: {cause}."))
            }
            Err(Failure::Final(error)) => Err(format!("{error}.").replacen("the", "The", 1)),
        }
    }
}

/// Looks at the engine for as long as somebody uses it.
pub(crate) async fn watch(engine: Weak<Engine>) {
    loop {
        let Some(engine) = engine.upgrade() else { return };
        let (checked, ()) = tokio::join!(engine.check(), engine.ask_supervisor());
        let found = checked.err();
        let well = found.is_none();
        engine.note(found);
        // While it is away, requests that fail say nothing new.
        if well {
            let _ = time::timeout(LOOK, engine.look.notified()).await;
        }
        drop(engine);
        time::sleep(LOOK_AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_known_with_and_without_its_version() {
        for url in ["http://a:8000", "http://a:8000/", "http://a:8000/v1", "http://a:8000/v1/"] {
            assert_eq!(base(url), "http://a:8000");
        }
        assert_eq!(base("https://a/engine/v1"), "https://a/engine");
    }

    /// Bodies as vLLM's `ModelList` and `ModelCard` have them.
    #[test]
    fn the_model_is_the_first_that_is_no_adapter_or_the_one_asked_for() {
        let body = r#"{"object":"list","data":[
            {"id":"lora","object":"model","root":"/mnt/lora","parent":"base","max_model_len":null},
            {"id":"base","object":"model","parent":null,"root":"/models/base","max_model_len":2048,"permission":[]}]}"#;
        let served = |model: &str, max_seq_len, adapters| Ok(Served { model: model.to_owned(), max_seq_len, adapters });
        let adapters = vec![("lora".to_owned(), "/mnt/lora".into())];
        assert_eq!(read_served(body, None), served("base", Some(2048), adapters));
        assert_eq!(read_served(body, Some("lora")), served("lora", None, Vec::new()));
        let other = read_served(body, Some("other")).unwrap_err();
        assert_eq!(other, "does not serve the model other; it serves lora, base");
        assert_eq!(read_served(r#"{"data":[]}"#, None), Err("serves no model".to_owned()));
        assert!(
            read_served("<html>", None).unwrap_err().starts_with("answers /v1/models with what is no list of models")
        );
    }
}

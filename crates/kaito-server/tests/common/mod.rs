//! A live server over a tiny model, on a port of its own.
#![allow(dead_code, reason = "every test file uses a part of it")]

pub mod raw;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use kaito_engine::{GenerateOptions, LanguageModel, LoadOptions, Request, Stream};
use kaito_server::{ApiKey, ApiKeys, Error, Server, ServerOptions, ShutdownHandle};
use reqwest::{Client, Response};
use serde_json::Value;
use tokio::task::JoinHandle;

/// Room for 512 tokens and a chat template; Hugging Face's format.
pub const CHAT_MODEL: &str = "llama-multi-head";
/// The same family in Meta's format.
pub const META_MODEL: &str = "meta-llama-7b-type";

pub struct TestServer {
    pub url: String,
    pub client: Client,
    /// The very model that the server runs, to look at its pages.
    pub model: LanguageModel,
    handle: ShutdownHandle,
    running: JoinHandle<Result<(), Error>>,
}

pub fn options() -> ServerOptions {
    ServerOptions {
        address: (Ipv4Addr::LOCALHOST, 0).into(),
        model_name: "tiny".to_owned(),
        ..ServerOptions::default()
    }
}

pub fn model_directory(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/fixtures").join(name)
}

pub fn load(name: &str, options: &LoadOptions) -> LanguageModel {
    LanguageModel::load(&model_directory(name), options, &|_| ()).expect("the fixture loads")
}

/// A model that runs one sequence at a time, and work for it that no machine does in a second: 100,000 steps. Whoever
/// comes later waits until the work is dropped.
pub fn busy_model() -> (LanguageModel, Vec<Stream>) {
    let model = load(CHAT_MODEL, &LoadOptions { max_batch_size: 1, speculate: false, ..LoadOptions::default() });
    let options = GenerateOptions { max_length: Some(500), min_length: Some(500), ..GenerateOptions::default() };
    let request = Request { prompt: "Hello".into(), options, ..Request::default() };
    let work = (0..200).map(|_| model.generate(request.clone()).expect("the queue has room")).collect();
    (model, work)
}

impl TestServer {
    /// A server with the usual options.
    pub async fn start(model: &str) -> Self {
        Self::with(load(model, &LoadOptions::default()), options()).await
    }

    pub async fn with(model: LanguageModel, options: ServerOptions) -> Self {
        let server = Server::bind(options).await.expect("a free port");
        let url = format!("http://{}", server.local_addr());
        let handle = server.shutdown_handle();
        let loaded = model.clone();
        let running = tokio::spawn(server.run(move |_| Ok::<_, Error>(loaded)));
        let client = Client::builder().timeout(Duration::from_secs(120)).build().expect("a client");
        let server = Self { url, client, model, handle, running };
        eventually("the server is healthy", async || server.get("/healthz").await.status() == 200).await;
        server
    }

    pub async fn get(&self, path: &str) -> Response {
        self.client.get(format!("{}{path}", self.url)).send().await.expect("an answer")
    }

    pub async fn post(&self, path: &str, body: &Value) -> Response {
        self.client.post(format!("{}{path}", self.url)).json(body).send().await.expect("an answer")
    }

    /// The body of a request that must succeed.
    pub async fn ask(&self, path: &str, body: &Value) -> Value {
        let response = self.post(path, body).await;
        let status = response.status();
        let answer = response.text().await.expect("a whole body");
        assert_eq!(status, 200, "{body} -> {answer}");
        serde_json::from_str(&answer).expect("JSON")
    }

    pub async fn all_pages_free(&self) {
        eventually("all pages are free", async || {
            let stats = self.model.stats();
            stats.pages_used == 0 && stats.running == 0 && stats.waiting == 0
        })
        .await;
    }

    /// Begins the end.
    pub fn shut_down(&self) {
        self.handle.shutdown();
    }

    /// Waits for the end, which must have begun.
    pub async fn ended(self) -> Result<(), Error> {
        tokio::time::timeout(Duration::from_secs(60), self.running).await.expect("the server ends").expect("no panic")
    }

    /// Begins the end and waits for it.
    pub async fn stop(self) {
        self.shut_down();
        self.ended().await.expect("an orderly end");
    }
}

/// One event of a stream.
#[derive(Debug)]
pub struct Event {
    pub name: String,
    pub data: Value,
}

/// The events of a response's body so far.
pub fn parse_events(body: &str) -> Vec<Event> {
    let parse = |block: &str| {
        let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let data = field("data:")?;
        Some(Event {
            name: field("event:").unwrap_or("message").to_owned(),
            data: serde_json::from_str(data).expect("data is JSON"),
        })
    };
    body.split("\n\n").filter_map(parse).collect()
}

/// Waits until `condition` holds, and fails after a time that only a fault takes.
pub async fn eventually(what: &str, condition: impl AsyncFn() -> bool) {
    let limit = Instant::now() + Duration::from_secs(60);
    while !condition().await {
        assert!(Instant::now() < limit, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The keys of a server, as a flag has them.
pub fn keys(text: &str) -> ApiKeys {
    ApiKeys::new(ApiKey::parse_all(text).unwrap(), None).unwrap()
}

//! A server in the test's own process, on a port of its own.

use std::{net::Ipv4Addr, time::Duration};

use kaito_engine::{LanguageModel, LoadOptions};
use kaito_server::{ApiKey, ApiKeys, Error, Model, Server, ServerOptions, ShutdownHandle};
use reqwest::{Client, RequestBuilder, Response};
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::{
    files::{parity_model, repository},
    wait::{LIMIT, eventually},
};

/// Room for 512 tokens and a chat template; Hugging Face's format.
pub const CHAT_MODEL: &str = "llama-multi-head";
/// The same family in Meta's format.
pub const META_MODEL: &str = "meta-llama-7b-type";

/// A running server, of a model in this process where nothing else is said.
pub struct TestServer<M = LanguageModel> {
    /// Where it is.
    pub url: String,
    /// Whom it is asked by.
    pub client: Client,
    /// The very model that it runs, to look at its pages.
    pub model: M,
    handle: ShutdownHandle,
    running: JoinHandle<Result<(), Error>>,
}

/// The options of a server on a port of the system's choice.
pub fn options() -> ServerOptions {
    ServerOptions {
        address: (Ipv4Addr::LOCALHOST, 0).into(),
        model_name: "tiny".to_owned(),
        ..ServerOptions::default()
    }
}

/// A model of the parity fixtures.
pub fn load(name: &str, options: &LoadOptions) -> LanguageModel {
    LanguageModel::load(&parity_model(name), options, &|_| ()).expect("the fixture loads")
}

/// Prompts for a model of the parity fixtures, and what PEFT answers with each of its adapters.
pub fn parity_adapter_cases(model: &str) -> Value {
    let path = repository().join("tests/parity/adapters").join(model).join("cases.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The keys of a server, as a flag has them.
pub fn keys(text: &str) -> ApiKeys {
    ApiKeys::new(ApiKey::parse_all(text).unwrap(), None).unwrap()
}

impl TestServer {
    /// A server with the usual options, over a model of the parity fixtures.
    pub async fn start(model: &str) -> Self {
        Self::with(load(model, &LoadOptions::default()), options()).await
    }
}

impl<M: Model + Clone> TestServer<M> {
    /// A server of this model.
    pub async fn with(model: M, options: ServerOptions) -> Self {
        let server = Server::bind(options).await.expect("a free port");
        let url = format!("http://{}", server.local_addr());
        let handle = server.shutdown_handle();
        let loaded = model.clone();
        let running = tokio::spawn(server.run(move |_| Ok::<_, Error>(loaded)));
        let client = Client::builder().timeout(LIMIT).build().expect("a client");
        let server = Self { url, client, model, handle, running };
        eventually("the server is healthy", async || server.get("/healthz").await.status() == 200).await;
        server
    }

    /// Where it listens.
    pub fn address(&self) -> std::net::SocketAddr {
        self.url.strip_prefix("http://").unwrap().parse().unwrap()
    }

    /// The answer to a `GET`.
    pub async fn get(&self, path: &str) -> Response {
        self.client.get(format!("{}{path}", self.url)).send().await.expect("an answer")
    }

    /// A `POST` that can be sent from anywhere.
    pub fn request(&self, path: &str, body: &Value) -> RequestBuilder {
        self.client.post(format!("{}{path}", self.url)).json(body)
    }

    /// The answer to a `POST`.
    pub async fn post(&self, path: &str, body: &Value) -> Response {
        self.request(path, body).send().await.expect("an answer")
    }

    /// The body of a request that must succeed.
    pub async fn ask(&self, path: &str, body: &Value) -> Value {
        let response = self.post(path, body).await;
        let status = response.status();
        let answer = response.text().await.expect("a whole body");
        assert_eq!(status, 200, "{body} -> {answer}");
        serde_json::from_str(&answer).expect("JSON")
    }

    /// Waits until no request holds anything.
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

    /// Waits for the end, which must have begun. The server's own limit for its draining is three minutes.
    pub async fn ended(self) -> Result<(), Error> {
        let minute = Duration::from_secs(60);
        tokio::time::timeout(minute, self.running).await.expect("the server ends").expect("no panic")
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
    /// `message` where it has no other name.
    pub name: String,
    /// Its data.
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
